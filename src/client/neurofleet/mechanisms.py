"""A model's mechanisms: which ``.mod`` files are compiled, and what those are that are not."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from neurofleet.errors import ModelError

#: Where mechanisms (``*.mod``) are looked for, in this order, unless the user says.
DIRECTORIES = ("mechanisms", "mod", "modfiles", ".")
#: Other names that people give their directory, compared without case, ``-`` and ``_``.
OTHER_NAMES = ("mechanisms", "mechanism", "mod", "mods", "modfiles", "modfile", "nmodl")

_COMMENTS = re.compile(
    r"^[ \t]*COMMENT\b.*?^[ \t]*ENDCOMMENT\b|^[ \t]*VERBATIM\b.*?^[ \t]*ENDVERBATIM\b|[:?][^\n]*",
    re.DOTALL | re.MULTILINE,
)
_NAME = re.compile(r"\b(?:SUFFIX|POINT_PROCESS|ARTIFICIAL_CELL)\s+(\w+)")
#: What NEURON says of a mechanism that is not loaded, when it is inserted or made.
_UNKNOWN = (
    re.compile(r"argument not a density mechanism name\W*(?P<name>\w+)?"),
    re.compile(r"'?(?P<name>\w+)'? is not a defined hoc variable name"),
    re.compile(r"(?P<name>\w+) is not a MECHANISM"),
)


def to_compile(model: Path, named: Sequence[str] | None) -> list[str]:
    """Return the directories, relative to ``model``, whose mechanisms are compiled.

    Parameters
    ----------
    model : Path
    named : sequence of str or None
        Those that the person named. Otherwise it is the first of ``DIRECTORIES`` that has
        mechanisms; else the only one with one of ``OTHER_NAMES``; else the only one at all.

    Raises
    ------
    ModelError
        A directory that was named has none, or two files define the same mechanism.
    """
    if named is not None:
        for name in named:
            if not any((model / name).glob("*.mod")):
                raise ModelError(
                    f"the mechanism directory {name!r} holds no .mod file",
                    remedy="Name a directory of the model that does, or leave the option out",
                )
        chosen = list(dict.fromkeys(named))
    else:
        chosen = _found(model)
    _refuse_twice(model, chosen)
    return chosen


def hint(said: str, model: Path, compiled: Iterable[str]) -> str:
    """Return what a person can do about a mechanism that NEURON does not know; else nothing.

    Parameters
    ----------
    said : str
        What was raised.
    model : Path
    compiled : iterable of str
        The directories whose mechanisms were compiled.
    """
    unknown = next(filter(None, (pattern.search(said) for pattern in _UNKNOWN)), None)
    if unknown is None:
        return ""
    left = sorted(set(_with_mechanisms(model)) - {_normal(name) for name in compiled})
    files = [file for folder in left for file in sorted((model / folder).glob("*.mod"))]
    defining = [file for file in files if _defines(file) == unknown["name"]]
    remedy = "was not compiled: name the directory with --mechanisms"
    if defining:
        return f"; {defining[0].relative_to(model).as_posix()!r} defines it and {remedy}"
    if left:
        return f"; what the .mod files in {', '.join(map(repr, left[:4]))} define {remedy}"
    return ""


def _found(model: Path) -> list[str]:
    for name in DIRECTORIES:
        if any((model / name).glob("*.mod")):
            return [name]
    everywhere = _with_mechanisms(model)
    usual = [name for name in everywhere if re.sub("[-_]", "", name.lower()) in OTHER_NAMES]
    for candidates in (usual, everywhere):
        if len(candidates) == 1:
            return candidates
    return []


def _with_mechanisms(model: Path) -> list[str]:
    """Return all directories of a model that hold ``.mod`` files, relative to it."""
    found = []
    for folder, folders, names in os.walk(model):
        folders.sort()
        if any(name.endswith(".mod") for name in names):
            found.append(Path(folder).relative_to(model).as_posix())
    return found


def _normal(name: str) -> str:
    return Path(os.path.normpath(name)).as_posix()


def _refuse_twice(model: Path, directories: Iterable[str]) -> None:
    """Raise if two files would give the same mechanism, or the same compiled file."""
    names: dict[str, str] = {}
    for directory in directories:
        for file in sorted((model / directory).glob("*.mod")):
            shown = _normal(file.relative_to(model).as_posix())
            for what, name in (("file", file.name), ("mechanism", _defines(file))):
                if name is None:
                    continue
                other = names.setdefault(f"{what} {name}", shown)
                if other != shown:
                    same = f"the mechanism {name}" if what == "mechanism" else "the same file name"
                    raise ModelError(
                        f"{other!r} and {shown!r} both have {same}",
                        remedy="Leave one out with --exclude, or name only one directory with"
                        " --mechanisms",
                    )


def _defines(file: Path) -> str | None:
    """Return the name of the mechanism that a file defines, ``None`` if it has none."""
    try:
        text = file.read_text(errors="replace")
    except OSError:
        return None
    found = _NAME.search(_COMMENTS.sub("", text))
    return found[1] if found and found[1] != "nothing" else None
