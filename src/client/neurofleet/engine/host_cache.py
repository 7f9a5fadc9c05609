"""Models on this host: unpacked and compiled once, whoever asks first.

Layout, below ``cache_directory()``::

    hosts/<host name>/models/<digest>/bundle.tar.gz         what was received
    hosts/<host name>/models/<digest>/<build>/model/        unpacked, with x86_64/ compiled
    hosts/<host name>/models/<digest>/<build>/ready         the evaluator's spec, written last
    hosts/<host name>/models/<digest>/lock
    hosts/<host name>/jobs/<digest>                         see ``job.py``

The host's name is part of the path because home directories are often shared, while
what is compiled is not, and because locks over a network are slower than compiling.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import platformdirs

from neurofleet import __version__
from neurofleet.engine.compiling import COMPILE_TIMEOUT_S, compile_mechanisms
from neurofleet.engine.libraries import libraries_in
from neurofleet.engine.private_copy import Cached, Changed, PrivateCopy, remove_tree
from neurofleet.errors import ModelError, WorkloadFailed
from neurofleet.files import read_object
from neurofleet.mechanisms import to_compile
from neurofleet.model import EvaluatorSpec, unpack

#: The libraries that simulate and score ...
SIMULATING = ("neuron", "bluepyopt", "efel")
#: ... and those that they compute with. Runs of earlier versions of this program may not have
#: recorded these; they go on.
NUMERIC = ("numpy", "scipy")


def cache_directory() -> Path:
    """Return where models and downloads are kept (``NEUROFLEET_CACHE`` overrides it)."""
    override = os.environ.get("NEUROFLEET_CACHE")
    if not override:
        return Path(platformdirs.user_cache_dir("neurofleet"))
    cache = Path(override).absolute()
    # Relative to where this program was started: it and its children go elsewhere later.
    os.environ["NEUROFLEET_CACHE"] = str(cache)
    return cache


def versions() -> dict[str, str]:
    """Return the versions that every score depends on, by distribution name."""
    return {name: importlib.metadata.version(name) for name in (*SIMULATING, *NUMERIC)}


def python_version() -> str:
    """Return the part of Python's version on which pickled code and sums of floats depend."""
    return ".".join(platform.python_version_tuple()[:2])


@functools.cache
def versions_stamp() -> str:
    """Return a short name of the versions that every score depends on."""
    text = repr((__version__, python_version(), sorted(versions().items())))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def host_directory() -> Path:
    """Return this host's part of the cache."""
    return cache_directory() / "hosts" / socket.gethostname()


def model_directory(digest: str) -> Path:
    """Return this host's directory of the model ``digest``."""
    return host_directory() / "models" / digest


def is_known(digest: str) -> bool:
    """Tell whether this host has received the model."""
    return (model_directory(digest) / "bundle.tar.gz").exists()


def receive(digest: str, archive: bytes) -> None:
    """Keep a bundle's archive, whole or not at all, also if the power goes."""
    target = model_directory(digest) / "bundle.tar.gz"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            with partial.open("wb") as file:
                file.write(archive)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise _unwritable(error) from error


def ensure_compiled(digest: str, *, again: bool = False) -> tuple[Path, EvaluatorSpec]:
    """Unpack and compile a received model, unless that has been done.

    Parameters
    ----------
    digest : str
    again : bool
        Unpack and compile even so.

    Returns
    -------
    directory : Path
        The unpacked model; NEURON's library, if it has mechanisms, is below it. Its files
        are for reading only.
    spec : EvaluatorSpec

    Raises
    ------
    ModelError
        The archive is damaged, or a mechanism does not compile (with the compiler's words).
    """
    with _alone(digest) as home:
        ready = _ensured(home, digest, again)
        return ready.cached.directory, ready.spec


