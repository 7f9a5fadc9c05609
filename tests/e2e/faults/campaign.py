"""Many faults at random moments of many runs, each of which must come to the same numbers."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e2e.booted import Fleet
from e2e.faults.disturbed import (
    COUNTED,
    DisturbedRun,
    forget_runs,
    optimise,
    put_model,
    simulated,
)
from e2e.faults.kinds import Fault, Scene
from e2e.running import Evolution, Row, Scores, differences, quick, scores
from neurofleet.units import WHOLE

#: 240 units of 0.25, 0.5 and 1 s: more than a minute on two engines.
EVOLUTION = Evolution(quick(pause_s=1.0, log=COUNTED), offspring=16, generations=5)
#: A fault comes so long after the fleet computes, at most [s].
MOST_DELAY_S = 3.0
#: A disturbed run may take so long altogether [s].
RUN_LIMIT_S = 1800.0
#: Tasks that the engines have, two each; what a fault can cost twice.
IN_FLIGHT = 4
#: The promise: no wait longer than this beyond the fault's own length [s].
LONGEST_STALL_S = 60.0


@dataclass
class Injected:
    """One fault of a campaign, and what came of it."""

    fault: Fault
    at: float
    whole_after_s: float = 0.0
    stalled_s: float = 0.0
    twice: int = 0


@dataclass
class Ended:
    """One run of a campaign."""

    code: int
    said: str
    differs: list[str]
    lost: int
    injected: list[Injected] = field(default_factory=list)

    @property
    def identical(self) -> bool:
        return self.code == 0 and not self.differs and not self.lost


@dataclass(frozen=True)
class Undisturbed:
    """What a command comes to when nothing breaks."""

    words: Sequence[str]
    course: dict[str, Any]
    scores: Scores


def undisturbed(fleet: Fleet, log: Path, evolution: Evolution) -> Undisturbed:
    """Run an evolution once in peace."""
    forget_runs(fleet)
    put_model(fleet, evolution.model.name)
    run = DisturbedRun(fleet, optimise(evolution), "disturbed-not", log)
    run.begin()
    done = run.to_its_end(RUN_LIMIT_S)
    assert done.code == 0, done.err
    return Undisturbed(run.words, run.course(), scores_that_decide(run.scored()))


def disturbed(
    fleet: Fleet,
    faults: Sequence[Fault],
    peace: Undisturbed,
    chance: random.Random,
    log: Path,
    name: str,
) -> Ended:
    """Run a command under faults, one after the other as soon as the fleet computes again."""
    forget_runs(fleet)
    run = DisturbedRun(fleet, peace.words, f"disturbed-{name}", log)
    run.begin()
    run.wait_until_computing()
    scene, injected = Scene(fleet, run, chance), list[Injected]()
    for fault in faults:
        time.sleep(chance.uniform(0, MOST_DELAY_S))  # the moment is a matter of chance
        if not run.running():
            break
        before, found = _twice(), Injected(fault, time.time())
        injected.append(found)
        since = time.monotonic()
        fault.inject(scene)
        run.wait_until_computing()
        found.whole_after_s = max(0.0, time.monotonic() - since - fault.lasts_s)
        found.stalled_s = max(0.0, run.longest_pause(found.at, time.time()) - fault.lasts_s)
        found.twice = _twice() - before
    done = run.to_its_end(RUN_LIMIT_S)
    ours = scores_that_decide(run.scored())
    lost = sum(ours.get(key) != value for key, value in peace.scores.items())
    differs = differences(run.course(), peace.course) if done.code == 0 else ["not finished"]
    return Ended(done.code, done.err, differs, lost, injected)


def scores_that_decide(scored: Sequence[Row]) -> Scores:
    """Return the scores of units; wholes are only compared with them, once on a machine."""
    return scores([row for row in scored if row.unit != WHOLE])


def _twice() -> int:
    return sum(count - 1 for count in simulated().values())


def campaign(
    fleet: Fleet,
    kinds: Sequence[Fault],
    faults: int,
    runs: int,
    seed: int,
    log: Path,
    evolution: Evolution,
) -> Iterator[Ended]:
    """Inject so many faults over at least so many runs; yield each run as it ends.

    Every kind comes once if there are faults enough, the others are drawn by weight.
    """
    chance = random.Random(seed)
    peace = undisturbed(fleet, log, evolution)
    weights = [max(1, kind.weight) for kind in kinds]
    waiting = [*kinds, *chance.choices(kinds, weights, k=max(0, faults - len(kinds)))][:faults]
    chance.shuffle(waiting)
    for number in itertools.count():
        if not waiting:
            return
        share = max(1, len(waiting) // max(1, runs - number))
        one = disturbed(fleet, waiting[:share], peace, chance, log, str(number))
        waiting = waiting[len(one.injected) :]
        yield one


def line(ended: Ended) -> str:
    """Return what a run came to."""
    verdict = "identical" if ended.identical else f"NOT identical ({ended.code}, {ended.differs})"
    faults = ", ".join(
        f"{i.fault.name} (stalled {i.stalled_s:.0f} s, whole after {i.whole_after_s:.0f} s,"
        f" {i.twice} twice)"
        for i in ended.injected
    )
    return f"{verdict}; {faults}" + ("" if ended.identical else f"\n{ended.said}")


def table(ended: Sequence[Ended]) -> str:
    """Return what a campaign came to, a line for each kind of fault."""
    lines = [
        "| fault | times | runs identical | units lost | simulated twice | longest stall"
        " | whole after |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    names = sorted({one.fault.name for run in ended for one in run.injected})
    for name in [*names, "all"]:
        hit = [r for r in ended if any(name in (i.fault.name, "all") for i in r.injected)]
        found = [i for run in hit for i in run.injected if name in (i.fault.name, "all")]
        lines.append(
            f"| {name} | {len(found)} | {sum(run.identical for run in hit)} of {len(hit)}"
            f" | {sum(run.lost for run in hit)} | {sum(i.twice for i in found)}"
            f" | {max((i.stalled_s for i in found), default=0.0):.0f} s"
            f" | {max((i.whole_after_s for i in found), default=0.0):.0f} s |"
        )
    return "\n".join(lines)


def broken_promises(ended: Sequence[Ended]) -> list[str]:
    """Return what did not hold, a line each."""
    found = []
    for number, run in enumerate(ended, 1):
        if not run.identical:
            found.append(f"run {number} ended with {run.code} and differs in {run.differs}")
        twice = 0
        for count, one in enumerate(run.injected, 1):
            # What a fault interrupted may be simulated again only after the next one.
            twice += one.twice
            if twice > IN_FLIGHT * count:
                found.append(f"run {number}: {twice} units twice after {count} faults")
            if one.stalled_s > LONGEST_STALL_S:
                found.append(f"run {number}, {one.fault.name}: stalled {one.stalled_s:.0f} s")
    return found
