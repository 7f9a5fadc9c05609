"""A hash of a value or a function that is the same from run to run.

Pickles are not: sets have another order in every process, classes of notebooks get another name,
and a text that is met twice is written once or twice. Here only content counts: the code of
functions without their lines, classes by their methods, sets in the order of their elements.
"""

from __future__ import annotations

import dis
import hashlib
import types
from collections.abc import Callable, Iterable
from typing import Any

from neurofleet.source_scan import codes

_NUMBERS = (int, float, bool, complex, type(None))


def stable_hash(value: Any, reduce: Callable[[Any], Any], by_name: Callable[[Any], bool]) -> str:
    """Return a hash of a value's content.

    Parameters
    ----------
    value
    reduce : callable
        Returns what ``pickle`` would keep of an object, as ``__reduce_ex__`` does.
    by_name : callable
        Tells whether a function, class or module is found elsewhere by its name, and so is
        hashed by it.
    """
    walk = _Walk(reduce, by_name)
    walk.add(value)
    return walk.digest.hexdigest()


class _Walk:
    def __init__(self, reduce: Callable[[Any], Any], by_name: Callable[[Any], bool]) -> None:
        self.digest = hashlib.sha256()
        self._reduce, self._by_name = reduce, by_name
        self._met: dict[int, int] = {}
        self._kept: list[Any] = []  # so that an address is not used again

    def add(self, value: Any) -> None:
        """Take a value into the hash."""
        kind = type(value)
        if kind in _NUMBERS:
            self._write(f"{kind.__name__} {value!r}")
        elif kind is str or kind is bytes:
            self._write(
                kind.__name__, value.encode("utf-8", "surrogatepass") if kind is str else value
            )
        elif kind in _SHARED_BY_CHANCE:
            self._container(kind, value)
        elif id(value) in self._met:
            self._write(f"met {self._met[id(value)]}")
        else:
            self._met[id(value)] = len(self._met)
            self._kept.append(value)
            self._container(kind, value)

    def _container(self, kind: type, value: Any) -> None:
        if kind is list or kind is tuple:
            self._write(f"{kind.__name__} {len(value)}")
            if all(type(one) in _NUMBERS for one in value):
                self._write("", repr(value).encode())
            else:
                self._all(value)
        elif kind is dict:
            self._write(f"dict {len(value)}")
            for key, one in value.items():
                self.add(key)
                self.add(one)
        elif kind is set or kind is frozenset:
            self._write(f"set {len(value)}")
            for digest in sorted(stable_hash(one, self._reduce, self._by_name) for one in value):
                self._write(digest)
        elif (
            kind.__module__ == "numpy" and kind.__name__ == "ndarray" and not value.dtype.hasobject
        ):
            self._write(f"array {value.dtype.str} {value.shape}", value.tobytes())
        elif kind is types.CodeType:
            self._code(value)
        elif isinstance(value, types.FunctionType | type | types.ModuleType) and self._by_name(
            value
        ):
            names = (
                getattr(value, "__module__", ""),
                getattr(value, "__qualname__", value.__name__),
            )
            self._write(f"name {names}")
        elif kind is types.FunctionType:
            self._function(value)
        elif isinstance(value, type):
            self._class(value)
        else:
            self._object(kind, value)

    def _all(self, values: Iterable[Any]) -> None:
        for value in values:
            self.add(value)

    def _code(self, code: types.CodeType) -> None:
        self._write("code", code.co_code)
        self._all((code.co_names, code.co_varnames, code.co_freevars, code.co_flags))
        self._all((code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount))
        self._write("handlers", getattr(code, "co_exceptiontable", b""))
        self._all(code.co_consts)

    def _function(self, function: types.FunctionType) -> None:
        self._write("function")
        self._code(function.__code__)
        self._all((function.__defaults__, function.__kwdefaults__, function.__dict__))
        for cell in function.__closure__ or ():
            try:
                self.add(cell.cell_contents)
            except ValueError:  # not assigned yet
                self._write("empty")
        for name in sorted(global_names(function.__code__)):
            if name in function.__globals__:
                self._write(f"global {name}")
                self.add(function.__globals__[name])

    def _class(self, value: type) -> None:
        self._write(f"class {value.__qualname__}")
        self._all(value.__bases__)
        for name, one in sorted(vars(value).items()):
            if name not in _OF_EVERY_CLASS:
                self._write(f"has {name}")
                self.add(_inside(one))

    def _object(self, kind: type, value: Any) -> None:
        self._write("object")
        try:
            reduced = self._reduce(value)
        except Exception:
            reduced = f"{kind.__module__}.{kind.__qualname__}"
        if isinstance(reduced, str):
            self._write(f"name {getattr(value, '__module__', '')} {reduced}")
            return
        for place, part in enumerate(reduced):
            # The fourth and the fifth are iterators of what is appended and set.
            self.add(list(part) if place in (3, 4) and part is not None else part)

    def _write(self, what: str, content: bytes | str = b"") -> None:
        content = content if isinstance(content, bytes) else content.encode()
        self.digest.update(f"{what} {len(content)}\n".encode())
        self.digest.update(content)


def global_names(code: types.CodeType) -> set[str]:
    """Return the names of the globals that a code uses, functions inside it too."""
    return {
        instruction.argval
        for part in codes(code)
        for instruction in dis.get_instructions(part)
        if instruction.opname in {"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME"}
    }


def _inside(value: Any) -> Any:
    if isinstance(value, staticmethod | classmethod):
        return value.__func__
    if isinstance(value, property):
        return (value.fget, value.fset, value.fdel)
    if isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType):
        return value.__name__
    return value


#: Equal ones may be one object or several, as the compiler likes.
_SHARED_BY_CHANCE = (tuple, frozenset, types.CodeType)
_OF_EVERY_CLASS = frozenset(
    {"__dict__", "__weakref__", "__doc__", "__module__", "__firstlineno__", "_abc_impl",
     "__static_attributes__", "__annotate_func__"}
)  # fmt: skip
