"""Put off the end of a whole fleet, from its head: no credentials, no further port.

The head's guard is asked here; a worker's through one of its engines, which is on its machine
and may leave a wish there. A busy engine does so after its unit.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neurofleet import manifest
from neurofleet.backends.profile import ProfileEngines
from neurofleet.dispatch_engines import ask
from neurofleet.engine import tasks
from neurofleet.errors import FleetError, TooFewEngines, UsageError
from neurofleet.guards.expiry import ask_for

#: How long workers may take to answer [s]; a wish that waits behind a unit is not lost.
ANSWER_S = 60.0
LOOK_EVERY_S = 0.1


@dataclass(frozen=True)
class End:
    """When a machine ends, in seconds since 1970 [s]; 0 if it is not known, and why."""

    until: float
    why: str = ""


#: Of a machine that has not answered.
SILENT = End(0.0, f"did not answer within {ANSWER_S:.0f} s")


def extend(hours: float, limit_s: float = ANSWER_S) -> dict[str, End]:
    """Let the fleet end so many hours from now.

    Parameters
    ----------
    hours : float
        From now [h].
    limit_s : float
        How long workers may take to answer [s].

    Returns
    -------
    dict
        By machine, when it ends.

    Raises
    ------
    UsageError
        Not a head, not guarded, no number of hours.
    WorkloadFailed
        The head's guard does not answer.
    """
    fleet = manifest.read()
    if fleet is None:
        raise UsageError(
            f"there is no {manifest.path()}: this machine is not the head of a fleet",
            remedy="Log in to the head and run it there",
        )
    if not 0 < hours < float("inf"):
        raise UsageError(
            f"HOURS must be above 0 and finite, not {hours:g}", remedy="Give hours from now"
        )
    until = time.time() + hours * 3600
    ends = {"head": End(ask_for(until))}
    if ends["head"].until < until - 1:
        raise UsageError(
            f"the head's guard allows {(ends['head'].until - time.time()) / 3600:.1f} h at most",
            remedy="Ask for fewer, or raise guards_most_hours in the inventory and run site.yml",
        )
    ends |= dict.fromkeys((worker.name for worker in fleet.workers), SILENT)
    names = {worker.hostname: worker.name for worker in fleet.workers}
    with ProfileEngines(None, fleet).connect() as client:
        for host, answer in _ask_workers(client, until, limit_s).items():
            ends[names.get(host, host)] = answer
    return ends


def require_all(ends: Mapping[str, End]) -> None:
    """Refuse to be silent about machines that have not answered, or could not do it.

    Raises
    ------
    TooFewEngines
    """
    unknown: dict[str, list[str]] = {}
    for name, end in ends.items():
        if not end.until:
            unknown.setdefault(end.why, []).append(name)
    if unknown:
        raise TooFewEngines(
            "; ".join(f"{', '.join(names)}: {why}" for why, names in unknown.items()),
            remedy="An engine that is busy does as it was asked after its unit; see with the same"
            " command again, or journalctl -u neurofleet-guard there",
        )


def _ask_workers(client: Any, until: float, limit_s: float) -> dict[str, End]:
    """Return when each worker that answers ends, by host name."""
    asked = [*ask(client, client.ids, leave_wish, until).values()]
    deadline = time.monotonic() + limit_s
    while not all(answer.ready() for answer in asked) and time.monotonic() < deadline:
        time.sleep(LOOK_EVERY_S)
    ends: dict[str, End] = {}
    for answer in asked:
        if answer.ready() and answer.successful():
            host, moment, why = answer.get()
            if host not in ends or moment > ends[host].until:
                ends[host] = End(moment, why)
    return ends


def leave_wish(until: float) -> tuple[str, float, str]:
    """Ask the guard of the machine that this engine is on; host, end, and why that is 0."""
    host = str(tasks.probe()["host"])
    try:
        return host, ask_for(until), ""
    except FleetError as error:
        return host, 0.0, error.what
