"""What a program has set in its own modules since they were imported (``config.DT = 0.1``).

An engine imports the modules anew, so what import makes is there; what was set afterwards has to
be sent. Whether something was set is seen from the source: a name that has another value than the
one that is written there, that is not written there, or that some code of the person's assigns to.
"""

from __future__ import annotations

import abc
import functools
import logging
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neurofleet import source_scan
from neurofleet.engine import generators
from neurofleet.engine.job_content import Source
from neurofleet.engine.own_modules import Attributes, NotSent
from neurofleet.own_code import own_modules, own_texts
from neurofleet.pickling import can_be_sent, described
from neurofleet.written import Written, codes_of, done_in, read_source


def changed(sources: Mapping[str, Source]) -> tuple[dict[str, dict[str, Any]], frozenset[int]]:
    """Return what was set since import, and the functions that are not as their files have them.

    Parameters
    ----------
    sources : mapping of str to Source
        Own modules; those that are not loaded are as import will make them.

    Returns
    -------
    dict
        ``{module: {name: value}}``; a name in a class has the class's name before it.
    frozenset of int
        The ``id`` of each such function.
    """
    found: dict[str, dict[str, Any]] = {}
    replaced: set[int] = set()
    loaded = {
        name: s
        for name, s in sources.items()
        if isinstance(sys.modules.get(name), types.ModuleType)
    }
    if not loaded:
        return {}, frozenset()
    elsewhere = _Elsewhere.of(sources)
    for name, source in loaded.items():
        look = _Look(name, source, elsewhere)
        found[name] = dict(look.changes(vars(sys.modules[name]), read_source(source.text), ""))
        replaced |= look.replaced
    for name, source in loaded.items():
        package = _package(name, source)
        for alias, (origin, original) in read_source(source.text).imported.items():
            # Which of the two was earlier, the import or the change, is not known there.
            if original in found.get(_absolute(origin, package), {}):
                live = vars(sys.modules[name])
                if alias in live:
                    found[name].setdefault(alias, live[alias])
    return {name: here for name, here in found.items() if here}, frozenset(replaced)


def _package(module: str, source: Source) -> str:
    return module if source.package else module.rpartition(".")[0]


def _absolute(module: str, package: str) -> str:
    level = len(module) - len(module.lstrip("."))
    return source_scan.absolute(module.lstrip("."), level, package)


class _Look:
    """A look at one module."""

    def __init__(self, module: str, source: Source, elsewhere: _Elsewhere) -> None:
        self._module, self._elsewhere = module, elsewhere
        self._package = _package(module, source)
        self._codes = codes_of(source.text, source.filename)
        self.replaced: set[int] = set()

    def changes(
        self, live: Mapping[str, Any], written: Written, prefix: str
    ) -> Iterator[tuple[str, Any]]:
        """Yield names and values that import would not make so."""
        for name, value in list(live.items()):
            if name.startswith("__") and name.endswith("__"):
                continue
            whole = f"{prefix}{name}"
            if not written.binds(name):
                if not written.decorated and not self._is_explained(name, value, written, prefix):
                    yield from self._sent(whole, value)
            elif name in written.classes:
                if not isinstance(value, type) or value.__module__ != self._module:
                    yield from self._sent(whole, value)
                elif type(value) in (type, abc.ABCMeta) and not issubclass(value, tuple):
                    yield from self.changes(vars(value), written.classes[name], f"{whole}.")
            elif name in written.defined:
                if not written.decorated and not self._is_as_defined(value, whole):
                    yield from self._sent(whole, value)
            elif name in written.computed:
                if self._may_be_changed(name, value, written):
                    yield from self._sent(whole, value, computed=True)
            elif name in written.literals and not _is_aswritten(value, written.literals[name]):
                yield from self._sent(whole, value)

    def _may_be_changed(self, name: str, value: Any, written: Written) -> bool:
        if generators.is_generator(value):
            return False  # it is seeded there
        if name in written.assigned or name in self._elsewhere.assigned:
            return True
        if isinstance(value, _BY_DEFINITION):
            return False
        if self._elsewhere.anything:
            return True
        return name in self._elsewhere.used and not isinstance(value, _IMMUTABLE)

    def _is_as_defined(self, value: Any, qualname: str) -> bool:
        if isinstance(value, staticmethod | classmethod):
            value = value.__func__
        if not isinstance(value, types.FunctionType) or value.__module__ != self._module:
            return False
        if value.__code__ in self._codes.get(value.__qualname__, ()):
            return True
        if value.__qualname__ == qualname:
            self.replaced.add(id(value))
        return False

    def _is_explained(self, name: str, value: Any, written: Written, prefix: str) -> bool:
        """Tell whether import makes a name that the source does not write out."""
        may_be = name in self._elsewhere.assigned or self._elsewhere.anything
        if prefix:
            return not (may_be and _is_data(value))
        if name in written.assigned:
            return False
        if isinstance(value, types.ModuleType) and value.__name__ == f"{self._module}.{name}":
            return True  # a package gets its modules as attributes when they are imported
        return self._is_of_a_star(name, value, written)

    def _is_of_a_star(self, name: str, value: Any, written: Written) -> bool:
        """Tell whether ``from module import *`` made a name, and nobody has set it since."""
        for star in written.stars:
            module = sys.modules.get(_absolute(star, self._package))
            if getattr(module, name, _NOWHERE) is value and name not in self._elsewhere.assigned:
                return True
        return False

    def _sent(self, name: str, value: Any, *, computed: bool = False) -> Iterator[tuple[str, Any]]:
        """Yield a value if it can be sent; what import makes is used there if it cannot."""
        if can_be_sent(value):
            yield name, value
        elif isinstance(inner := getattr(value, "__dict__", None), dict):
            yield name, Attributes({k: one for k, one in inner.items() if can_be_sent(one)})
        elif not computed and not isinstance(value, dict | list | set):
            says = f"{self._module}.{name} is {described(value)}, which cannot be sent"
            yield name, NotSent(f"{says}; open it inside the function")


