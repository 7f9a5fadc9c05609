"""Scores of individuals: from the store where they are, from the farm where they are not.

Before a model's units are trusted, some individuals are evaluated both ways, whole
and by units. If one bit differs, the whole individual is the unit from then on. The
decision is kept in the store, so that a resumed run decides nothing anew.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurofleet import failures
from neurofleet.engine import tasks
from neurofleet.engine.host_cache import versions_stamp
from neurofleet.engine.outcome import Description, Outcome
from neurofleet.errors import WorkloadFailed, debugging
from neurofleet.farm import Farm, Task
from neurofleet.measured_limit import MeasuredLimit
from neurofleet.remembered import recall, remember
from neurofleet.store import Phase, Store, pack_floats
from neurofleet.units import Unit

#: Individuals that are evaluated both ways before a model is split [count].
COMPARED = 2
#: A unit's default limit: this many times the longest duration measured ...
LIMIT_FACTOR = 20.0
#: ... but at least so long [s].
LEAST_LIMIT_S = 120.0

Individual = tuple[float, ...]
_MODES = {"split": "by units", "whole": "as a whole"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """What a watcher is told after every scored unit."""

    generation: int
    units_done: int
    units_total: int
    simulated: int
    outcome: Outcome | None
    unit: str


class _Scored(Task):
    """A unit of an individual."""

    __slots__ = ()

    @property
    def title(self) -> str:
        """The unit's name."""
        return f"unit {self.key[0]}"


class _Again(_Scored):
    """A unit that was scored, on another host; its key ends with the first one's name."""

    __slots__ = ()

    @property
    def not_on(self) -> str:
        """The host that has scored it."""
        return str(self.key[2])


