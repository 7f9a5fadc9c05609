"""What a function can reach of a person's own modules, and which installed ones.

Own modules are found as the interpreter would find them, from the imports in their sources, those
inside functions too, and without running anything.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from neurofleet import source_scan
from neurofleet.engine.job_content import Source
from neurofleet.errors import UsageError
from neurofleet.installed import Kind, kind_of
from neurofleet.source_scan import Asked

#: Modules of a package that are taken along because any of them may be asked for [count].
MOST_FORESEEN = 500
#: Installed packages that keep nothing between two calls on which a result depends.
WITHOUT_STATE = frozenset(
    {"joblib", "neurofleet", "numpy", "pandas", "scipy", "sklearn", "threadpoolctl"}
)
#: Those of them that take long to import, and do the same wherever and whenever they are.
IMPORTED_BEFOREHAND = WITHOUT_STATE - {"neurofleet"}
#: Distributions whose version decides numbers, when another one uses them.
DECIDE_NUMBERS = frozenset(
    {
        "numpy", "scipy", "pandas", "scikit-learn", "joblib", "neuron", "bluepyopt", "efel", "deap",
        "numba", "llvmlite", "arbor", "nest-simulator", "brian2", "torch", "jax", "jaxlib",
        "tensorflow", "xarray", "statsmodels", "elephant", "neo", "quantities", "sympy",
        "netpyne", "lfpykit", "lfpy", "xgboost", "lightgbm", "bluepyefe", "pyneuroml",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Reach:
    """What a function can reach.

    Attributes
    ----------
    sources : dict of str to Source
        Own modules, which are sent.
    libraries : dict of str to Source
        Modules on ``PYTHONPATH``, which are not sent, but have no version either.
    installed : frozenset of str
        The installed top-level modules.
    stateful : bool
        Whether something of it keeps a state that a later call in the same process would see.
    asked : frozenset of str
        What is asked for of ``IMPORTED_BEFOREHAND``; some of it may be no modules.
    """

    sources: dict[str, Source]
    libraries: dict[str, Source]
    installed: frozenset[str]
    stateful: bool
    asked: frozenset[str] = frozenset()

    @property
    def beforehand(self) -> tuple[str, ...]:
        """Modules that may be imported before the function asks for them, for all calls at once.

        None if it may set an environment variable first, on which their import depends.
        """
        return () if self.stateful else tuple(sorted(self.asked))

    @property
    def own_process(self) -> bool:
        """Whether each call needs a process of its own."""
        known = WITHOUT_STATE | sys.stdlib_module_names
        return (
            self.stateful
            or bool(self.libraries)
            or not self.installed <= known
            or not self.installed.isdisjoint(source_scan.STATEFUL_MODULES)
        )

    def versions(self) -> dict[str, str]:
        """Return the versions of the distributions that results may depend on."""
        return versions_of(self.installed)


@dataclass(frozen=True)
class _Found:
    """Where a module is."""

    file: str | None
    places: tuple[str, ...] | None = None
    loader: Any = field(default=None, repr=False)


@dataclass
class _Walk:
    """A walk along imports."""

    sources: dict[str, Source] = field(default_factory=dict)
    libraries: dict[str, Source] = field(default_factory=dict)
    installed: set[str] = field(default_factory=set)
    stateful: bool = False
    asked: set[str] = field(default_factory=set)
    _seen: set[str] = field(default_factory=set)
    _waiting: list[str] = field(default_factory=list)

    def ask(self, asked: Asked, asker: str = "") -> None:
        """Note what some code asks for."""
        self.stateful = self.stateful or asked.stateful
        self._waiting += sorted(asked.modules)
        for star in sorted(asked.stars):
            self._waiting += _all_of(star)
        for package in sorted(asked.below):
            self._waiting += _modules_below(package)
        if asked.any_module:
            self.stateful = True
            self._waiting += own_modules()
            top = asker.partition(".")[0]
            self._waiting += _modules_below(top) if "." in asker else _siblings(asker)

    def go(self) -> None:
        """Follow all that was noted."""
        while self._waiting:
            self._name(self._waiting.pop())

    def _name(self, name: str) -> None:
        parts = name.split(".")
        if parts[0] in IMPORTED_BEFOREHAND:
            self.asked.add(name)
        for end in range(1, len(parts) + 1):
            part = ".".join(parts[:end])
            if part in self._seen:
                if part in self.installed:
                    return
                continue
            found = find(part)
            if found is None:
                return
            self._seen.add(part)
            if not self._take(part, found):
                self.installed.add(part.partition(".")[0])
                self._seen.add(part.partition(".")[0])
                return

    def _take(self, name: str, found: _Found) -> bool:
        """Take a module of the person's own along; return False for an installed one."""
        if found.file is None and found.places is not None:
            return True  # a package that is a mere directory
        kind = kind_of(name, found.file)
        if kind is Kind.INSTALLED or found.file is None:
            return False
        package = Path(found.file).name == "__init__.py"
        text = _text(name, found)
        if text is None:
            return False
        into = self.sources if kind is Kind.OWN else self.libraries
        into[name] = Source(found.file, text, package)
        try:
            self.ask(
                source_scan.of_source(text, name if package else name.rpartition(".")[0]), name
            )
        except (SyntaxError, ValueError) as error:
            self._broken(name, found.file, error)
        return True

    def _broken(self, name: str, file: str, error: Exception) -> None:
        if name in sys.modules:
            line = getattr(error, "lineno", None)
            where = f"{file}, line {line}" if line else file
            raise UsageError(
                f"{name!r} was imported, but its file is no Python now ({where}: {error.args[0]})",
                remedy="Mend the file, and start the program again",
            ) from error


