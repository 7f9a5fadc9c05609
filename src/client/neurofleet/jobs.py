"""A function with its data, as it is sent to engines, and items as they are sent."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pickle
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cloudpickle

from neurofleet.engine.job_content import JobContent
from neurofleet.errors import UsageError, first_line

#: Largest job that is sent to a host [bytes].
LARGEST_JOB = 512 * 1024 * 1024


@dataclass(frozen=True)
class Job:
    """A function with its data, ready to be sent.

    Attributes
    ----------
    name : str
        The function's, for people.
    payload : bytes
        Pickled.
    digest : str
        The payload's hash.
    """

    name: str
    payload: bytes = field(repr=False)
    digest: str

    @classmethod
    def of(cls, function: Callable[..., Any], shared: Mapping[str, Any] | None = None) -> Job:
        """Make a job of a function.

        Parameters
        ----------
        function : callable
            Of one item, and of ``shared`` as keyword arguments. One that is defined in a
            person's own file travels with that file's code; one that is part of an
            installed package travels as its name.
        shared : mapping or None
            Sent once to each host.

        Raises
        ------
        UsageError
            Function or data cannot be pickled.
        """
        name = getattr(function, "__qualname__", type(function).__name__)
        if not callable(function):
            raise UsageError(f"{function!r} is not a function", remedy="Give one to be called")
        try:
            bound = _Bound(function, dict(shared)) if shared else function
            with _own_code_travels():
                call = cloudpickle.dumps(bound)
        except Exception as error:
            raise UsageError(
                f"{name} or its data cannot be sent to engines ({first_line(error)})",
                remedy="Open files and connections inside the function; keep the rest plain data",
            ) from error
        payload = JobContent(name, call, own_process="neuron" in sys.modules).dumps()
        if len(payload) > LARGEST_JOB:
            raise UsageError(
                f"{name} and its data are {len(payload) / 1e6:.0f} MB, more than the"
                f" {LARGEST_JOB / 1e6:.0f} MB that are sent",
                remedy="Put large data into files that engines can read, and send their names",
            )
        return cls(name, payload, hashlib.sha256(payload).hexdigest())


@dataclass(frozen=True)
class _Bound:
    """A function with keyword arguments."""

    function: Callable[..., Any]
    shared: dict[str, Any]

    def __call__(self, item: Any) -> Any:
        return self.function(item, **self.shared)


def pickled(items: Iterable[Any]) -> list[bytes]:
    """Return each item as it is sent.

    Raises
    ------
    UsageError
        One cannot be sent; says which.
    """
    made = []
    with _own_code_travels():
        for number, item in enumerate(items):
            try:
                dumps = pickle.dumps if type(item) in _PLAIN else cloudpickle.dumps
                made.append(dumps(item))
            except Exception as error:
                raise UsageError(
                    f"item {number}, a {type(item).__name__}, cannot be sent to an engine"
                    f" ({first_line(error)})",
                    remedy="Give plain data, and open files and connections inside the function",
                ) from error
    return made


@contextlib.contextmanager
def _own_code_travels() -> Iterator[None]:
    """Have functions of a person's own files pickled with their code: engines lack the files."""
    known = cloudpickle.list_registry_pickle_by_value()
    own = {m.__name__: m for m in own_modules() if m.__name__ not in known}.values()
    for module in own:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in own:
            cloudpickle.unregister_pickle_by_value(module)


def own_modules() -> list[Any]:
    """Return the loaded modules that are a person's own files."""
    return [module for module in list(sys.modules.values()) if _is_own(module)]


def _is_own(module: Any) -> bool:
    """Tell whether a module is a file that is part of no installed package."""
    file = getattr(module, "__file__", None)
    if not file or getattr(module, "__name__", "__main__") == "__main__":
        return False  # cloudpickle sends what __main__ has anyway
    return not _is_installed(file)


@functools.cache
def _is_installed(file: str) -> bool:
    # There are thousands, and most need no look at the file system.
    if file.startswith(_INSTALLED) or not file.endswith(".py"):
        return True
    return os.path.realpath(file).startswith(_INSTALLED)


def _places() -> tuple[str, ...]:
    """Return where installed packages are, this program among them."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    places = [*map(sysconfig.get_path, names), str(Path(__file__).parent)]
    return tuple(f"{name(place)}{os.sep}" for place in places for name in (str, os.path.realpath))


_INSTALLED = _places()
#: What needs no look at where its class comes from.
_PLAIN = frozenset({str, bytes, int, float, bool, type(None)})
