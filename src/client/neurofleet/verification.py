"""See that a fleet is whole: its engines are there, and every host scores like the head.

``python -m neurofleet.verification`` is what ``playbooks/verify.yml`` runs on the head.
"""

from __future__ import annotations

import argparse
import array
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from neurofleet import manifest
from neurofleet.backends.profile import ProfileEngines
from neurofleet.dispatch_engines import ask
from neurofleet.engine import host_cache, tasks
from neurofleet.engine.outcome import Description, Outcome
from neurofleet.errors import FleetError, TooFewEngines, UsageError, WorkloadFailed
from neurofleet.manifest import Manifest
from neurofleet.model import Bundle, EvaluatorSpec, pack

CANARY = Path(__file__).parent / "workloads" / "canary"
#: How long engines have to appear and to answer [s].
ENGINES_TIMEOUT_S = 60.0
#: How long the canary's compilation and evaluation may take on a host [s].
CANARY_TIMEOUT_S = 180.0
#: Between two looks at the hub [s].
LOOK_S = 0.2


def verify(fleet: Manifest, timeout_s: float = ENGINES_TIMEOUT_S) -> dict[str, Any]:
    """Return what was seen of the fleet.

    Parameters
    ----------
    fleet : Manifest
        How it should be.
    timeout_s : float
        How long to wait for engines that are missing [s].

    Raises
    ------
    TooFewEngines
        A worker shows fewer engines than it should.
    WorkloadFailed
        A host cannot evaluate the canary, or not with the head's result.
    """
    with ProfileEngines(None, fleet).connect() as client:
        hosts = _find_engines(client, fleet, timeout_s)
        _require_engines(fleet, hosts)
        bundle = pack(CANARY, EvaluatorSpec("canary_evaluator:create"))
        here = _score_here(bundle)
        one_each = {host: number for number, host in sorted(hosts.items(), reverse=True)}
        scores = _score_there(client, one_each, bundle)
    for host, score in scores.items():
        if score != here:
            raise WorkloadFailed(
                f"{host} scores the canary {_text(score)}, this machine {_text(here)}",
                remedy="Compare their processors and environments; runs would not be repeatable",
            )
    return {
        "schema_version": 1,
        "fleet": fleet.name,
        "engines": dict(sorted(Counter(hosts.values()).items())),
        "canary": list(here),
    }


def _find_engines(client: Any, fleet: Manifest, timeout_s: float) -> dict[int, str]:
    """Ask every engine for its host, until there are enough or time is up."""
    until = time.monotonic() + timeout_s
    asked: dict[int, Any] = {}
    while True:
        asked |= ask(client, (n for n in client.ids if n not in asked), tasks.probe)
        alive = set(client.ids)
        hosts = {
            number: str(answer.get()["host"])
            for number, answer in asked.items()
            if number in alive and answer.ready() and answer.successful()
        }
        if not _lacking(fleet, hosts) or time.monotonic() > until:
            return hosts
        time.sleep(LOOK_S)


def _lacking(fleet: Manifest, hosts: dict[int, str]) -> list[str]:
    """Say of each worker that shows too few engines what it lacks."""
    there = Counter(hosts.values())
    return [
        f"{worker.name} shows {there[worker.hostname]} of {worker.engines}"
        for worker in fleet.workers
        if there[worker.hostname] < worker.engines
    ]


def _require_engines(fleet: Manifest, hosts: dict[int, str]) -> None:
    lacking = _lacking(fleet, hosts)
    if lacking:
        raise TooFewEngines(
            f"the fleet is short of engines: {', '.join(lacking)}",
            remedy="See journalctl -u 'ipengine@*' there; a busy engine answers after its unit",
        )
    # A machine may have left the inventory while its engines run on.
    ours = {worker.hostname for worker in fleet.workers}
    strangers = sorted(set(hosts.values()) - ours)
    if strangers:
        raise TooFewEngines(
            f"there are engines of {', '.join(strangers)}, which the fleet does not have",
            remedy="Run playbooks/remove.yml on it, or put it back into the inventory",
        )


def _score_here(bundle: Bundle) -> tuple[float, ...]:
    prepared = tasks.prepare(bundle.digest, bundle.archive)
    if isinstance(prepared, FleetError):
        raise prepared
    assert isinstance(prepared, Description)
    outcome = tasks.run_unit(*_canary(bundle, prepared))
    tasks.close()
    return _scores("this machine", outcome)


def _score_there(
    client: Any, engines: dict[str, int], bundle: Bundle
) -> dict[str, tuple[float, ...]]:
    """Return the canary's scores, by host; all hosts work at once."""
    prepared = ask(client, engines.values(), tasks.prepare, bundle.digest, bundle.archive)
    scored: dict[int, Any] = {}
    for host, number in engines.items():
        description = _result(host, prepared.get(number))
        if isinstance(description, FleetError):
            raise WorkloadFailed(f"{host}: {description.what}", remedy=description.remedy)
        scored |= ask(client, [number], tasks.run_unit, *_canary(bundle, description))
    return {
        host: _scores(host, _result(host, scored.get(number))) for host, number in engines.items()
    }


def _canary(bundle: Bundle, described: Description) -> tuple[Any, ...]:
    """Return the arguments of ``tasks.run_unit``."""
    # The middle of each parameter's bounds.
    values = array.array("d", [(p.lower + p.upper) / 2 for p in described.parameters])
    stamp = host_cache.versions_stamp()
    return (bundle.digest, stamp, described.whole.name, values.tobytes(), CANARY_TIMEOUT_S)


def _result(host: str, pending: Any) -> Any:
    if pending is None:
        raise TooFewEngines(
            f"the engine on {host} that was to score the canary has just ended",
            remedy="Run the playbook again; if it stays so, see journalctl -u 'ipengine@*' there",
        )
    try:
        return pending.get(timeout=CANARY_TIMEOUT_S)
    except TimeoutError as error:
        raise WorkloadFailed(
            f"{host} did not evaluate the canary within {CANARY_TIMEOUT_S:.0f} s",
            remedy="See journalctl -u 'ipengine@*' there; a busy engine answers after its unit",
        ) from error
    except Exception as error:  # whatever was raised over there
        raise WorkloadFailed(
            f"{host} cannot evaluate the canary ({error})",
            remedy="See journalctl -u 'ipengine@*' there",
        ) from error


def _scores(host: str, outcome: Outcome | tasks.NotReady) -> tuple[float, ...]:
    if isinstance(outcome, Outcome) and outcome.status == "ok":
        return tuple(outcome.scores)
    why = outcome.reason or outcome.status if isinstance(outcome, Outcome) else "other versions"
    raise WorkloadFailed(
        f"{host} cannot evaluate the canary ({why})",
        remedy="Run the playbook again; if it stays so, see journalctl -u 'ipengine@*' there",
    )


def _text(scores: tuple[float, ...]) -> str:
    return "(" + ", ".join(repr(score) for score in scores) + ")"


def main() -> None:
    """Print what was seen as JSON; an error is one line on stderr and its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--timeout", type=float, default=ENGINES_TIMEOUT_S, metavar="S")
    arguments = parser.parse_args()
    try:
        fleet = manifest.read()
        if fleet is None:
            raise UsageError(
                f"there is no {manifest.path()}: this machine is not the head of a fleet",
                remedy="Run it on the head, after playbooks/configure.yml",
            )
        print(json.dumps(verify(fleet, arguments.timeout)))
    except FleetError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
