"""A person's own modules where their files are not: imported from what was sent.

``install`` makes the modules of a job importable, under the names that they have on the
person's machine; ``load`` returns the job's function; ``forget`` drops the modules, so that the
next ``load`` imports them anew. Tracebacks show the person's files and lines.

This is imported by processes that shall be small: nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import linecache
import pickle
import sys
import threading
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from neurofleet.engine import generators
from neurofleet.engine.job_content import JobContent, Source


@functools.lru_cache(maxsize=2048)
def _compiled(filename: str, text: bytes) -> types.CodeType:
    code: types.CodeType = compile(text, filename, "exec", dont_inherit=True)
    return code


class _Loader(importlib.abc.InspectLoader):
    """Runs a module that was sent."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def exec_module(self, module: types.ModuleType) -> None:
        exec(_compiled(self._source.filename, self._source.text), module.__dict__)
        generators.adopt(module)

    def is_package(self, _fullname: str) -> bool:
        return self._source.package

    def get_source(self, _fullname: str) -> str:
        return importlib.util.decode_source(self._source.text)

    def get_filename(self, _fullname: str) -> str:
        return self._source.filename

    def get_data(self, path: str) -> bytes:
        """Return a file beside the module, where this machine has it."""
        return Path(path).read_bytes()


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules that were sent, before any of the same name that is installed."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._sources = sources

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        source = self._sources.get(fullname)
        if source is None:
            return None
        spec = importlib.machinery.ModuleSpec(
            fullname, _Loader(source), origin=source.filename, is_package=source.package
        )
        spec.has_location = True
        spec.cached = ""  # what was sent has no compiled file; to make up its name takes time
        if source.package:
            # What is looked for by a name that nobody could foresee is found if the file is here.
            spec.submodule_search_locations = [str(Path(source.filename).parent)]
        return spec


class _Folders(importlib.abc.MetaPathFinder):
    """Finds the packages that are mere directories, after all others: they may be shared."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._places: dict[str, list[str]] = {}
        for name, source in sources.items():
            place = Path(source.filename).parent
            if source.package:
                place = place.parent
            while "." in name:
                name = name.rpartition(".")[0]
                if name not in sources:
                    places = self._places.setdefault(name, [])
                    if str(place) not in places:
                        places.append(str(place))
                place = place.parent

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._places:
            return None
        spec = importlib.machinery.ModuleSpec(fullname, None, is_package=True)
        spec.submodule_search_locations = self._places[fullname]
        return spec


@dataclass
class _Installed:
    """What ``install`` did, so that it can be undone."""

    names: frozenset[str]
    packages: tuple[str, ...]
    finders: tuple[importlib.abc.MetaPathFinder, ...]
    hidden: dict[str, types.ModuleType] = field(default_factory=dict)


_installed: _Installed | None = None


def install(content: JobContent) -> None:
    """Make the own modules of a job importable, in place of those of another job.

    Parameters
    ----------
    content : JobContent
    """
    global _installed
    uninstall()
    finder, folders = _Finder(content.sources), _Folders(content.sources)
    names = frozenset(content.sources)
    # An own module may have the name of one of Python's that this process has loaded.
    hidden = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.meta_path.insert(0, finder)
    sys.meta_path.append(folders)
    if _may_draw_from_numpy(content):
        # It is seeded before a call, and so must be there before a call imports it.
        with contextlib.suppress(ImportError):
            importlib.import_module("numpy.random")
    for name in content.beforehand:
        # Else every process that calls the function would import it again.
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    for source in content.sources.values():
        with contextlib.suppress(UnicodeDecodeError, SyntaxError):
            text = importlib.util.decode_source(source.text)
            lines = text.splitlines(keepends=True)
            linecache.cache[source.filename] = (len(text), None, lines, source.filename)
        with contextlib.suppress(SyntaxError, ValueError):
            # Processes that are forked from this one need not do it again.
            _compiled(source.filename, source.text)
    tops = {name: source for name, source in content.sources.items() if "." not in name}
    packages = tuple(f"{name}." for name, source in tops.items() if source.package)
    _installed = _Installed(names, packages, (finder, folders), hidden)


def _may_draw_from_numpy(content: JobContent) -> bool:
    texts = [content.call, content.changed, *(source.text for source in content.sources.values())]
    return content.own_process or any(name in text for text in texts for name in _BRING_NUMPY)


#: Those that are used without a process for each call, and import numpy.
_BRING_NUMPY = (b"numpy", b"scipy", b"pandas", b"sklearn", b"joblib", b"neurofleet.workloads")


def forget() -> None:
    """Drop the job's own modules; the next import runs them anew."""
    generators.forget()
    if _installed is None:
        return
    for name in _installed.names:
        sys.modules.pop(name, None)
    if _installed.packages:  # which may have modules that nobody could foresee
        for name in [name for name in sys.modules if name.startswith(_installed.packages)]:
            del sys.modules[name]


def uninstall() -> None:
    """Drop the job's own modules, and do not find them any more."""
    global _installed
    forget()
    if _installed is not None:
        for finder in _installed.finders:
            with contextlib.suppress(ValueError):
                sys.meta_path.remove(finder)
        sys.modules.update(_installed.hidden)
    _installed = None


def load(content: JobContent) -> Callable[[Any], Any]:
    """Return a job's function; ``install`` is called before, ``generators.begin`` after it.

    Parameters
    ----------
    content : JobContent

    Raises
    ------
    Exception
        Whatever importing the person's modules raises.
    """
    if content.sources:
        generators.begin_loading()
    apply_changed(content)
    function: Callable[[Any], Any] = pickle.loads(content.call)
    return function


