"""Where the time went: the computing share, by generation, by unit, by engine.

The computing share is the sum of the durations of units over engines times the wall
time of the phases in which they were evaluated: 1 means that no engine ever waited.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neurofleet.report.scores import Evaluations
from neurofleet.store import Phase

#: A unit may begin this long outside of its phase: clocks of hosts differ [s].
CLOCK_TOLERANCE_S = 2.0
#: Nothing going on for this long is a pause between two launches of the run [s] ...
LEAST_PAUSE_S = 120.0
#: ... but at least this fraction of the time in phases.
PAUSE_FRACTION = 0.05


@dataclass(frozen=True)
class GenerationTime:
    """Time of one generation, over all its phases.

    Attributes
    ----------
    generation : int
        0 is the comparison of units with whole individuals.
    engines : int
        Most that took part at once.
    simulated, stored : int
        Units simulated, and units found in the store.
    wall_s, capacity_s, busy_s : float
        Wall time, engines times wall time, and the part of it spent computing [s].
    """

    generation: int
    engines: int
    simulated: int
    stored: int
    wall_s: float
    capacity_s: float
    busy_s: float

    @property
    def share(self) -> float:
        """The computing share; NaN if no time passed."""
        return self.busy_s / self.capacity_s if self.capacity_s > 0 else float("nan")


@dataclass(frozen=True)
class UnitTime:
    """Time of all evaluations of one unit [s]."""

    name: str
    count: int
    mean_s: float
    longest_s: float
    total_s: float


@dataclass(frozen=True, eq=False)
class Times:
    """Where a run's time went.

    Attributes
    ----------
    generations : tuple of GenerationTime
    total : GenerationTime
        Over all of them; its ``generation`` is -1.
    units : tuple of UnitTime
        In the order of ``Evaluations.units``.
    sessions : tuple of (float, float)
        Stretches in which something went on; between them the run was paused [s since 1970].
    wall_s : float
        Sum of the sessions [s].
    idle_s : float
        Engine time in phases that was not spent computing [s].
    outside_s : float
        Wall time of the sessions outside of any phase [s].
    engine_share : ndarray, shape (engines,)
        Part of the phases' wall time that each engine computed.
    """

    generations: tuple[GenerationTime, ...]
    total: GenerationTime
    units: tuple[UnitTime, ...]
    sessions: tuple[tuple[float, float], ...]
    wall_s: float
    idle_s: float
    outside_s: float
    engine_share: NDArray[np.float64]


def account(
    evaluations: Evaluations, started: float | None = None, ended: float | None = None
) -> Times:
    """Account for a run's time.

    Parameters
    ----------
    evaluations : Evaluations
    started, ended : float or None
        Of the run, by the client's clock; ``None`` where not known [s since 1970].
    """
    phases = evaluations.phases
    inside = assign(evaluations, phases)
    by_phase = np.bincount(
        inside[inside >= 0], evaluations.duration_s[inside >= 0], minlength=len(phases)
    )
    generations = tuple(
        _sum(number, [(p, b) for p, b in zip(phases, by_phase, strict=True)
                      if p.generation == number])
        for number in sorted({phase.generation for phase in phases})
    )  # fmt: skip
    total = _sum(-1, list(zip(phases, by_phase, strict=True)))
    sessions = _sessions(evaluations, started, ended)
    wall_s = sum(end - begin for begin, end in sessions)
    by_engine = np.bincount(
        evaluations.engine[inside >= 0],
        evaluations.duration_s[inside >= 0],
        minlength=len(evaluations.engines),
    )
    return Times(
        generations=generations,
        total=total,
        units=tuple(_unit(evaluations, index) for index in range(len(evaluations.units))),
        sessions=sessions,
        wall_s=wall_s,
        idle_s=max(0.0, total.capacity_s - total.busy_s),
        outside_s=max(0.0, wall_s - total.wall_s),
        engine_share=by_engine / total.wall_s if total.wall_s > 0 else np.zeros_like(by_engine),
    )


def assign(evaluations: Evaluations, phases: tuple[Phase, ...]) -> NDArray[np.int64]:
    """Return the index of each unit's phase, -1 for a unit of a phase that was not kept.

    A unit belongs to the phase that its middle lies in. A phase that is in progress,
    or whose client was killed, is not in the store; its units count nowhere.
    """
    middle = evaluations.started + evaluations.duration_s / 2
    if not phases:
        return np.full(len(middle), -1, dtype=np.int64)
    begins = np.array([phase.started for phase in phases])
    ends = np.array([phase.ended for phase in phases])
    before = np.clip(np.searchsorted(begins, middle, side="right") - 1, 0, None)
    after = np.clip(before + 1, None, len(phases) - 1)
    late = np.maximum(middle - ends[before], 0.0)
    early = np.maximum(begins[before] - middle, 0.0)
    off_before = np.maximum(late, early)
    off_after = np.abs(begins[after] - middle)
    nearest = np.where((off_before > 0) & (off_after < off_before), after, before)
    off = np.minimum(off_before, off_after)
    return np.where((off_before == 0) | (off <= CLOCK_TOLERANCE_S), nearest, -1)


def _sum(number: int, phases: list[tuple[Phase, float]]) -> GenerationTime:
    return GenerationTime(
        generation=number,
        engines=max((phase.engines for phase, _ in phases), default=0),
        simulated=sum(phase.simulated for phase, _ in phases),
        stored=sum(phase.stored for phase, _ in phases),
        wall_s=float(sum(_wall(phase) for phase, _ in phases)),
        capacity_s=float(sum(phase.engines * _wall(phase) for phase, _ in phases)),
        busy_s=float(sum(busy for _, busy in phases)),
    )


def _wall(phase: Phase) -> float:
    return max(0.0, phase.ended - phase.started)


def _unit(evaluations: Evaluations, index: int) -> UnitTime:
    durations = evaluations.duration_s[evaluations.unit == index]
    return UnitTime(
        name=evaluations.units[index],
        count=len(durations),
        mean_s=float(durations.mean()),
        longest_s=float(durations.max()),
        total_s=float(durations.sum()),
    )


def _sessions(
    evaluations: Evaluations, started: float | None, ended: float | None
) -> tuple[tuple[float, float], ...]:
    """Join what went on with small gaps; a long gap is a pause between two launches."""
    phases = [(phase.started, max(phase.ended, phase.started)) for phase in evaluations.phases]
    units = zip(
        evaluations.started.tolist(),
        (evaluations.started + evaluations.duration_s).tolist(),
        strict=True,
    )
    marks = [(moment, moment) for moment in (started, ended) if moment is not None]
    longest_gap = max(LEAST_PAUSE_S, PAUSE_FRACTION * sum(end - begin for begin, end in phases))
    return tuple(
        (begin, end)
        for begin, end in _joined([*phases, *units, *marks], longest_gap)
        if end > begin
    )


def _joined(
    intervals: Iterable[tuple[float, float]], longest_gap: float
) -> list[tuple[float, float]]:
    joined: list[tuple[float, float]] = []
    for begin, end in sorted(intervals):
        if joined and begin - joined[-1][1] <= longest_gap:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((begin, end))
    return joined
