"""Any function over any items, on an engine: the job once per host, the items in batches.

A job is a ``JobContent``: a function with the data that all its calls share. It is kept in
this host's cache, below ``jobs/<hash>``, so that one engine of a host receives it and the
others read it there. It is called by a job server, a process of its own.
"""

from __future__ import annotations

import atexit
import os
import socket
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from neurofleet.engine import job_files
from neurofleet.engine.job_content import BatchEnded, Calls, Ended, Place
from neurofleet.engine.job_process import DamagedJob, JobProcess, ServerEnded
from neurofleet.errors import FleetError

#: Jobs that an engine keeps loaded, the least recently used goes [count].
LOADED_JOBS = 2
#: How often a host's cache is looked at for what another engine receives [s].
LOOK_S = 0.05
#: Longest token that tells a person's directory [bytes].
LONGEST_TOKEN = 4096

NOWHERE = Place()

_loaded: OrderedDict[tuple[str, str], JobProcess] = OrderedDict()


@dataclass(frozen=True)
class Missing:
    """A host's answer: it does not have the job, also after a wait for another engine."""

    host: str
    waited: bool = False


def prepare(
    digest: str, payload: bytes | None = None, wait_s: float = 0.0, place: Place = NOWHERE
) -> str | FleetError | Missing:
    """Make this engine ready for a job.

    Parameters
    ----------
    digest : str
        The job's hash.
    payload : bytes or None
        The job; ``None`` if the host is thought to have it.
    wait_s : float
        How long another engine of this host may take to receive it [s].
    place : Place
        Where the person is.

    Returns
    -------
    str, FleetError or Missing
        The host's name when ready; why not; or that the job has to be sent.
    """
    host = socket.gethostname()
    try:
        if payload is not None:
            job_files.keep(digest, payload)
        until = time.monotonic() + wait_s
        while not job_files.path(digest).exists():
            if time.monotonic() >= until:
                return Missing(host, wait_s > 0)
            time.sleep(LOOK_S)
        _process(digest, _directory(place))
    except DamagedJob:
        return Missing(host, waited=True)
    except FleetError as error:
        return error
    return host


def run_batch(
    digest: str, items: Sequence[tuple[int, bytes]], calls: Calls
) -> BatchEnded | Missing:
    """Call a job for each item; what a call raises is its result.

    Parameters
    ----------
    digest : str
        The job's hash.
    items : sequence of (int, bytes)
        Each with its number, pickled.
    calls : Calls
    """
    started = time.monotonic()
    key = digest, _directory(calls.place)
    if key not in _loaded and not job_files.path(digest).exists():
        return Missing(socket.gethostname())
    try:
        ended = _run(key, items, calls)
    except DamagedJob:
        return Missing(socket.gethostname(), waited=True)
    return BatchEnded(tuple(ended), time.monotonic() - started, socket.gethostname(), os.getpid())


def close() -> None:
    """End every job server of this process."""
    while _loaded:
        _loaded.popitem()[1].close()


def _run(key: tuple[str, str], items: Sequence[tuple[int, bytes]], calls: Calls) -> list[Ended]:
    process = _process(*key)
    try:
        return process.run(items, calls)
    except ServerEnded as error:
        _loaded.pop(key).close(0.0)
        if len(items) == 1:
            return [Ended("crashed", reason=f"the process that holds the function ended{error}")]
    except BaseException:
        # Broken off, by Ctrl-C for one: what is being called ends now.
        _loaded.pop(key).close(0.0)
        raise
    return [one for item in items for one in _run(key, (item,), calls)]


def _process(digest: str, directory: str) -> JobProcess:
    key = digest, directory
    if key not in _loaded:
        while len(_loaded) >= LOADED_JOBS:
            _loaded.popitem(last=False)[1].close()
        try:
            _loaded[key] = JobProcess(job_files.use(digest), directory)
        except DamagedJob:
            job_files.remove(digest)
            raise
    _loaded.move_to_end(key)
    return _loaded[key]


def _directory(place: Place) -> str:
    """Return the person's directory if this process sees it, and may enter it; else nothing."""
    if not place.token_file or not os.access(place.directory, os.X_OK):
        return ""
    try:
        number = os.open(place.token_file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(number, "rb") as file:
            seen = file.read(LONGEST_TOKEN) == place.token.encode()
    except OSError:
        return ""
    return place.directory if seen and Path(place.directory).is_dir() else ""


atexit.register(close)