def reach(names: Iterable[str], asked: Iterable[Asked] = ()) -> Reach:
    """Return what can be reached from some modules and some code.

    Parameters
    ----------
    names : iterable of str
        Modules that are referred to by their names.
    asked : iterable of Asked
        Of code that is in no module.

    Raises
    ------
    UsageError
        The file of an own module that is loaded cannot be read as Python any more.
    """
    walk = _Walk()
    walk.ask(Asked(modules=frozenset(names) - {"__main__", "__mp_main__"}))
    for one in asked:
        walk.ask(one)
    walk.go()
    return Reach(
        dict(sorted(walk.sources.items())),
        dict(sorted(walk.libraries.items())),
        frozenset(walk.installed),
        walk.stateful,
        frozenset(one for one in walk.asked if one.partition(".")[0] in walk.installed),
    )


def versions_of(modules: Iterable[str]) -> dict[str, str]:
    """Return the versions of installed distributions, and of what decides numbers in them.

    Parameters
    ----------
    modules : iterable of str
        Top-level modules; the interpreter's own and those that are not installed have none.

    Returns
    -------
    dict of str to str
        By the distribution's name.
    """
    tops = sorted(set(modules) - sys.stdlib_module_names - {"neurofleet"})
    names = {name for top in tops for name in _distributions(top)}
    for name in list(names):
        names |= _required(name) & DECIDE_NUMBERS
    return {name: _version(name) for name in sorted(names)}


def find(name: str) -> _Found | None:
    """Find a module as the interpreter would, without running anything.

    Parameters
    ----------
    name : str
        Its full name; packages above it are found in the same way.
    """
    module = sys.modules.get(name)
    if module is not None:
        return _loaded(module)
    places = None
    if "." in name:
        above = find(name.rpartition(".")[0])
        if above is None or above.places is None:
            return None
        places = list(above.places)
    for finder in sys.meta_path:
        with contextlib.suppress(Exception):
            spec = finder.find_spec(name, places)
            if spec is not None:
                file = spec.origin if spec.has_location else None
                below = spec.submodule_search_locations
                return _Found(file, None if below is None else tuple(below), spec.loader)
    return None