def private_copy(digest: str) -> tuple[PrivateCopy, Ready]:
    """Return a copy of a received model for one process, and what it is a copy of.

    A cached copy that somebody has changed is unpacked and compiled anew.

    Raises
    ------
    ModelError
        See ``ensure_compiled``.
    WorkloadFailed
        There is no room for it.
    """
    with _alone(digest) as home:
        ready = _ensured(home, digest, again=False)
        try:
            return PrivateCopy(ready.cached), ready
        except Changed:
            ready = _ensured(home, digest, again=True)
        try:
            return PrivateCopy(ready.cached), ready
        except Changed as error:
            raise WorkloadFailed(
                f"the file {str(error)!r} of model {digest[:12]} changes while it is copied",
                remedy=f"End what writes into {str(home)!r}, and run the same command again",
            ) from error


@dataclass(frozen=True)
class Ready:
    """A model that is unpacked and compiled.

    Attributes
    ----------
    spec : EvaluatorSpec
    cached : Cached
    compiled : tuple of str
        The directories whose mechanisms were compiled.
    """

    spec: EvaluatorSpec
    cached: Cached
    compiled: tuple[str, ...]


@contextlib.contextmanager
def _alone(digest: str) -> Iterator[Path]:
    """Hold a model's directory, against all other processes of this host."""
    home = model_directory(digest)
    try:
        home.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(home / "lock", timeout=COMPILE_TIMEOUT_S):
            yield home
    except filelock.Timeout as error:
        raise WorkloadFailed(
            f"another process has been compiling model {digest[:12]} on"
            f" {socket.gethostname()} for {COMPILE_TIMEOUT_S:.0f} s",
            remedy=f"End it, or remove {str(home)!r}, and run the same command again",
        ) from error
    except OSError as error:
        raise _unwritable(error) from error


def _ensured(home: Path, digest: str, again: bool) -> Ready:
    build = home / f"neuron-{versions()['neuron']}-{platform.machine()}-py{sys.version_info[1]}"
    model, mark = build / "model", build / "ready"
    if not again:
        with contextlib.suppress(OSError, ValueError, KeyError, ModelError):
            return _read_mark(mark, model, digest)
    archive = home / "bundle.tar.gz"
    remove_tree(build)
    model.mkdir(parents=True)
    try:
        spec = unpack(archive.read_bytes(), digest, model)
    except ModelError:
        archive.unlink()  # so that it is sent again
        raise
    files = {name: (os.access(path, os.X_OK), _sha256(path)) for name, path in _files(model)}
    directories = to_compile(model, spec.mechanisms)
    if directories:
        compile_mechanisms(model, directories)
    libraries = libraries_in(model)
    for path in (*(path for _, path in _files(model)), *libraries):
        path.chmod(path.stat().st_mode & ~0o222)
    content = {
        "evaluator": spec.as_json(),
        "files": {name: list(known) for name, known in files.items()},
        "libraries": {path.relative_to(model).as_posix(): _sha256(path) for path in libraries},
        "compiled": directories,
    }
    mark.write_text(_mark(content, digest))
    return _read_mark(mark, model, digest)


def _mark(content: Mapping[str, Any], digest: str) -> str:
    """Return the mark that a model is ready: what it is, and a hash that a damaged one lacks."""
    text = json.dumps(content, sort_keys=True)
    checksum = hashlib.sha256(f"{digest} {text}".encode()).hexdigest()
    return json.dumps({**content, "checksum": checksum})


def _read_mark(mark: Path, model: Path, digest: str) -> Ready:
    content = read_object(mark)
    found = {name: content[name] for name in ("evaluator", "files", "libraries", "compiled")}
    if mark.read_text() != _mark(found, digest):
        raise ValueError("its checksum is another")
    files = {name: (known[0], known[1]) for name, known in content["files"].items()}
    return Ready(
        EvaluatorSpec.from_json(content["evaluator"]),
        Cached(model, files, content["libraries"]),
        tuple(content["compiled"]),
    )


def _files(top: Path) -> Iterator[tuple[str, Path]]:
    for folder, _, names in os.walk(top):
        for name in names:
            path = Path(folder) / name
            if path.is_file() and not path.is_symlink():
                yield path.relative_to(top).as_posix(), path


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _unwritable(error: OSError) -> WorkloadFailed:
    return WorkloadFailed(
        f"the model cache {str(cache_directory())!r} cannot be used ({error.strerror or error})",
        remedy="Make room or name another place with NEUROFLEET_CACHE",
    )
