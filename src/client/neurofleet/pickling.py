"""How functions and data are pickled for engines: own modules by name, the rest by value.

cloudpickle sends what ``__main__``, notebooks and closures have with its code. Here it learns what
plain Python has besides: locks, NEURON's interpreter, generators that are seeded for each item,
and globals that are used rarely and cannot be sent.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
import io
import random
import sys
import threading
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import cloudpickle

from neurofleet import source_scan
from neurofleet.engine import generators, own_modules
from neurofleet.source_scan import Asked

_BY_VALUE = ("__main__", "__mp_main__")
#: What a pickle refers to besides what its author uses.
_NOT_ITS_OWN = (*_BY_VALUE, "cloudpickle")


@dataclass
class Referred:
    """What was met while pickling.

    Attributes
    ----------
    modules : set of str
        To which the pickle refers by name.
    asked : list of Asked
        What the code in it imports.
    replaced : frozenset of int
        The ``id`` of functions that are not as their module's file has them: they go by value.
    generators : int
        How many were met.
    """

    modules: set[str] = field(default_factory=set)
    asked: list[Asked] = field(default_factory=list)
    replaced: frozenset[int] = frozenset()
    generators: int = 0


def dumps(value: Any, referred: Referred, *, per_item: bool = True) -> bytes:
    """Pickle a function or data.

    Parameters
    ----------
    value
    referred : Referred
        Filled.
    per_item : bool
        Whether generators get a stream for each item; else they travel as they are.

    Raises
    ------
    Exception
        Something that is not a mere global of a function cannot be pickled.
    """
    try:
        return _dumped(value, referred, per_item, None)
    except Exception:
        # Once more, with a look at each global: few functions need one that cannot be sent.
        return _dumped(value, referred, per_item, _Tried({}, set()))


def _dumped(value: Any, referred: Referred, per_item: bool, tried: _Tried | None) -> bytes:
    with io.BytesIO() as file:
        Pickler(file, referred, per_item, tried).dump(value)
        return file.getvalue()


@contextlib.contextmanager
def generators_undisturbed() -> Iterator[None]:
    """Keep the program's own random numbers: an object's ``__reduce__`` may draw."""
    state = random.getstate()
    legacy = getattr(sys.modules.get("numpy.random"), "mtrand", None)
    numpy_state = None if legacy is None else legacy._rand.get_state(legacy=False)
    try:
        yield
    finally:
        random.setstate(state)
        if legacy is not None:
            legacy._rand.set_state(numpy_state)


@dataclass
class _Tried:
    """Globals that were pickled on their own, to see whether they can be."""

    sendable: dict[int, tuple[Any, bool]]
    trying: set[int]


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles by value what engines cannot import.

    Parameters
    ----------
    file : binary file
    referred : Referred
    per_item : bool
    tried : _Tried or None
        Given if globals that cannot be pickled are to be replaced.
    """

    def __init__(
        self, file: Any, referred: Referred, per_item: bool, tried: _Tried | None = None
    ) -> None:
        super().__init__(file)
        self._referred, self._per_item, self._tried = referred, per_item, tried

    def reducer_override(self, obj: Any) -> Any:
        """Return how an object is pickled; called for all but plain data."""
        kind = type(obj)
        if kind is types.FunctionType:
            if not by_name(obj) or id(obj) in self._referred.replaced:
                return self._dynamic_function_reduce(obj)
        elif isinstance(obj, types.ModuleType) and by_name(obj):
            self.refer(obj.__name__)
        elif isinstance(obj, type) and not by_name(obj):
            return super().reducer_override(obj)
        else:
            special = _reduced(obj, kind, self)
            if special is not None:
                return special
        self.refer(getattr(obj if isinstance(obj, _NAMED) else kind, "__module__", None))
        if hasattr(obj, "__wrapped__") and by_name(obj):
            # What wraps a function without being one, as lru_cache does, may go by its name.
            self.refer(obj.__module__)
        return super().reducer_override(obj)

    def of_item(self, kind: str) -> Any:
        """Return how a generator is pickled, or None if as it is."""
        if not self._per_item:
            return None
        self._referred.generators += 1
        return generators.of_item, (kind, self._referred.generators)

    def refer(self, module: Any) -> None:
        """Note a module that is in the pickle by its name."""
        if isinstance(module, str) and not module.startswith(_NOT_ITS_OWN):
            self._referred.modules.add(module)

    def _dynamic_function_reduce(self, func: types.FunctionType) -> Any:
        make, new, (attributes, slots), *rest = super()._dynamic_function_reduce(func)
        home = _home(func)
        package = func.__globals__.get("__package__") or ""
        named = (name for part in source_scan.codes(func.__code__) for name in part.co_names)
        modules = [n for n in named if isinstance(func.__globals__.get(n), types.ModuleType)]
        self._referred.asked.append(source_scan.of_code(func.__code__, package, modules))
        if home is not None:
            # It shares the module's globals there, as it does here.
            self.refer(home)
            make, new = own_modules.function_of, (home, func.__code__, new[-1])
            slots["__globals__"] = {}
            slots["_cloudpickle_submodules"] = []
        elif self._tried is not None:
            name = func.__qualname__.replace("<locals>.", "")
            slots["__globals__"] = {
                key: self._or_not_sent(value, name, key)
                for key, value in slots["__globals__"].items()
            }
        return (make, new, (attributes, slots), *rest)

    def _or_not_sent(self, value: Any, function: str, name: str) -> Any:
        """Return a global, or what stands for one that cannot be sent."""
        if self._can_be_sent(value):
            return value
        kind = described(value)
        says = (
            f"{function} uses the global {name!r}, {kind}, which cannot be sent;"
            " open it inside the function"
        )
        return own_modules.NotSent(says)

    def _can_be_sent(self, value: Any) -> bool:
        tried = self._tried
        assert tried is not None
        if id(value) in tried.trying:
            return True  # a function that, in the end, uses itself
        if id(value) not in tried.sendable:
            tried.trying.add(id(value))
            try:
                _dumped(value, Referred(replaced=self._referred.replaced), self._per_item, tried)
                can = True
            except Exception:
                can = False
            tried.trying.discard(id(value))
            tried.sendable[id(value)] = (value, can)
        return tried.sendable[id(value)][1]


