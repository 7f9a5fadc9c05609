"""What a job consists of, and what is told of each of its calls; both travel between machines."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, cast


@dataclass(frozen=True)
class Source:
    """A module of the person's own, as its file has it.

    Attributes
    ----------
    filename : str
        Where the file is on the person's machine, for tracebacks.
    text : bytes
    package : bool
        Whether it is a package's ``__init__``.
    """

    filename: str
    text: bytes = field(repr=False)
    package: bool = False


@dataclass(frozen=True)
class JobContent:
    """A function, the data that all its calls share, and the person's own code that it reaches.

    Attributes
    ----------
    name : str
        The function's, for people.
    call : bytes
        A pickle of a callable of one item. Modules in ``sources`` are in it by name.
    sources : mapping of str to Source
        The person's own modules, by the name under which they are imported.
    changed : bytes
        A pickle of modules' names and of the pickle of ``{module: {name: value}}``: what the
        program has set in those modules since they were imported, to be set on the engine
        after all of them are imported there (``own_modules.apply_changed``); empty if nothing.
    own_process : bool
        Whether each call needs a process of its own, because what it reaches keeps a state
        that later calls would see (a simulator, an unknown library); else a call gets a
        newly loaded function, and its own modules imported anew.
    mechanisms : mapping of str to bytes
        ``.mod`` files to compile and load before anything else, by name.
    beforehand : tuple of str
        Installed modules that the function may import when it is called; those that are
        there are imported once for all calls.
    """

    name: str
    call: bytes = field(repr=False)
    sources: Mapping[str, Source] = field(default_factory=dict, repr=False)
    changed: bytes = field(default=b"", repr=False)
    own_process: bool = True
    mechanisms: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    beforehand: tuple[str, ...] = ()

    def dumps(self) -> bytes:
        """Return the bytes that travel; ``loads`` is the inverse."""
        return pickle.dumps(self, protocol=pickle.HIGHEST_PROTOCOL)

    @staticmethod
    def loads(content: bytes) -> JobContent:
        """Return what ``dumps`` packed."""
        return cast(JobContent, pickle.loads(content))


class Place(NamedTuple):
    """The person's directory, and how an engine finds out whether it sees the same one.

    Attributes
    ----------
    directory : str
        The working directory of the person's program.
    token_file : str
        A file on a file system that an engine of this computer or cluster sees too; empty
        if there is none.
    token : str
        That file's content. An engine that reads it works in ``directory``; any other gives
        each call an empty directory, whose files are brought back.
    """

    directory: str = ""
    token_file: str = ""
    token: str = ""


class Calls(NamedTuple):
    """How items are called.

    Attributes
    ----------
    seed : int
        With an item's number it seeds ``random`` and ``numpy.random`` before each call.
    limit_s : float or None
        Limit of one call [s].
    files_bytes : int
        The most that is brought back of one call's files [bytes].
    place : Place
    """

    seed: int = 0
    limit_s: float | None = None
    files_bytes: int = 100_000_000
    place: Place = Place()


class Ended(NamedTuple):
    """How one call ended.

    Attributes
    ----------
    status : str
        ``ok``, ``raised``, ``timeout``, ``crashed`` (its process ended), or ``lost`` (the
        engine ended, every time).
    value : bytes
        The pickled result; empty unless ok.
    reason : str
        What was raised, in one line with file and line of the person's code; empty if ok.
    traceback : str
        The whole traceback with all causes; empty unless raised.
    output : bytes
        What the call printed and logged, both streams; its end, if it was long.
    files : bytes
        A tar of what it wrote into a working directory that was its own; empty if nothing.
    left_behind : tuple of str
        Files that were not brought back because of ``Calls.files_bytes``.
    drew : bool
        Whether it used a generator that its number has seeded, so that it would have another
        result under another number.
    """

    status: str
    value: bytes = b""
    reason: str = ""
    traceback: str = ""
    output: bytes = b""
    files: bytes = b""
    left_behind: tuple[str, ...] = ()
    drew: bool = False


class BatchEnded(NamedTuple):
    """What became of a batch.

    Attributes
    ----------
    items : tuple of Ended
        In the order in which they were sent.
    duration_s : float
        Of all of them [s].
    host : str
    pid : int
        The engine's.
    """

    items: tuple[Ended, ...]
    duration_s: float
    host: str
    pid: int
