"""A fork of the job server that calls a function for some items, and tells of each.

Nothing that a call does outlives it: the process ends after it, or, where that is known to be
enough, the function is loaded anew and the process's surroundings are put back.
"""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NamedTuple, NoReturn

from neurofleet.engine import forks, frames, generators, surroundings
from neurofleet.engine.limits import die_with_parent
from neurofleet.engine.surroundings import Surroundings

#: A function that takes longer to load is not loaded for each call: a fork is cheaper [s].
#: Anything may hold up one loading, so the quickest of some counts, unless it is very long.
DEAR_S, DEAR_AT_ONCE_S, LOADED = 0.004, 0.1, 3

_OURS = frozenset({__file__, surroundings.__file__})


class Told(NamedTuple):
    """What a call's process says of it.

    Attributes
    ----------
    status : str
        ``ok`` or ``raised``.
    value : bytes
    reason, traceback : str
    drew : bool
        See ``job_content.Ended``.
    last : bool
        Whether the process ends after it, because something that the call began still runs in
        it, or because another process is cheaper than to load the function again.
    dear : bool
        Whether loading the function took longer than a fork does.
    printed : int
        The size of what this and earlier calls have printed [bytes].
    """

    status: str
    value: bytes = b""
    reason: str = ""
    traceback: str = ""
    drew: bool = False
    last: bool = False
    dear: bool = False
    printed: int = 0


class Work(NamedTuple):
    """What a fork has to do.

    Attributes
    ----------
    function : callable
        As the server has loaded it: for the first item.
    load : callable
        Loads it anew, for each of the others.
    items : sequence of (int, bytes)
        Each with its number.
    seed : int
    directories : sequence of str
        Where each item is called.
    own_directories : bool
        Whether these are to be made.
    memory : int
        The most that the process may have [bytes].
    files : list
        What the server has open for writing.
    """

    function: Callable[[Any], Any]
    load: Callable[[], Callable[[Any], Any]]
    items: Sequence[tuple[int, bytes]]
    seed: int
    directories: Sequence[str]
    own_directories: bool
    memory: int
    files: list[Any]


class Ends(NamedTuple):
    """A fork's ends of its connections.

    Attributes
    ----------
    results, printed : int
        Descriptors.
    """

    results: int
    printed: int


def work_and_exit(work: Work, ends: Ends, server: int) -> NoReturn:
    """Call the items one after the other. The fork's whole life."""
    exit_code = 1
    try:
        _begin(work, ends, server)
        _call_all(work, ends)
        exit_code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
        surroundings.write_out([])
    finally:
        os._exit(exit_code)


def _begin(work: Work, ends: Ends, server: int) -> None:
    die_with_parent(server)
    forks.lead_a_group()
    forks.limit_memory(work.memory)
    if len(work.items) > 1:
        forks.adopt_orphans()  # to know of them after each call
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _point_streams(ends)


def _point_streams(ends: Ends) -> None:
    for stream in (1, 2):
        os.dup2(ends.printed, stream)
    surroundings.open_streams()


def _call_all(work: Work, ends: Ends) -> None:
    before, me = Surroundings(), os.getpid()
    last, quickest_s = len(work.items) - 1, float("inf")
    for place, (number, item) in enumerate(work.items):
        if work.own_directories:
            os.mkdir(work.directories[place], 0o700)  # noqa: PTH102
        os.chdir(work.directories[place])
        clock = time.thread_time()
        try:
            function = work.load() if place else work.function
        except BaseException as error:
            told = _raised(error, "the function cannot be loaded again: ")
        else:
            took_s = time.thread_time() - clock
            quickest_s = min(quickest_s, took_s) if place else quickest_s
            dear = took_s > DEAR_AT_ONCE_S or (place >= LOADED and quickest_s > DEAR_S)
            told = before.call(_call, function, number, item, work.seed)._replace(dear=dear)
            del function
        if os.getpid() != me:
            return  # a fork of the function's own, which has come back here
        if place == last or work.own_directories:
            surroundings.write_out([*work.files, *surroundings.open_files()])
        surroundings.write_out(surroundings.streams())
        forks.flush_c()
        if place != last:
            ends_here = told.dear or before.left_threads() or forks.has_children()
            told = told._replace(last=ends_here)
            before.put_back()
            _point_streams(ends)
        told = told._replace(printed=os.fstat(ends.printed).st_size)
        frames.send(ends.results, pickle.dumps(tuple(told)))
        if told.last:
            return


def _call(function: Callable[[Any], Any], number: int, item: bytes, seed: int) -> Told:
    try:
        argument = pickle.loads(item)
    except BaseException as error:
        return _raised(error, "its item cannot be loaded: ")
    generators.begin(seed, number)
    try:
        result = function(argument)
    except BaseException as error:
        return _raised(error)._replace(drew=generators.drew())
    drew = generators.drew()
    try:
        return Told("ok", _pickled(result), drew=drew)
    except BaseException as error:
        return _raised(error, "its result cannot be sent back: ")._replace(drew=drew)


def _raised(error: BaseException, what: str = "") -> Told:
    from neurofleet import causes

    BaseException.with_traceback(error, _without_ours(error.__traceback__))
    return Told("raised", reason=what + causes.line(error), traceback=causes.traceback_text(error))


def _without_ours(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and trace.tb_frame.f_code.co_filename in _OURS:
        trace = trace.tb_next
    return trace


def _pickled(value: Any) -> bytes:
    try:
        return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception:
        import cloudpickle

        pickled: bytes = cloudpickle.dumps(value)
        return pickled
