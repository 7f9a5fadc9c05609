"""A job's own mechanisms: compiled once on a host, loaded before the function's modules are.

Layout, below the host's part of the cache::

    mechanisms/<hash>/mod/           the files
    mechanisms/<hash>/*/libnrnmech*  NEURON's library
    mechanisms/<hash>/ready          written last: a hash of that library
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path


def load(mechanisms: Mapping[str, bytes]) -> None:
    """Compile a job's mechanisms, unless that has been done here, and load them.

    Parameters
    ----------
    mechanisms : mapping of str to bytes
        ``.mod`` files by name.

    Raises
    ------
    ModelError
        One does not compile.
    """
    from neurofleet.engine.libraries import LoadedOnce, libraries_in
    from neurofleet.errors import ModelError

    built = _compiled(mechanisms)
    # NEURON loads what is compiled in its directory, which may have the same mechanisms.
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="neurofleet-neutral-") as neutral:
        os.chdir(neutral)
        try:
            import neuron

            once = LoadedOnce(neuron)
            # Relative, because NEURON takes no letters outside ASCII in a path.
            os.chdir(built)
            loaded = [once.load(str(path.relative_to(built))) for path in libraries_in(built)]
        finally:
            os.chdir(before)
    if not all(loaded):
        raise ModelError(
            "NEURON does not load the function's mechanisms",
            remedy=f"Remove {str(built)!r} and run the same command again",
        )


def _compiled(mechanisms: Mapping[str, bytes]) -> Path:
    import filelock

    from neurofleet.engine import host_cache
    from neurofleet.engine.compiling import COMPILE_TIMEOUT_S, compile_mechanisms

    name = hashlib.sha256()
    versions = host_cache.versions()["neuron"], platform.machine(), sys.version_info[:2]
    name.update(repr((versions, sorted(mechanisms.items()))).encode())
    home = host_cache.host_directory() / "mechanisms" / name.hexdigest()
    home.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{home}.lock", timeout=COMPILE_TIMEOUT_S):
        if not _is_whole(home):
            shutil.rmtree(home, ignore_errors=True)
            (home / "mod").mkdir(parents=True)
            for file, content in mechanisms.items():
                (home / "mod" / Path(file).name).write_bytes(content)
            compile_mechanisms(home, ["mod"])
            (home / "ready").write_text(_hash_of_libraries(home))
    return home


def _is_whole(home: Path) -> bool:
    """Tell whether the library is the one that was compiled; a power cut leaves half of one."""
    try:
        return (home / "ready").read_text() == _hash_of_libraries(home)
    except (OSError, UnicodeDecodeError):
        return False


def _hash_of_libraries(home: Path) -> str:
    from neurofleet.engine.libraries import libraries_in

    found = hashlib.sha256()
    for library in libraries_in(home):
        found.update(hashlib.sha256(library.read_bytes()).digest())
    return found.hexdigest()