def by_name(value: Any) -> bool:
    """Tell whether a function, class or module is found on an engine by its name."""
    if isinstance(value, types.ModuleType):
        return sys.modules.get(value.__name__) is value and _is_importable(value.__name__)
    name = getattr(value, "__module__", None)
    if name is None:
        return not isinstance(value, types.FunctionType)
    if not _is_importable(name):
        return False
    found: Any = sys.modules[name]
    for part in getattr(value, "__qualname__", " ").split("."):
        found = getattr(found, part, None)
    return found is value or name == "builtins"


def _is_importable(name: str) -> bool:
    """Tell whether a module is not the script, and has a file or is built in."""
    module = sys.modules.get(name)
    if module is None or name in _BY_VALUE:
        return False
    registered = cloudpickle.list_registry_pickle_by_value()
    if any(name == one or name.startswith(f"{one}.") for one in registered):
        return False
    spec = getattr(module, "__spec__", None)
    return spec is not None or getattr(module, "__file__", None) is not None


def _home(function: types.FunctionType) -> str | None:
    """Return the module whose globals a function has, if engines can import it."""
    name = function.__globals__.get("__name__")
    if not isinstance(name, str) or not _is_importable(name):
        return None
    return name if vars(sys.modules[name]) is function.__globals__ else None


def _reduced(obj: Any, kind: type, pickler: Pickler) -> Any:
    """Return how something is pickled that pickle refuses or should not copy; None for others."""
    if kind in _FRESH:
        return _FRESH[kind], ()
    if kind is random.Random:
        return (
            (getattr, (random, "_inst"))
            if obj is random._inst
            else pickler.of_item("random.Random")
        )
    module = kind.__module__ or ""
    if module.startswith("numpy.random"):
        pickler.refer("numpy")
        return _of_numpy(obj, kind, pickler)
    if module == "hoc" and obj is getattr(sys.modules.get("neuron"), "h", None):
        pickler.refer("neuron")
        return own_modules.attribute_of, ("neuron", "h")
    if kind is functools._lru_cache_wrapper and not by_name(obj):
        return own_modules.cached, (obj.__wrapped__, obj.cache_parameters())
    if kind is contextvars.ContextVar:
        return contextvars.ContextVar, (obj.name,)
    for name in ("stdout", "stderr"):
        if obj is getattr(sys, name):
            return getattr, (sys, name)
    return None


def _of_numpy(obj: Any, kind: type, pickler: Pickler) -> Any:
    numpy_random = importlib.import_module("numpy.random")
    if obj is numpy_random.mtrand._rand:
        return own_modules.attribute_of, ("numpy.random.mtrand", "_rand")
    if kind is numpy_random.RandomState:
        return pickler.of_item("numpy.random.RandomState")
    if kind is numpy_random.Generator:
        return kind, (obj.bit_generator,)
    if (
        isinstance(obj, numpy_random.BitGenerator)
        and getattr(numpy_random, kind.__name__, 0) is kind
    ):
        return pickler.of_item(f"numpy.random.{kind.__name__}")
    return None


def described(value: Any) -> str:
    """Return what a value is, with an article."""
    kind = type(value)
    module = (
        "" if kind.__module__ in ("builtins", *_BY_VALUE) else f"{kind.__module__.lstrip('_')}."
    )
    name = f"{module}{kind.__qualname__}"
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


_FRESH: dict[type, Any] = {
    type(threading.Lock()): threading.Lock,
    type(threading.RLock()): threading.RLock,
    threading.local: threading.local,
}
#: What has a module itself; of others the class has it.
_NAMED = (types.FunctionType, types.BuiltinFunctionType, type)


def stable_reduce(value: Any) -> Any:
    """Return what is pickled of an object, for its hash."""
    special = _reduced(value, type(value), Pickler(io.BytesIO(), Referred(), per_item=True))
    if special is not None:
        return special
    reducer = cloudpickle.Pickler.dispatch_table.get(type(value))
    return reducer(value) if reducer is not None else value.__reduce_ex__(4)


def can_be_sent(value: Any) -> bool:
    """Tell whether a value can be pickled as it would be sent."""
    try:
        dumps(value, Referred())
    except Exception:
        return False
    return True
