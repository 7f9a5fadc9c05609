"""Which part of a function or its data cannot be sent, in the person's own names."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import Any

from neurofleet.engine.own_modules import WithData
from neurofleet.pickling import can_be_sent, described

#: How deep, and how many parts of one thing, are looked at [count].
DEEPEST, MOST = 8, 1_000
#: Ours, around the person's function.
_OURS = "neurofleet."


def name_of(function: Any) -> str:
    """Return a function's name, as its author knows it."""
    function = inner(function)
    if isinstance(function, functools.partial):
        return name_of(function.func)
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return str(name).replace("<locals>.", "")


def inner(function: Any) -> Any:
    """Return the person's function, without what this program has put around it."""
    while type(function).__module__.startswith(_OURS) and hasattr(function, "function"):
        function = function.function
    return function


def culprit(value: Any, path: str = "") -> tuple[str, str]:
    """Return the innermost part that cannot be sent, as its path and what it is.

    Parameters
    ----------
    value
        Cannot be pickled.
    path : str
        How the person calls it.
    """
    seen: set[int] = set()
    for _ in range(DEEPEST):
        seen.add(id(value))
        for inner, part in _parts(value, path):
            if id(part) not in seen and not can_be_sent(part):
                value, path = part, inner
                break
        else:
            break
    return path, described(value)


def _parts(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the parts of something with their paths."""
    if isinstance(value, WithData):
        yield path, value.function
        for key, one in value.shared.items():
            yield f"shared[{key!r}]", one
    elif inner(value) is not value:
        yield path, inner(value)
    elif isinstance(value, types.FunctionType):
        yield from _of_function(value)
    elif isinstance(value, functools.partial):
        yield path, value.func
        yield from ((f"argument {number}", one) for number, one in enumerate(value.args, 1))
        yield from ((f"argument {key!r}", one) for key, one in value.keywords.items())
    elif isinstance(value, types.MethodType):
        yield "its object", value.__self__
    elif isinstance(value, dict):
        for key, one in list(value.items())[:MOST]:
            yield f"{path}[{key!r}]", one
    elif isinstance(value, list | tuple | set | frozenset):
        for number, one in enumerate(list(value)[:MOST]):
            yield f"{path}[{number}]", one
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        for key, one in list(vars(value).items())[:MOST]:
            yield f"{path}.{key}" if path else f"its attribute {key!r}", one


def _of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    code = function.__code__
    defaults = function.__defaults__ or ()
    names = code.co_varnames[: code.co_argcount]
    for name, one in zip(names[len(names) - len(defaults) :], defaults, strict=True):
        yield f"the default of its argument {name!r}", one
    for name, one in (function.__kwdefaults__ or {}).items():
        yield f"the default of its argument {name!r}", one
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"its variable {name!r}", cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    for name, one in vars(function).items():
        yield f"its attribute {name!r}", one
