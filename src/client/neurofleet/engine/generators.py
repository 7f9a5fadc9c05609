"""Random generators that depend on the item, and on nothing that ran before it.

``begin`` seeds Python's and numpy's generators from a run's seed and an item's number, and so
every generator of a person's own code: those that travelled (``of_item`` makes them where they
are unpickled) and those that an own module made when it was imported (``adopt``). Each has a
stream of its own.
"""

from __future__ import annotations

import hashlib
import importlib
import random
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

#: Objects of a module that are looked at for generators, at most [count].
LOOKED_AT = 20_000
#: A longer container of a module is data, and is not looked through [count].
LONGEST = 1_000


@dataclass(frozen=True)
class _Seeded:
    """A generator, and the name of its stream."""

    generator: Any
    stream: str


#: Stands for an item's number while own modules are imported.
_IMPORT = -1
_item: tuple[int, int] = (0, _IMPORT)
_seeded: list[_Seeded] = []
#: What ``begin`` has seeded.
_begun: list[_Seeded] = []


def begin(seed: int, number: int) -> None:
    """Seed all generators for an item; called when the function is loaded, before its call.

    Parameters
    ----------
    seed : int
        The run's.
    number : int
        The item's, from 0.
    """
    global _item
    _item = (seed, number)
    _begun[:] = [_Seeded(random._inst, "random")]
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        _begun.append(_Seeded(numpy_random.mtrand._rand, "numpy.random"))
    _begun.extend(_seeded)
    for one in _begun:
        _reseed(one.generator, one.stream)


def begin_loading() -> None:
    """Seed all generators for what own modules draw when they are imported: once for all items."""
    begin(0, _IMPORT)


def drew() -> bool:
    """Tell whether any of the generators was used since ``begin``; asked once, after the call."""
    # Comparing their next number is much cheaper than comparing states, of 624 numbers.
    return any(_next(one.generator) != _first(one) for one in _begun)


def forget() -> None:
    """Let go of the generators of own code, which is about to be loaded anew."""
    _seeded.clear()
    _begun.clear()


def of_item(kind: str, ordinal: int) -> Any:
    """Return a generator with a stream of its own; called where one is unpickled.

    Parameters
    ----------
    kind : str
        ``random.Random``, ``numpy.random.RandomState``, or the name of a class of
        ``numpy.random``'s bit generators.
    ordinal : int
        Which of the job's generators it is.
    """
    if kind == "random.Random":
        generator: Any = random.Random(0)
    else:
        numpy_random = importlib.import_module("numpy.random")
        generator = getattr(numpy_random, kind.rpartition(".")[2])(0)
    _add(generator, f"sent {ordinal}")
    return generator


def adopt(module: types.ModuleType) -> None:
    """Seed the generators that an own module has made while it was imported.

    Parameters
    ----------
    module : module
        Looked through with its classes, instances, containers and functions' defaults.
    """
    known = {id(one.generator) for one in _seeded}
    for where, generator in _generators(module):
        if id(generator) not in known:
            known.add(id(generator))
            _add(generator, f"{module.__name__} {where}")


def _add(generator: Any, stream: str) -> None:
    one = _Seeded(generator, stream)
    _seeded.append(one)
    _begun.append(one)
    _reseed(generator, stream)


def _entropy(stream: str) -> bytes:
    name = repr((*_item, stream)).encode()
    return hashlib.blake2b(name, digest_size=16).digest()


def _reseed(generator: Any, stream: str) -> None:
    entropy = _entropy(stream)
    if isinstance(generator, random.Random):
        generator.seed(entropy)
        return
    numpy_random = importlib.import_module("numpy.random")
    words = memoryview(entropy).cast("I").tolist()
    bits = getattr(generator, "_bit_generator", generator)
    if type(bits) is numpy_random.MT19937:
        if bits is generator:
            generator = numpy_random.RandomState(bits)
        generator.seed(words)
    else:
        bits.state = type(bits)(numpy_random.SeedSequence(words)).state


def _next(generator: Any) -> Any:
    if isinstance(generator, random.Random):
        return generator.random()
    return getattr(generator, "_bit_generator", generator).random_raw()


def _first(one: _Seeded) -> Any:
    """Return the first number of a generator's stream."""
    if isinstance(one.generator, random.Random):
        return random.Random(_entropy(one.stream)).random()
    bits = getattr(one.generator, "_bit_generator", one.generator)
    kind = type(bits)
    if kind not in _spare:
        _spare[kind] = kind(0)
    _reseed(_spare[kind], one.stream)
    return _spare[kind].random_raw()


_spare: dict[type, Any] = {}


def _generators(module: types.ModuleType) -> Iterator[tuple[str, Any]]:
    """Yield a module's own generators with where they are."""
    seen: set[int] = set()
    # Not ``__builtins__`` and the like, which every module has.
    waiting = [(name, value) for name, value in vars(module).items() if name[:2] != "__"]
    waiting.reverse()
    while waiting and len(seen) < LOOKED_AT:
        where, value = waiting.pop()
        if isinstance(value, _PLAIN) or id(value) in seen:
            continue
        seen.add(id(value))
        if is_generator(value):
            yield where, getattr(value, "bit_generator", value)
            continue
        parts = list(_parts(value, module.__name__))
        waiting.extend((f"{where}.{name}", part) for name, part in reversed(parts))


def is_generator(value: Any) -> bool:
    """Tell whether something can be seeded; the ones of ``random`` and numpy are seeded anyway."""
    if type(value) is random.Random:
        return value is not random._inst
    kind = type(value)
    if not (kind.__module__ or "").startswith("numpy.random"):
        return False
    numpy_random = importlib.import_module("numpy.random")
    kinds = (numpy_random.Generator, numpy_random.RandomState, numpy_random.BitGenerator)
    return isinstance(value, kinds) and value is not numpy_random.mtrand._rand


def _parts(value: Any, module: str) -> Iterator[tuple[Any, Any]]:
    """Yield what belongs to a value of a module, not what it merely refers to."""
    if isinstance(value, dict):
        if len(value) <= LONGEST:
            yield from value.items()
    elif isinstance(value, list | tuple):
        if len(value) <= LONGEST:
            yield from enumerate(value)
    elif isinstance(value, types.FunctionType):
        if value.__module__ == module:
            yield from enumerate(value.__defaults__ or ())
            yield from (value.__kwdefaults__ or {}).items()
            for name, cell in zip(
                value.__code__.co_freevars, value.__closure__ or (), strict=False
            ):
                try:
                    yield name, cell.cell_contents
                except ValueError:  # not assigned yet
                    continue
    elif isinstance(value, type):
        if value.__module__ == module:
            yield from list(vars(value).items())
    elif type(value).__module__ == module and hasattr(value, "__dict__"):
        yield from list(vars(value).items())


_PLAIN = (str, bytes, int, float, complex, bool, type(None), types.ModuleType)
