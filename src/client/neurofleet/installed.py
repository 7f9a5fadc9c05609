"""Which modules are installed, and which are a person's own files.

What is installed is on engines too, or can be installed there: it travels as a name. A person's
own modules are sent. Where a module was found decides, not what it is called.
"""

from __future__ import annotations

import enum
import functools
import os
import site
import sys
import sysconfig
from pathlib import Path

#: Directories of this name hold what an installer has put there, in whichever environment.
_PACKAGES = ("site-packages", "dist-packages")
#: This package is on every engine, also when it is installed as editable.
_OURS = "neurofleet"


class Kind(enum.Enum):
    """How a module comes to an engine."""

    INSTALLED = "by its name"
    LIBRARY = "by its name, but its files may change without another version"
    OWN = "with its source"


def kind_of(name: str, file: str | None) -> Kind:
    """Tell how a module comes to an engine.

    Parameters
    ----------
    name : str
        Under which it is imported.
    file : str or None
        Its file; ``None`` for one that is built in.
    """
    if file is None or not file.endswith(".py") or name.partition(".")[0] == _OURS:
        return Kind.INSTALLED
    if "/site-packages/" in file or file.startswith(_installers_places()):
        return Kind.INSTALLED  # most are, and need no closer look
    return _kind_in(_entry(name, file), name.partition(".")[0], *_places_of_the_person())


def _entry(name: str, file: str) -> str:
    """Return the directory on Python's path through which a module was found."""
    path = Path(file)
    parts = name.split(".")
    if path.stem == "__init__":
        path = path.parent
    for part in reversed(parts):
        if path.with_suffix("").name != part:
            return str(Path(file).parent)
        path = path.parent
    return str(path)


def _places_of_the_person() -> tuple[str, str]:
    """Return the working directory and that of the script, as Python puts them on its path."""
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    try:
        here = str(Path.cwd())
    except OSError:  # it was removed
        here = ""
    return here, _directory(main) if main else here


@functools.lru_cache(maxsize=8)
def _directory(file: str) -> str:
    return str(Path(os.path.realpath(file)).parent)


@functools.lru_cache(maxsize=4096)
def _kind_in(entry: str, top: str, here: str, script: str) -> Kind:
    real = os.path.realpath(entry)
    for place in (entry, real):
        if any(part in _PACKAGES for part in Path(place).parts):
            return Kind.INSTALLED
        if f"{place}{os.sep}".startswith(_installers_places()):
            return Kind.INSTALLED
    if top in _recorded(real):
        return Kind.INSTALLED
    if real in {os.path.realpath(here), os.path.realpath(script)}:
        return Kind.OWN
    return Kind.LIBRARY if real in _python_path() else Kind.OWN


@functools.cache
def _installers_places() -> tuple[str, ...]:
    """Return the standard library and where installers put packages, with a slash at the end."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    places = {sysconfig.get_path(name) for name in names}
    places.update(site.getsitepackages(), [site.getusersitepackages()])
    places |= {os.path.realpath(place) for place in places}
    return tuple(f"{place}{os.sep}" for place in sorted(places))


@functools.cache
def _recorded(directory: str) -> frozenset[str]:
    """Return what an installer says that it has put into a directory (``pip install --target``)."""
    tops = set()
    try:
        records = list(Path(directory).glob("*.dist-info/RECORD"))
        for record in records:
            for line in record.read_text(errors="replace").splitlines():
                first = line.partition(",")[0].split("/")[0]
                if not first.endswith((".dist-info", ".data")):
                    tops.add(first.removesuffix(".py"))
    except OSError:
        return frozenset()
    return frozenset(tops)


def _python_path() -> frozenset[str]:
    value = os.environ.get("PYTHONPATH", "")
    return frozenset(os.path.realpath(entry) for entry in value.split(os.pathsep) if entry)