class Scoring:
    """Scores individuals by units, each at most once.

    Parameters
    ----------
    digest : str
        The model's hash.
    description : Description
    store : Store
        Of this model and these versions.
    open_farm : callable
        Returns the farm; called at the first score that is missing.
    decision_file : Path or None
        Where this machine remembers how the model's comparison came out.
    unit_limit_s : float or None
        Time limit of one unit [s]; ``None`` derives it from what was measured.
    watch : callable
        Told the ``Progress``.
    verify : int
        So many units of each generation, chosen at random, are scored a second time, on
        another host where there is one.
    score_here : callable or None
        Scores a task in this process, as an arbiter between two hosts.
    allow_failing : bool
        Go on where an objective, or everything, fails for every individual.
    """

    def __init__(
        self,
        digest: str,
        description: Description,
        store: Store,
        open_farm: Callable[[], Farm],
        *,
        decision_file: Path | None = None,
        unit_limit_s: float | None = None,
        watch: Callable[[Progress], None] = lambda _progress: None,
        verify: int = 0,
        score_here: Callable[[Task], Outcome] | None = None,
        allow_failing: bool = False,
    ) -> None:
        self._digest = digest
        self._description = description
        self._store = store
        self._open_farm = open_farm
        self._unit_limit_s = unit_limit_s
        self._limits = MeasuredLimit(LIMIT_FACTOR, LEAST_LIMIT_S)
        self._watch = watch
        self._decision_file = decision_file
        self._verify = verify
        self._score_here = score_here
        self._allow_failing = allow_failing
        self._said: set[tuple[str, str]] = set()
        self._farm: Farm | None = None
        self._own: set[tuple[str, Individual]] = set()
        self.simulated = 0
        self.from_store = 0
        self.penalised = 0
        self.verified = 0

    @property
    def units(self) -> tuple[Unit, ...] | None:
        """What an individual is evaluated in; ``None`` while that is not decided."""
        if len(self._description.units) == 1:
            return self._description.units
        mode = self._store.note("units")
        if mode not in _MODES:  # not decided, or damaged
            return None
        return self._description.units if mode == "split" else (self._description.whole,)

    @property
    def why(self) -> str:
        """Why the units are what they are, in a line."""
        if len(self._description.units) == 1:
            return "its protocols and objectives hang together, or it has one protocol only"
        return self._store.note("units_why") or "not yet compared"

    def score(self, generation: int, individuals: Sequence[Individual]) -> list[list[float]]:
        """Return each individual's scores, in the order of the evaluator's objectives.

        Raises
        ------
        WorkloadFailed
            No unit of any individual could be evaluated, or one objective raises for every
            individual of the first generation: the model is broken.
        """
        distinct = list(dict.fromkeys(individuals))
        if self.units is None:
            self._compare(distinct)
        units = self.units
        assert units is not None
        wanted = [(unit, individual) for individual in distinct for unit in units]
        found = self._evaluate(generation, wanted)
        self._refuse_nonsense([(unit, found[unit.name, individual]) for unit, individual in wanted])
        if generation == 1:
            self._refuse_failing(units, distinct, found)
        scores: dict[Individual, list[float]] = {}
        for individual in distinct:
            values = [0.0] * len(self._description.objectives)
            for unit in units:
                outcome = found[unit.name, individual]
                for index, score in zip(unit.objectives, outcome.scores, strict=True):
                    values[index] = score
            scores[individual] = values
        return [scores[individual] for individual in individuals]

    def close(self) -> None:
        """Close the farm, if it was opened."""
        farm, self._farm = self._farm, None
        if farm is not None:
            farm.close()

    def _evaluate(
        self, generation: int, wanted: Sequence[tuple[Unit, Individual]]
    ) -> dict[tuple[str, Individual], Outcome]:
        """Return an outcome for every unit and individual, each simulated at most once."""
        found: dict[tuple[str, Individual], Outcome] = {}
        missing: list[tuple[Unit, Individual]] = []
        for unit, individual in wanted:
            outcome = self._store.get(unit.name, individual)
            if outcome is None:
                missing.append((unit, individual))
            else:
                found[unit.name, individual] = outcome
        stored = len(found)
        if generation:  # what was only compared is counted when it is used
            self.from_store += sum(key not in self._own for key in found)
        self._watch(Progress(generation, stored, len(wanted), self.simulated, None, ""))
        if not missing:
            return found
        if self._farm is None:
            self._farm = self._open_farm()
        self._farm.open()

        done: list[Task] = []
        doubtful: list[tuple[Task, Outcome]] = []

        def judge(task: Task, outcome: Outcome) -> None:
            if outcome.status in ("ok", "raised"):
                self._limits.ended(task.key[0], outcome.duration_s)
            if self._deserves_more_time(task, outcome):
                doubtful.append((task, outcome))
            else:
                keep(task, outcome)

        def keep(task: Task, outcome: Outcome) -> None:
            unit_name, individual = task.key
            self._store.put(unit_name, individual, outcome)
            done.append(task)
            found[unit_name, individual] = outcome
            self._own.add((unit_name, individual))
            self.simulated += 1
            if outcome.status != "ok":
                self.penalised += 1
                self._warn(unit_name, outcome)
            told = (len(found), len(wanted), self.simulated, outcome, unit_name)
            self._watch(Progress(generation, *told))

        measured = self._store.durations()
        for name, (_, longest) in measured.items():
            self._limits.ended(name, longest)
        expected = self._remembered_durations() | {u: mean for u, (mean, _) in measured.items()}
        started = time.time()
        units = {unit.name: unit for unit, _ in missing}
        try:
            while missing:
                self._farm.run(self._tasks(missing, expected), judge)
                again = [
                    task for task, outcome in doubtful if self._deserves_more_time(task, outcome)
                ]
                for task, outcome in doubtful:
                    if task not in again:
                        keep(task, outcome)
                doubtful.clear()
                missing = [(units[task.key[0]], task.key[1]) for task in again]
            if generation and self._verify:
                self._score_again(self._farm, done, found)
        finally:
            simulated = len(found) - stored
            self._store.add_phase(
                Phase(generation, started, time.time(), self._farm.size, simulated, stored)
            )
        return found

    def _score_again(
        self, farm: Farm, done: Sequence[Task], found: Mapping[tuple[str, Individual], Outcome]
    ) -> None:
        """Score some units twice, and name the host whose scores differ."""
        sound = [task for task in done if found[task.key].status != "timeout"]
        # Not the evolution's generator: what is chosen must not steer it.
        chosen = random.Random().sample(sound, min(self._verify, len(sound)))
        second: dict[tuple[str, Individual], Outcome] = {}

        def keep(task: Task, outcome: Outcome) -> None:
            second[task.key[:2]] = outcome

        farm.run([_Again((*task.key, found[task.key].host), *task[1:]) for task in chosen], keep)
        for task in chosen:
            self._refuse_difference(task, found[task.key], second[task.key])
        self.verified += len(chosen)

    def _refuse_difference(self, task: Task, first: Outcome, second: Outcome) -> None:
        if _bits(first) == _bits(second):
            return
        hosts = {first.host: first, second.host: second}
        wrong = []
        if self._score_here is not None and len(hosts) > 1:
            bits = _bits(self._score_here(task))
            wrong = [host for host, outcome in hosts.items() if _bits(outcome) != bits]
        unit = f"unit {task.key[0]} of one individual"
        if len(wrong) == 1:
            raise WorkloadFailed(
                f"{wrong[0]} scores {unit} differently from"
                f" {next(host for host in hosts if host not in wrong)} and this machine",
                remedy=f"Take {wrong[0]} out; then neurofleet repair --without-host {wrong[0]}"
                " RUN_DIR drops what it scored, and the same command again goes on",
            )
        raise WorkloadFailed(
            f"{unit} scores differently each time (on {' and '.join(hosts)})",
            remedy="Look for what the model draws at random, or for hosts that differ",
        )

    def _tasks(
        self, pairs: Sequence[tuple[Unit, Individual]], expected: Mapping[str, float]
    ) -> Iterator[Task]:
        """Yield tasks, the longest first; each has the limit that is known when it is drawn."""
        unknown = float("inf")
        for unit, individual in sorted(
            pairs, key=lambda pair: -expected.get(pair[0].name, unknown)
        ):
            limit_s = self._unit_limit_s
            if limit_s is None:
                limit_s = self._limits.limit_s(unit.name)
            parameters = pack_floats(individual)
            args = (self._digest, versions_stamp(), unit.name, parameters, limit_s)
            weight = expected.get(unit.name, unknown)
            yield _Scored((unit.name, individual), tasks.run_unit, args, weight)

    def _deserves_more_time(self, task: Task, outcome: Outcome) -> bool:
        """Tell whether a unit reached a limit that was a guess, or that is another one by now."""
        if self._unit_limit_s is not None or outcome.status != "timeout":
            return False
        return self._limits.timed_out(task.key[0], task.args[-1])

    def _compare(self, individuals: Sequence[Individual]) -> None:
        """Evaluate some individuals both ways and keep the decision."""
        earlier = self._remembered()
        if earlier.get("mode") in _MODES:
            self._keep_decision(earlier["mode"], str(earlier["why"]))
            return
        whole, parts = self._description.whole, self._description.units
        compared = 0
        remaining = list(individuals)
        outcomes: list[tuple[Unit, Outcome]] = []
        while remaining and compared < COMPARED:
            batch = [remaining.pop(0) for _ in range(min(COMPARED - compared, len(remaining)))]
            found = self._evaluate(0, [(u, i) for i in batch for u in (whole, *parts)])
            outcomes += [(u, found[u.name, i]) for i in batch for u in (whole, *parts)]
            for individual in batch:
                both = found[whole.name, individual]
                if self._is_worthless(whole, both):
                    continue
                for unit in parts:
                    alone = found[unit.name, individual]
                    expected = [both.scores[index] for index in unit.objectives]
                    if pack_floats(alone.scores) != pack_floats(expected):
                        self._decide("whole", f"unit {unit.name} alone gives other scores")
                        return
                compared += 1
        if not compared:
            self._refuse_nonsense(outcomes)
            self._decide("whole", "no individual could be evaluated whole, so none was compared")
            return
        self._decide(
            "split",
            f"{compared} individual{'s'[: compared != 1]} gave the same bits whole and by units",
        )

    def _decide(self, mode: str, why: str) -> None:
        self._keep_decision(mode, why)
        if self._decision_file is not None:
            durations = self._store.durations()
            decision = {"mode": mode, "why": why, "durations": durations}
            remember(self._decision_file, decision)

    def _keep_decision(self, mode: str, why: str) -> None:
        self._store.set_note("units_why", why)
        self._store.set_note("units", mode)
        log = logger.info if mode == "split" else logger.warning
        log("individuals are evaluated %s: %s", _MODES[mode], why)

    def _remembered(self) -> dict[str, Any]:
        """Return what an earlier run on this machine decided; nothing if there was none."""
        return (self._decision_file and recall(self._decision_file)) or {}

    def _remembered_durations(self) -> dict[str, float]:
        """Return mean durations from an earlier run on this machine [s]."""
        known = self._remembered().get("durations", {})
        return {unit: mean for unit, (mean, _longest) in known.items()}

    def _warn(self, unit: str, outcome: Outcome) -> None:
        """Say what went wrong with a unit, each cause once."""
        told = unit, failures.in_short(outcome)
        if told in self._said:
            return
        self._said.add(told)
        logger.warning("unit %s: %s", *told)
        if outcome.traceback and debugging():
            logger.warning("%s", outcome.traceback)

    def _refuse_nonsense(self, outcomes: Sequence[tuple[Unit, Outcome]]) -> None:
        """Stop when nothing at all works: an optimisation of penalties helps nobody."""
        if self._allow_failing or not outcomes:
            return
        if all(self._is_worthless(unit, outcome) for unit, outcome in outcomes):
            raise failures.nothing_works([outcome for _, outcome in outcomes])

    def _refuse_failing(
        self,
        units: Sequence[Unit],
        individuals: Sequence[Individual],
        found: Mapping[tuple[str, Individual], Outcome],
    ) -> None:
        """Stop when an objective raises for every individual of the first generation."""
        if self._allow_failing:
            return
        for unit in units:
            outcomes = [found[unit.name, individual] for individual in individuals]
            names = [self._description.objectives[index] for index in unit.objectives]
            penalties = [self._description.penalties[index] for index in unit.objectives]
            failures.refuse_always_failing(unit.name, names, penalties, outcomes)

    def _is_worthless(self, unit: Unit, outcome: Outcome) -> bool:
        """Tell whether an outcome is nothing but penalties of what failed."""
        penalties = [self._description.penalties[index] for index in unit.objectives]
        return outcome.status != "ok" and pack_floats(outcome.scores) == pack_floats(penalties)


def _bits(outcome: Outcome) -> tuple[str, bytes]:
    return outcome.status, pack_floats(outcome.scores)
