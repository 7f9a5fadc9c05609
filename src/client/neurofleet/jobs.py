"""A function with its data, as it is sent to engines, and items as they are sent."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from neurofleet.errors import UsageError, first_line
from neurofleet.pickling import Referred, dumps, generators_undisturbed
from neurofleet.refusal import culprit
from neurofleet.travelling import travelling

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
        A ``JobContent``.
    digest : str
        The payload's hash.
    code : mapping of str to str
        A hash of each part of the code that the function can reach, by the name of its module
        (or of what the program has set in one); the same from run to run.
    data : str
        A hash of the shared data, the same from run to run.
    versions : mapping of str to str
        The installed distributions that the function can reach, which decide its results.
    """

    name: str
    payload: bytes = field(repr=False)
    digest: str
    code: Mapping[str, str] = field(default_factory=dict, repr=False)
    data: str = ""
    versions: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        function: Callable[..., Any],
        shared: Mapping[str, Any] | None = None,
        items: PickledItems | None = None,
        *,
        mechanisms: Mapping[str, bytes] | None = None,
        as_imported: bool = False,
    ) -> Job:
        """Make a job of a function.

        Parameters
        ----------
        function : callable
            Of one item, and of ``shared`` as keyword arguments. A person's own modules travel
            with their source; what is installed travels as its name.
        shared : mapping or None
            Sent once to each host.
        items : PickledItems or None
            What it will be called for, if their classes may be the person's own.
        mechanisms : mapping of str to bytes, or None
            ``.mod`` files that engines compile and load first, by name.
        as_imported : bool
            Whether nothing but imports has run in this process, so that nothing can have been
            set in a module since it was imported.

        Raises
        ------
        UsageError
            Function or data cannot be pickled; says which part.
        """
        if not callable(function):
            raise UsageError(f"{function!r} is not a function", remedy="Give a function")
        modules = items.modules if items is not None else ()
        made = travelling(
            function, shared, modules, mechanisms=mechanisms or {}, as_imported=as_imported
        )
        payload = made.content.dumps()
        name = made.content.name
        if len(payload) > LARGEST_JOB:
            raise UsageError(
                f"{name} and its data are {len(payload) / 1e6:.0f} MB, more than the"
                f" {LARGEST_JOB / 1e6:.0f} MB that are sent",
                remedy="Put large data into files that engines can read, and send their names",
            )
        digest = hashlib.sha256(payload).hexdigest()
        return cls(name, payload, digest, made.code, made.data, made.versions)


class PickledItems(list[bytes]):
    """Items as they are sent, and the modules to whose classes they refer."""

    modules: frozenset[str] = frozenset()


def pickled(items: Iterable[Any]) -> PickledItems:
    """Return each item as it is sent.

    Raises
    ------
    UsageError
        One cannot be sent; says which.
    """
    all_items = list(items)  # making them may draw random numbers, pickling them must not
    with generators_undisturbed():
        return _pickled(all_items)


def _pickled(items: Iterable[Any]) -> PickledItems:
    made, met = PickledItems(), Referred()
    for number, item in enumerate(items):
        try:
            plain = type(item) in _PLAIN
            made.append(pickle.dumps(item) if plain else dumps(item, met, per_item=False))
        except Exception as error:
            path, kind = culprit(item, f"item {number}")
            what = (
                f"{path}, {kind},"
                if path == f"item {number}"
                else f"item {number}: {path}, {kind},"
            )
            raise UsageError(
                f"{what} cannot be sent to an engine ({first_line(error)})",
                remedy="Give plain data, and open files and connections inside the function",
            ) from error
    made.modules = frozenset(met.modules)
    return made


#: What needs no look at where its class comes from.
_PLAIN = frozenset({str, bytes, int, float, bool, type(None)})