#: What a definition makes; whoever sets one in another way does it by its name.
_BY_DEFINITION = (
    types.FunctionType,
    types.ModuleType,
    type,
    property,
    staticmethod,
    classmethod,
    functools.cached_property,
    type(functools.lru_cache(len)),
    logging.Logger,
    typing.TypeVar,
)
_NOWHERE = object()
#: In place of a class's value that its ``__slots__`` have taken.
_DESCRIPTORS = (types.MemberDescriptorType, types.GetSetDescriptorType)
_IMMUTABLE = (bool, int, float, complex, str, bytes, type(None), Path)


def _is_data(value: Any) -> bool:
    kinds = (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset)
    return isinstance(value, kinds) or type(value).__module__ == "numpy"


def _is_aswritten(value: Any, literals: list[Any]) -> bool:
    return isinstance(value, _DESCRIPTORS) or any(_equal(value, one) for one in literals)


def _equal(one: Any, other: Any) -> bool:
    """Compare a value with one that is written in a source; kinds count, and NaN is NaN."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict):
        same = list(one) == list(other)
        return same and all(_equal(value, other[key]) for key, value in one.items())
    return bool(one == other) or (one != one and other != other)


@dataclass
class _Elsewhere:
    """What the person's code does to names that may be a module's.

    Attributes
    ----------
    assigned : set of str
        ``something.name = ...``
    used : set of str
        ``name.method()``, ``name[...] = ...``, ``name.part = ...``: a mutable object may change.
    anything : bool
        Whether names are made up when it runs, or its source is not known.
    """

    assigned: set[str] = field(default_factory=set)
    used: set[str] = field(default_factory=set)
    anything: bool = False

    @classmethod
    def of(cls, sources: Mapping[str, Source]) -> _Elsewhere:
        """Look at all own code that is loaded, the program's included."""
        found = cls()
        texts = _of_main()
        found.anything = not texts
        texts += [source.text for source in sources.values()]
        texts += own_texts(set(own_modules()) - set(sources))
        for text in texts:
            try:
                assigned, used, anything = done_in(text)
            except (SyntaxError, ValueError):
                continue  # a notebook's cell with commands of its own
            found.assigned |= assigned
            found.used |= used
            found.anything = found.anything or anything
        return found


def _of_main() -> list[bytes]:
    """Return the source of the program, a script's file or a notebook's cells, if it is known."""
    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    if isinstance(file, str):
        try:
            return [Path(file).read_bytes()]
        except OSError:
            return []
    return [cell.encode() for cell in getattr(main, "In", None) or () if isinstance(cell, str)]
