"""Any function over any items, on an engine: the job once per host, the items in batches.

A job is a function with the data that all its calls share, pickled by cloudpickle. It is
kept in this host's cache, below ``jobs/<hash>``, so that one engine of a host receives it
and the others read it there.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import pickle
import signal
import socket
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from neurofleet.engine import host_cache, own_modules
from neurofleet.engine.job_content import JobContent
from neurofleet.errors import FleetError, WorkloadFailed

#: Jobs that an engine keeps loaded, the least recently used goes [count].
LOADED_JOBS = 2
#: A job's file that nobody has used for so long is removed [s].
KEPT_S = 7 * 86400.0
#: How often a host's cache is looked at for what another engine receives [s].
LOOK_S = 0.05
#: After its limit an item has so long to let go, then the engine is ended [s].
LET_GO_S = 5.0
#: Longest reason that is sent back [characters].
LONGEST_REASON = 2000

_loaded: OrderedDict[str, Callable[[Any], Any]] = OrderedDict()


@dataclass(frozen=True)
class Missing:
    """A host's answer: it does not have the job, also after a wait for another engine."""

    host: str
    waited: bool = False


class Ended(NamedTuple):
    """How one item ended.

    Attributes
    ----------
    status : str
        ``ok``, ``raised`` or ``timeout``.
    value : bytes
        The pickled result; empty unless ok.
    reason : str
        The exception; empty if ok.
    """

    status: str
    value: bytes
    reason: str


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


class TookTooLong(BaseException):
    """An item reached its limit; not an ``Exception``, so that a function does not catch it."""


@dataclass(frozen=True)
class OfJson:
    """A function of a JSON value, called with the value's text; returns the result's text."""

    function: Callable[[Any], Any]

    def __call__(self, text: str) -> str:
        """Call the function."""
        return json.dumps(self.function(json.loads(text)), default=_plain)


def _plain(value: Any) -> Any:
    """Return numpy's numbers and arrays as Python's."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} is no JSON; return numbers, texts, lists, objects")


def prepare(digest: str, payload: bytes | None = None, wait_s: float = 0.0) -> Any:
    """Make this engine ready for a job.

    Parameters
    ----------
    digest : str
        The job's hash.
    payload : bytes or None
        The job; ``None`` if the host is thought to have it.
    wait_s : float
        How long another engine of this host may take to receive it [s].

    Returns
    -------
    str, FleetError or Missing
        The host's name when ready; why not; or that the job has to be sent.
    """
    file = _file(digest)
    try:
        if payload is not None and not file.exists():
            _receive(file, payload)
        until = time.monotonic() + wait_s
        while not file.exists() and time.monotonic() < until:
            time.sleep(LOOK_S)
        if not file.exists():
            return Missing(socket.gethostname(), wait_s > 0)
        _job(digest)
        return socket.gethostname()
    except FleetError as error:
        return error


def run_batch(digest: str, items: Sequence[bytes], limit_s: float | None) -> BatchEnded | Missing:
    """Call a job for each item; what a call raises is its result.

    Parameters
    ----------
    digest : str
        The job's hash.
    items : sequence of bytes
        Pickled.
    limit_s : float or None
        Limit of one item [s].
    """
    if digest not in _loaded and not _file(digest).exists():
        return Missing(socket.gethostname())
    function = _job(digest)
    started = time.monotonic()
    ended = tuple(_call(function, item, limit_s) for item in items)
    return BatchEnded(ended, time.monotonic() - started, socket.gethostname(), os.getpid())


def _call(function: Callable[[Any], Any], item: bytes, limit_s: float | None) -> Ended:
    try:
        with _limited(limit_s):
            result = function(pickle.loads(item))
    except TookTooLong:
        return Ended("timeout", b"", f"ended at its limit of {limit_s:g} s")
    except Exception as error:
        return Ended("raised", b"", _reason(error))
    except SystemExit as error:  # it would end the engine
        return Ended("raised", b"", f"SystemExit: {error}")
    try:
        return Ended("ok", _pickled(result), "")
    except Exception as error:
        return Ended("raised", b"", f"its result cannot be sent back: {_reason(error)}")


@contextlib.contextmanager
def _limited(limit_s: float | None) -> Iterator[None]:
    """End what is inside after a time: by an exception, or with the engine if that is ignored."""
    if limit_s is None:
        yield
        return

    def end(_number: int, _frame: object) -> None:
        raise TookTooLong

    # Python's handler runs between bytecodes only; this ends also what does not come back.
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        faulthandler.dump_traceback_later(limit_s + LET_GO_S, exit=True, file=nowhere)
        before = signal.signal(signal.SIGALRM, end)
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            faulthandler.cancel_dump_traceback_later()


def _pickled(value: Any) -> bytes:
    try:
        return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception:
        import cloudpickle

        pickled: bytes = cloudpickle.dumps(value)
        return pickled


def _job(digest: str) -> Callable[[Any], Any]:
    if digest not in _loaded:
        file = _file(digest)
        try:
            content = file.read_bytes()
            with contextlib.suppress(OSError):
                file.touch()  # so that it is kept
            job = JobContent.loads(content)
            own_modules.install(job)
            function = own_modules.load(job)
        except OSError as error:
            raise _unwritable(error) from error
        except Exception as error:
            raise WorkloadFailed(
                f"an engine on {socket.gethostname()} cannot load the function ({_reason(error)})",
                remedy="Install what it imports there, in the environment of the engines",
            ) from error
        while len(_loaded) >= LOADED_JOBS:
            _loaded.popitem(last=False)
        _loaded[digest] = function
    _loaded.move_to_end(digest)
    return _loaded[digest]


def _file(digest: str) -> Path:
    return host_cache.host_directory() / "jobs" / digest


def _receive(file: Path, payload: bytes) -> None:
    """Keep a job, whole or not at all; forget those that nobody uses."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for other in file.parent.iterdir():
            with contextlib.suppress(OSError):
                if other.stat().st_mtime < time.time() - KEPT_S:
                    other.unlink()
        partial.write_bytes(payload)
        partial.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise _unwritable(error) from error


def _unwritable(error: OSError) -> WorkloadFailed:
    return WorkloadFailed(
        f"the cache {str(host_cache.cache_directory())!r} on {socket.gethostname()} cannot be used"
        f" ({error.strerror or error})",
        remedy="Make room there, or name another place with NEUROFLEET_CACHE",
    )


def _reason(error: BaseException) -> str:
    """Return an exception as one line that says where it was raised."""
    said = (str(error).strip().splitlines() or [""])[0]
    trace, where = error.__traceback__, ""
    while trace is not None:
        code = trace.tb_frame.f_code
        if not code.co_filename.startswith((sys.prefix, sys.base_prefix, "<frozen", __file__)):
            where = f" ({Path(code.co_filename).name}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return f"{type(error).__name__}: {said}{where}"[:LONGEST_REASON]
