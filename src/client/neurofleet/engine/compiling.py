"""Compile a model's mechanisms with NEURON's ``nrnivmodl``, and say why if they do not compile."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from neurofleet.engine.private_copy import is_plain, plain_temporary_directory, remove_tree
from neurofleet.errors import ModelError

#: How long one process waits for another that compiles the same model [s].
COMPILE_TIMEOUT_S = 600.0
#: Of what the compiler says so many lines are shown [count].
LINES = 5
PORTING = "https://www.neuronsimulator.org/en/9.0.0/guide/porting_mechanisms_to_cpp.html"

_CPP_ERROR = re.compile(r"(?:^|[/\\])(?P<name>[\w.-]+)\.cpp:\d+:(?:\d+:)? (?:fatal )?error: ")
_ERROR = re.compile(r"\berror\b|illegal|undefined|not declared|cannot|\bat line\b", re.IGNORECASE)
_REMARK = re.compile(r"\bwarning\b|\bnotice\b|\bnote:|\bIn function\b", re.IGNORECASE)


def compile_mechanisms(model: Path, directories: list[str]) -> None:
    """Compile so that NEURON's library is below ``model`` as ``nrnivmodl`` leaves it.

    Parameters
    ----------
    model : Path
    directories : list of str
        Relative to ``model``; each has mechanisms.

    Raises
    ------
    ModelError
        There is no compiler, or a mechanism does not compile.
    """
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
    if is_plain(model):
        _run(compiler, model, directories)
        return
    # make and NEURON's script take no spaces, quotes and letters outside ASCII in a path.
    above = tempfile.mkdtemp(prefix="neurofleet-compile-", dir=plain_temporary_directory())
    try:
        there = Path(shutil.copytree(model, Path(above) / "model"))
        before = {path.name for path in there.iterdir()}
        _run(compiler, there, directories)
        for path in there.iterdir():
            if path.name not in before:
                shutil.copytree(path, model / path.name)
    finally:
        remove_tree(Path(above))


def _run(compiler: str, model: Path, directories: list[str]) -> None:
    done = subprocess.run(
        [compiler, *directories],
        cwd=model,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=COMPILE_TIMEOUT_S,
        check=False,
    )
    output = done.stdout + done.stderr
    if "unable to locate the Python shared library" in output:
        raise ModelError(
            f"NEURON's compiler finds no shared library of Python on {socket.gethostname()}",
            remedy="Install libpython3 there, or set NMODL_PYLIB to a libpython3.x.so",
        )
    if done.returncode == 0:
        return
    what = f"the mechanisms in {', '.join(directories)} do not compile: {complaint(output)}"
    old = dict.fromkeys(
        match["name"] for match in map(_CPP_ERROR.search, output.splitlines()) if match
    )
    if old:
        files = ", ".join(f"{name}.mod" for name in old)
        raise ModelError(
            f"{what}; this is a matter of NEURON 9: NEURON {importlib.metadata.version('neuron')}"
            f" compiles mechanisms as C++, which refuses C code (VERBATIM in {files}) that older"
            " versions took",
            remedy=f"Port it ({PORTING}), or leave {files} out with --exclude if the model does"
            " not use it",
        )
    raise ModelError(
        what,
        remedy="Mend the mechanism, leave it out with --exclude, or name other directories with"
        " --mechanisms",
    )


def complaint(output: str) -> str:
    """Return the lines of a failed compilation that say what is wrong, errors first."""
    # After its own messages come make's and Python's, about the compiler having failed.
    said = re.split(r"\nmake(?:\[\d+\])?: \*\*\*", output)[0].splitlines()
    lines = [line.strip() for line in said if line.strip() and not line.startswith("NOTE:")]
    errors: list[str] = []
    remarks: list[str] = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if not _ERROR.search(line):
            continue
        if _REMARK.search(line) and not re.search(r"\berror: ", line):
            remarks.append(line)
            continue
        errors.append(line)
        if re.search(r"\bat line \d+ in file\b", line):
            errors.append(following)  # the mechanism's own text, as nocmodl quotes it
    errors.sort(key=lambda line: " error: " not in line)  # the compiler's own before the rest
    telling = [*errors, *remarks] or lines[-4:]
    return "; ".join(part for part in telling[:LINES] if part) or "it said nothing"