def _loaded(module: ModuleType) -> _Found:
    places = getattr(module, "__path__", None)
    try:
        below = None if places is None else tuple(places)
    except Exception:  # a module that makes its attributes up
        below = None
    file = getattr(module, "__file__", None)
    return _Found(file if isinstance(file, str) else None, below, getattr(module, "__loader__", 0))


def _text(name: str, found: _Found) -> bytes | None:
    """Return a module's source; None if it has none."""
    with contextlib.suppress(OSError):
        return Path(str(found.file)).read_bytes()
    with contextlib.suppress(Exception):
        return str(found.loader.get_source(name)).encode()
    return None


def own_modules() -> list[str]:
    """Return the names of the loaded modules that are a person's own files."""
    return [name for name, module in list(sys.modules.items()) if is_own(name, module)]


def own_texts(names: Iterable[str]) -> list[bytes]:
    """Return the sources of loaded own modules."""
    found = [(name, find(name)) for name in names]
    texts = [_text(name, one) for name, one in found if one is not None]
    return [text for text in texts if text is not None]


def is_own(name: str, module: Any) -> bool:
    """Tell whether a loaded module is a person's own file, which is sent."""
    file = getattr(module, "__file__", None)
    if name in {"__main__", "__mp_main__"} or not isinstance(file, str):
        return False
    return kind_of(name, file) is Kind.OWN


def _all_of(name: str) -> list[str]:
    """Return what ``from name import *`` may import."""
    module = sys.modules.get(name)
    names = getattr(module, "__all__", None)
    if isinstance(names, Sequence):
        return [f"{name}.{one}" for one in names if isinstance(one, str)]
    found = find(name)
    if found is None or found.file is None or kind_of(name, found.file) is Kind.INSTALLED:
        return []
    return _modules_below(name)


def _modules_below(name: str) -> list[str]:
    """Return the modules of an own package."""
    found = find(name)
    if found is None or found.places is None:
        return [name]
    if found.file is not None and kind_of(name, found.file) is Kind.INSTALLED:
        return [name]
    below = [name]
    for place in found.places:
        below += (
            ".".join([name, *file.relative_to(place).with_suffix("").parts])
            for file in _python_files(Path(place), "**/*.py")
        )
    return [one.removesuffix(".__init__") for one in below]


def _siblings(name: str) -> list[str]:
    """Return the modules in the directory of an own one."""
    found = find(name) if name else None
    if found is None or found.file is None:
        return []
    return [file.stem for file in _python_files(Path(found.file).parent, "*.py")]


def _python_files(directory: Path, pattern: str) -> Iterator[Path]:
    files = (
        file
        for file in sorted(directory.glob(pattern))
        if all(part.isidentifier() for part in file.relative_to(directory).with_suffix("").parts)
    )
    for count, file in enumerate(files):
        if count >= MOST_FORESEEN:
            return
        yield file


@functools.cache
def _distributions(top: str) -> tuple[str, ...]:
    """Return the distributions that an installed top-level module belongs to."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        distribution = importlib.metadata.distribution(_OTHER_NAMES.get(top, top))
        if Path(str(distribution.locate_file(top))).exists():
            return (_plain(distribution.metadata["Name"]),)
    return tuple(sorted({_plain(name) for name in _packages().get(top, ())}))


@functools.cache
def _version(name: str) -> str:
    return importlib.metadata.version(name)


@functools.cache
def _packages() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())  # looks at every installed file


@functools.cache
def _required(name: str) -> frozenset[str]:
    """Return the distributions that one needs, and those that they need."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        try:
            wanted = importlib.metadata.requires(waiting.pop()) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for line in wanted:
            match = re.match(r"[A-Za-z0-9._-]+", line)
            if match is None or "extra ==" in line:
                continue
            needed = _plain(match[0])
            if needed not in found and _is_installed(needed):
                found.add(needed)
                waiting.append(needed)
    return frozenset(found)


@functools.cache
def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


#: So that the most frequent ones need no look at all that is installed.
_OTHER_NAMES = {"sklearn": "scikit-learn", "bluepyopt": "bluepyopt", "yaml": "PyYAML"}
