"""The functions that are called on engines. Everything they take and give is small."""

from __future__ import annotations

import array
import atexit
import os
import socket
from collections import OrderedDict
from collections.abc import Sequence

from neurofleet import __version__
from neurofleet.engine import host_cache
from neurofleet.engine.outcome import Description, Outcome
from neurofleet.engine.own_modules import distribution_versions
from neurofleet.engine.warm_process import WarmProcess
from neurofleet.errors import FleetError, ModelError, WorkloadFailed

#: Models that an engine keeps loaded, the least recently used goes [count].
WARM_MODELS = 2

_warm: OrderedDict[str, WarmProcess] = OrderedDict()


class NotReady:
    """Returned by a task that needs the engine to be prepared first."""


def probe(distributions: Sequence[str] = ()) -> dict[str, object]:
    """Say who this engine is and what it runs.

    Parameters
    ----------
    distributions : sequence of str
        Packages whose versions are asked for, besides those that decide a score.
    """
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "neurofleet": __version__,
        "python": host_cache.python_version(),
        "versions": {**host_cache.versions(), **distribution_versions(distributions)},
    }


def prepare(digest: str, archive: bytes | None = None) -> Description | FleetError | NotReady:
    """Make this engine ready for a model.

    Returns
    -------
    Description, or FleetError if the model cannot be used here, or NotReady if this
    host has not received it and no ``archive`` was given.
    """
    try:
        if archive is not None and not host_cache.is_known(digest):
            host_cache.receive(digest, archive)
        if not host_cache.is_known(digest):
            return NotReady()
        try:
            return _warm_process(digest).description
        except ModelError:
            if host_cache.is_known(digest):
                raise
        # What was received earlier is damaged, and was therefore forgotten.
        if archive is None:
            return NotReady()
        host_cache.receive(digest, archive)
        return _warm_process(digest).description
    except FleetError as error:
        return error


def run_unit(
    digest: str, stamp: str, unit: str, parameters: bytes, limit_s: float
) -> Outcome | NotReady:
    """Score one individual by one unit.

    Parameters
    ----------
    digest : str
        The model's hash.
    stamp : str
        The versions that the score is wanted of (``host_cache.versions_stamp``).
    unit : str
        The unit's name.
    parameters : bytes
        The individual: float64 values, in the order of the evaluator's parameters.
    limit_s : float
        The unit's time limit [s].
    """
    known = digest in _warm or host_cache.is_known(digest)
    if not known or stamp != host_cache.versions_stamp():
        return NotReady()
    values = tuple(array.array("d", parameters))
    try:
        return _warm_process(digest).evaluate(unit, values, limit_s)
    except ModelError:
        if host_cache.is_known(digest):
            raise
        return NotReady()  # what was received is damaged
    except WorkloadFailed:
        # The warm process itself was killed, which no simulation can do: once more.
        if digest not in _warm:
            raise
        _warm.pop(digest).close()
        return _warm_process(digest).evaluate(unit, values, limit_s)


def close() -> None:
    """End every warm process of this engine."""
    while _warm:
        _warm.popitem()[1].close()


def _warm_process(digest: str) -> WarmProcess:
    if digest not in _warm:
        while len(_warm) >= WARM_MODELS:
            _warm.popitem(last=False)[1].close()
        _warm[digest] = WarmProcess(digest)
    _warm.move_to_end(digest)
    return _warm[digest]


atexit.register(close)
