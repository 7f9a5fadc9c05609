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
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import filelock
import platformdirs

from neurofleet import __version__
from neurofleet.errors import ModelError, WorkloadFailed
from neurofleet.files import read_object
from neurofleet.model import EvaluatorSpec, mechanism_directories, unpack

#: How long one process waits for another that compiles the same model [s].
COMPILE_TIMEOUT_S = 600.0


def cache_directory() -> Path:
    """Return where models and downloads are kept (``NEUROFLEET_CACHE`` overrides it)."""
    override = os.environ.get("NEUROFLEET_CACHE")
    return Path(override) if override else Path(platformdirs.user_cache_dir("neurofleet"))


def versions() -> dict[str, str]:
    """Return the versions that a score depends on, by distribution name."""
    return {name: importlib.metadata.version(name) for name in ("neuron", "bluepyopt", "efel")}


@functools.cache
def versions_stamp() -> str:
    """Return a short name of all versions that a score depends on."""
    text = repr((__version__, sorted(versions().items())))
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
    """Keep a bundle's archive, whole or not at all."""
    target = model_directory(digest) / "bundle.tar.gz"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        partial.write_bytes(archive)
        partial.replace(target)
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
        The unpacked model; NEURON's library, if it has mechanisms, is below it.
    spec : EvaluatorSpec

    Raises
    ------
    ModelError
        The archive is damaged, or a mechanism does not compile (with the compiler's words).
    """
    home = model_directory(digest)
    build = home / f"neuron-{versions()['neuron']}-{platform.machine()}-py{sys.version_info[1]}"
    model, ready = build / "model", build / "ready"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(home / "lock", timeout=COMPILE_TIMEOUT_S):
            if not again:
                with contextlib.suppress(OSError, ValueError, KeyError, ModelError):
                    return model, _read_mark(ready, digest)
            archive = home / "bundle.tar.gz"
            shutil.rmtree(build, ignore_errors=True)
            model.mkdir(parents=True)
            try:
                spec = unpack(archive.read_bytes(), digest, model)
            except ModelError:
                archive.unlink()  # so that it is sent again
                raise
            _compile(model, spec)
            ready.write_text(_mark(spec, digest))
            return model, spec
    except filelock.Timeout as error:
        raise WorkloadFailed(
            f"another process has been compiling model {digest[:12]} on"
            f" {socket.gethostname()} for {COMPILE_TIMEOUT_S:.0f} s",
            remedy=f"End it, or remove {str(home)!r}, and run the same command again",
        ) from error
    except OSError as error:
        raise _unwritable(error) from error


def _mark(spec: EvaluatorSpec, digest: str) -> str:
    """Return the mark that a model is ready: its spec, and a hash that a damaged one lacks."""
    text = json.dumps(spec.as_json(), sort_keys=True)
    checksum = hashlib.sha256(f"{digest} {text}".encode()).hexdigest()
    return json.dumps({"evaluator": spec.as_json(), "checksum": checksum})


def _read_mark(ready: Path, digest: str) -> EvaluatorSpec:
    spec = EvaluatorSpec.from_json(read_object(ready)["evaluator"])
    if ready.read_text() != _mark(spec, digest):
        raise ValueError("its checksum is another")
    return spec


def _compile(model: Path, spec: EvaluatorSpec) -> None:
    """Run NEURON's ``nrnivmodl`` so that ``neuron.load_mechanisms(model)`` finds the result."""
    directories = mechanism_directories(model, spec)
    if not directories:
        return
    beside_python = Path(sys.executable).parent / "nrnivmodl"
    compiler = str(beside_python) if beside_python.exists() else shutil.which("nrnivmodl")
    if compiler is None:
        raise ModelError(
            "nrnivmodl, NEURON's compiler of mechanisms, is not installed",
            remedy="Install neuron in the environment that runs this program",
        )
    if shutil.which("c++") is None and shutil.which("g++") is None:
        raise ModelError(
            f"no C++ compiler on {socket.gethostname()}, and the model has mechanisms",
            remedy="Install g++ and make, or load the site's compiler (module load gcc)",
        )
    done = subprocess.run(
        [compiler, *directories],
        cwd=model,
        env={**os.environ, "PATH": f"{beside_python.parent}:{os.environ.get('PATH', '')}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=COMPILE_TIMEOUT_S,
        check=False,
    )
    if "unable to locate the Python shared library" in done.stdout + done.stderr:
        raise ModelError(
            f"NEURON's compiler finds no shared library of Python on {socket.gethostname()}",
            remedy="Install libpython3 there, or set NMODL_PYLIB to a libpython3.x.so",
        )
    if done.returncode != 0:
        raise ModelError(
            f"the mechanisms in {', '.join(directories)} do not compile:"
            f" {_complaint(done.stdout + done.stderr)}",
            remedy="Mend the mechanism, or name other directories with --mechanisms",
        )


def _complaint(output: str) -> str:
    """Return the lines of a failed compilation that say what is wrong."""
    # After its own messages come make's and Python's, about the compiler having failed.
    said = output.partition("\nmake: ***")[0].splitlines()
    lines = [line.strip() for line in said if line.strip() and not line.startswith("NOTE:")]
    telling: list[str] = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if re.search(r"error|illegal|undefined|not declared|cannot|\bat line\b", line, re.I):
            telling.append(line)
            if re.search(r"\bat line \d+ in file\b", line):
                telling.append(following)  # the mechanism's own text, as nocmodl quotes it
    return "; ".join(part for part in (telling or lines[-4:])[:5] if part) or "it said nothing"


def _unwritable(error: OSError) -> WorkloadFailed:
    return WorkloadFailed(
        f"the model cache {str(cache_directory())!r} cannot be used ({error.strerror or error})",
        remedy="Make room or name another place with NEUROFLEET_CACHE",
    )