def apply_changed(content: JobContent) -> None:
    """Set in the own modules what the program had set since it imported them.

    Objects that import made here as there are changed in place, because other modules and
    functions may hold them too.
    """
    if not content.changed:
        return
    names, values = pickle.loads(content.changed)
    # All imports first: one that is imported later must not find what was set after it was.
    for name in names:
        importlib.import_module(name)
    for module_name, changed in pickle.loads(values).items():
        for name, value in changed.items():
            holder: Any = sys.modules[module_name]
            *path, last = name.split(".")
            for part in path:
                holder = getattr(holder, part)
            _set(holder, last, value)


def _set(holder: Any, name: str, value: Any) -> None:
    missing = object()
    if isinstance(value, Attributes):
        target = getattr(holder, name, missing)
        if target is not missing and hasattr(target, "__dict__"):
            _merged(vars(target), value.values, {})
        return
    old = getattr(holder, name, missing)
    setattr(holder, name, value if old is missing else _merged(old, value, {}))


@dataclass(frozen=True)
class Attributes:
    """Those attributes of an object that can be sent; the others are as import made them."""

    values: dict[str, Any]


def _merged(old: Any, new: Any, done: dict[int, Any]) -> Any:
    """Return an object with the new content: the old one, if it can be changed in place."""
    if old is new or type(old) is not type(new):
        return new
    if id(new) in done:
        return done[id(new)]
    kind = type(old)
    if kind in _KEPT:
        return old
    if kind is dict:
        done[id(new)] = old
        content = {k: _merged(old[k], v, done) if k in old else v for k, v in new.items()}
        old.clear()
        old.update(content)
        return old
    if kind is list:
        done[id(new)] = old
        pairs = zip(old, new, strict=False)
        old[:] = [*(_merged(a, b, done) for a, b in pairs), *new[len(old) :]]
        return old
    if kind is set:
        old.clear()
        old.update(new)
        return old
    if kind.__module__ == "numpy" and kind.__name__ == "ndarray":
        if (old.shape, old.dtype) == (new.shape, new.dtype) and old.flags.writeable:
            old[...] = new
            return old
        return new
    if _has_plain_state(kind):
        done[id(new)] = old
        _merged(vars(old), vars(new), done)
        return old
    return new


def _has_plain_state(kind: type) -> bool:
    """Tell whether an object of a class is what its ``__dict__`` says."""
    if kind is types.SimpleNamespace:
        return True
    return (
        bool(kind.__dictoffset__)
        and bool(kind.__flags__ & _MADE_BY_CLASS)
        and not issubclass(kind, type | types.ModuleType | dict | list | set | tuple)
        and kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__reduce__ is object.__reduce__
        and not hasattr(kind, "__setstate__")
        and not hasattr(kind, "__slots__")
    )


#: Of a class that a class statement has made (Py_TPFLAGS_HEAPTYPE).
_MADE_BY_CLASS = 1 << 9
#: Kinds that are sent as new ones; what import made is as new, and others may hold it.
_KEPT = frozenset({type(threading.Lock()), type(threading.RLock())})


@dataclass(frozen=True)
class WithData:
    """A function with the keyword arguments of all its calls."""

    function: Callable[..., Any]
    shared: dict[str, Any]

    def __call__(self, item: Any) -> Any:
        """Call the function for an item."""
        return self.function(item, **self.shared)


def function_of(
    module: str, code: types.CodeType, closure: tuple[types.CellType, ...] | None
) -> types.FunctionType:
    """Return a function of a module that cannot be found there by its name.

    Parameters
    ----------
    module : str
        The module whose globals it has.
    code : code
    closure : tuple of cell or None
    """
    return types.FunctionType(code, importlib.import_module(module).__dict__, None, None, closure)


def attribute_of(module: str, name: str) -> Any:
    """Return what a module has, when it is not pickled with its content."""
    return getattr(importlib.import_module(module), name)


def cached(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    """Return a function with an empty ``functools.lru_cache``."""
    return functools.lru_cache(**parameters)(function)


class NotSent:
    """In place of a global that cannot be sent: using it says so.

    Parameters
    ----------
    says : str
        What is raised.
    """

    def __init__(self, says: str) -> None:
        object.__setattr__(self, "_says", says)

    def __reduce__(self) -> tuple[Any, ...]:
        return NotSent, (object.__getattribute__(self, "_says"),)

    def __repr__(self) -> str:
        return f"<{object.__getattribute__(self, '_says')}>"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)  # pickle, copy and inspect ask for what is not there
        self._raise()

    def _raise(self, *_: Any, **__: Any) -> NoReturn:
        raise NotSentError(object.__getattribute__(self, "_says"))

    __call__ = __getitem__ = __setitem__ = __delitem__ = __iter__ = __next__ = __len__ = _raise
    __bool__ = __enter__ = __exit__ = __contains__ = __setattr__ = __delattr__ = _raise
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __matmul__ = _raise
    __truediv__ = __rtruediv__ = __lt__ = __le__ = __gt__ = __ge__ = __float__ = __int__ = _raise


class NotSentError(RuntimeError):
    """A function uses something that stayed on the person's machine."""


def distribution_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of installed distributions, by name; without those that are missing.

    Parameters
    ----------
    names : iterable of str
    """
    import importlib.metadata  # takes longer than all else here

    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
