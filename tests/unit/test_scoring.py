"""Scores come from the store where they are, and a model is split only if it may be."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from neurofleet.engine.outcome import Description, Outcome, Parameter
from neurofleet.errors import WorkloadFailed
from neurofleet.farm import Farm, Task
from neurofleet.measured_limit import FIRST_S, MOST_FIRST_S
from neurofleet.scoring import (
    COMPARED,
    LEAST_LIMIT_S,
    LIMIT_FACTOR,
    Progress,
    Scoring,
)
from neurofleet.store import Store, pack_floats, unpack_floats
from neurofleet.units import WHOLE, Unit

DESCRIPTION = Description(
    parameters=(Parameter("x", 0.0, 1.0),),
    objectives=("b1", "a1", "b2"),
    penalties=(250.0,) * 3,
    whole=Unit(WHOLE, ("a", "b"), (0, 1, 2)),
    units=(Unit("a", ("a",), (1,)), Unit("b", ("b",), (0, 2))),
    versions={"neuron": "1", "bluepyopt": "1", "efel": "1"},
)
UNITS = {unit.name: unit for unit in (DESCRIPTION.whole, *DESCRIPTION.units)}
Evaluate = Callable[[str, tuple[float, ...]], Outcome]


def outcome(scores: Iterable[float], status: str = "ok", duration_s: float = 1.0) -> Outcome:
    reason = "" if status == "ok" else "it broke"
    return Outcome(status, tuple(scores), reason, 1.0, duration_s, "here", 1)


def honest(unit: str, individual: tuple[float, ...]) -> Outcome:
    """Score objective i by x + i, whichever way it is asked for."""
    return outcome(individual[0] + index for index in UNITS[unit].objectives)


class CountingFarm:
    """Evaluates in place, and remembers what it was given."""

    size = 1

    def __init__(self, evaluate: Evaluate) -> None:
        self.evaluate = evaluate
        self.tasks: list[Task] = []
        self.closed = 0

    def open(self) -> None: ...

    def run(self, tasks: Iterable[Task], on_result: Callable[[Task, Any], None]) -> None:
        for task in sorted(tasks, key=lambda task: -task.weight):
            self.tasks.append(task)
            assert unpack_floats(task.args[-2]) == task.key[1]
            on_result(task, self.evaluate(*task.key))

    def close(self) -> None:
        self.closed += 1

    def given(self) -> list[str]:
        return [task.key[0] for task in self.tasks]


def scoring(store: Store, farm: Farm, **more: Any) -> Scoring:
    return Scoring("d" * 64, DESCRIPTION, store, lambda: farm, **more)


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store(tmp_path, "d" * 64, DESCRIPTION.versions) as opened:
        yield opened


INDIVIDUALS = [(0.1,), (0.2,), (0.3,), (0.4,)]
EXPECTED = [[x, x + 1, x + 2] for (x,) in INDIVIDUALS]


def test_score_units_that_agree_are_split_and_put_in_the_evaluators_order(store: Store) -> None:
    farm = CountingFarm(honest)
    subject = scoring(store, farm)
    assert subject.score(1, INDIVIDUALS) == EXPECTED
    assert store.note("units") == "split"
    assert farm.given().count(WHOLE) == COMPARED
    assert farm.given().count("a") == farm.given().count("b") == 4  # compared ones not twice


def test_score_again_asks_the_farm_for_nothing(store: Store) -> None:
    scoring(store, CountingFarm(honest)).score(1, INDIVIDUALS)
    farm = CountingFarm(honest)
    subject = scoring(store, farm)
    assert subject.score(1, INDIVIDUALS) == EXPECTED
    assert (farm.tasks, subject.simulated, subject.from_store) == ([], 0, 8)


def test_score_same_individual_twice_in_a_generation_is_simulated_once(store: Store) -> None:
    farm = CountingFarm(honest)
    found = scoring(store, farm).score(1, [(0.1,), (0.1,), (0.2,), (0.1,)])
    assert found == [EXPECTED[0], EXPECTED[0], EXPECTED[1], EXPECTED[0]]
    assert len({task.key for task in farm.tasks}) == len(farm.tasks)


@pytest.mark.parametrize(
    "alone", [lambda x: math.nextafter(x, 9), lambda x: math.nan, lambda x: -x], ids=str
)
def test_score_one_differing_bit_makes_the_individual_the_unit(
    store: Store, alone: Callable[[float], float]
) -> None:
    def entangled(unit: str, individual: tuple[float, ...]) -> Outcome:
        found = honest(unit, individual)
        if unit != "b" or individual != INDIVIDUALS[1]:
            return found
        return found._replace(scores=(found.scores[0], alone(found.scores[1])))

    subject = scoring(store, CountingFarm(entangled))
    assert subject.score(1, INDIVIDUALS) == EXPECTED  # the whole individual's, upstream's
    assert subject.units == (DESCRIPTION.whole,)
    assert "unit b" in subject.why


def test_score_minus_zero_alone_is_a_difference(store: Store) -> None:
    def zero(unit: str, individual: tuple[float, ...]) -> Outcome:
        sign = 1.0 if unit == WHOLE else -1.0
        return outcome(sign * 0.0 for _ in UNITS[unit].objectives)

    subject = scoring(store, CountingFarm(zero))
    subject.score(1, INDIVIDUALS)
    assert subject.units == (DESCRIPTION.whole,)


def test_score_decision_is_kept_for_the_next_run(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "decision.json"
    scoring(store, CountingFarm(honest), decision_file=file).score(1, INDIVIDUALS)
    (tmp_path / "other").mkdir()
    farm = CountingFarm(honest)
    with Store(tmp_path / "other", "d" * 64, DESCRIPTION.versions) as other:
        scoring(other, farm, decision_file=file).score(1, INDIVIDUALS)
    assert WHOLE not in farm.given()


@pytest.mark.parametrize(
    "damage",
    [lambda _: "", lambda _: "{}", lambda _: "[]", lambda _: "null",
     lambda _: '{"mode": "sideways", "why": "?"}', lambda text: text.replace("split", "whole"),
     lambda text: text[:-1], lambda text: text.replace("1", "2", 1)],
)  # fmt: skip
def test_score_damaged_decision_of_this_machine_is_decided_anew(
    store: Store, tmp_path: Path, damage: Callable[[str], str]
) -> None:
    file = tmp_path / "decision.json"
    (tmp_path / "earlier").mkdir()
    with Store(tmp_path / "earlier", "d" * 64, DESCRIPTION.versions) as earlier:
        scoring(earlier, CountingFarm(honest), decision_file=file).score(1, INDIVIDUALS)
    kept = file.read_text()
    file.write_text(damage(kept))
    assert file.read_text() != kept
    subject = scoring(store, CountingFarm(honest), decision_file=file)
    assert subject.score(1, INDIVIDUALS) == EXPECTED
    assert subject.units == DESCRIPTION.units


def test_score_damaged_note_in_the_store_is_decided_anew(store: Store) -> None:
    scoring(store, CountingFarm(honest)).score(1, INDIVIDUALS)
    store.set_note("units", "sp1it")
    farm = CountingFarm(honest)
    subject = scoring(store, farm)
    assert subject.score(1, INDIVIDUALS) == EXPECTED
    assert farm.tasks == []  # all that is compared is in the store
    assert store.note("units") == "split"


def test_score_penalty_of_a_unit_is_counted_and_does_not_stop_the_rest(store: Store) -> None:
    def crashing(unit: str, individual: tuple[float, ...]) -> Outcome:
        if individual == (0.4,) and unit == "a":
            return outcome([250.0], "crashed")
        return honest(unit, individual)

    seen: list[Progress] = []
    subject = scoring(store, CountingFarm(crashing), watch=seen.append)
    found = subject.score(1, INDIVIDUALS)
    assert found[3] == [0.4, 250.0, 2.4]
    assert found[:3] == EXPECTED[:3]
    assert subject.penalised == 1
    assert [p.unit for p in seen if p.outcome is not None and p.outcome.status != "ok"] == ["a"]
    assert (seen[-1].units_done, seen[-1].units_total) == (8, 8)


def test_score_model_in_which_nothing_works_is_refused(store: Store) -> None:
    def broken(unit: str, _individual: tuple[float, ...]) -> Outcome:
        return outcome([250.0] * len(UNITS[unit].objectives), "crashed")

    with pytest.raises(WorkloadFailed, match="no unit of any individual could be evaluated"):
        scoring(store, CountingFarm(broken)).score(1, INDIVIDUALS)


def raising(unit: str, individual: tuple[float, ...]) -> Outcome:
    """Have objective a1 raise for everybody, as a feature that is misspelt does."""
    found = honest(unit, individual)
    indices = UNITS[unit].objectives
    if 1 not in indices:
        return found
    scores = [250.0 if i == 1 else s for i, s in zip(indices, found.scores, strict=True)]
    reason = "objective a1: RuntimeError: Unknown feature name: AP_amplitud"
    return found._replace(status="raised", scores=tuple(scores), reason=reason)


def test_score_objective_that_raises_for_all_of_the_first_generation_stops_and_keeps_scores(
    store: Store,
) -> None:
    for _ in range(2):  # what goes on from the store decides the same
        with pytest.raises(WorkloadFailed, match="objective a1 raises for every individual"):
            scoring(store, CountingFarm(raising)).score(1, INDIVIDUALS)
    farm = CountingFarm(raising)
    found = scoring(store, farm, allow_failing=True).score(1, INDIVIDUALS)
    assert [scores[1] for scores in found] == [250.0] * 4
    assert farm.tasks == []


def test_score_objective_that_raises_for_all_of_a_later_generation_goes_on(store: Store) -> None:
    scoring(store, CountingFarm(honest)).score(1, INDIVIDUALS)
    found = scoring(store, CountingFarm(raising)).score(2, [(0.7,), (0.8,)])
    assert [scores[1] for scores in found] == [250.0] * 2


def test_score_units_that_fail_alike_are_warned_of_once(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    scoring(store, CountingFarm(raising), allow_failing=True).score(1, INDIVIDUALS)
    told = [record.message for record in caplog.records if "raises" not in record.message]
    cause = "objective a1: RuntimeError: Unknown feature name: AP_amplitud"
    assert [line for line in told if cause in line] == [f"unit whole: {cause}", f"unit a: {cause}"]


def test_score_that_is_nan_comes_back_from_the_store_bit_for_bit(store: Store) -> None:
    odd = unpack_floats(bytes.fromhex("010000000000f87f000000000000f0ff000000000000f0ff"))

    def not_a_number(unit: str, _individual: tuple[float, ...]) -> Outcome:
        return outcome(odd[index] for index in UNITS[unit].objectives)

    first = scoring(store, CountingFarm(not_a_number)).score(1, INDIVIDUALS)
    farm = CountingFarm(honest)
    again = scoring(store, farm).score(1, INDIVIDUALS)
    assert farm.tasks == []
    assert [pack_floats(scores) for scores in again] == [pack_floats(scores) for scores in first]
    assert pack_floats(again[0]) == pack_floats(odd)
    assert store.note("units") == "split"


def test_task_limit_and_weight_follow_what_was_measured(store: Store) -> None:
    def timed(unit: str, individual: tuple[float, ...]) -> Outcome:
        return honest(unit, individual)._replace(duration_s={"a": 2.0, "b": 9.0}.get(unit, 11.0))

    farm = CountingFarm(timed)
    subject = scoring(store, farm)
    subject.score(1, INDIVIDUALS)
    assert {task.args[-1] for task in farm.tasks[:2]} == {FIRST_S}
    farm.tasks.clear()
    subject.score(2, [(0.5,), (0.6,)])
    assert farm.given() == ["b", "b", "a", "a"]  # the longest first
    assert [task.args[-1] for task in farm.tasks] == [
        *[LIMIT_FACTOR * 9.0] * 2, *[max(LEAST_LIMIT_S, LIMIT_FACTOR * 2.0)] * 2,
    ]  # fmt: skip


def test_unit_that_hangs_first_is_given_up_by_the_first_that_ends(store: Store) -> None:
    """One engine, so that what is drawn later knows what has ended before."""
    begun: list[tuple[str, float]] = []

    def work(task: Task) -> Outcome:
        (unit, individual), limit_s = task.key, task.args[-1]
        begun.append((unit, limit_s))
        if individual == INDIVIDUALS[0] and unit == "a":
            return outcome([250.0], "timeout", limit_s)
        return honest(unit, individual)

    class InTurn(CountingFarm):
        def run(self, tasks: Iterable[Task], on_result: Callable[[Task, Any], None]) -> None:
            for task in tasks:
                on_result(task, work(task))

    store.set_note("units", "split")
    found = scoring(store, InTurn(honest)).score(1, INDIVIDUALS)
    assert found == [[0.1, 250.0, 2.1], *EXPECTED[1:]]
    limits = [limit for unit, limit in begun if unit == "a"]
    assert limits == [FIRST_S, 2 * FIRST_S, *[LEAST_LIMIT_S] * 2], "no second try: others ended"
    kept = store.get("a", INDIVIDUALS[0])
    assert kept is not None
    assert kept.status == "timeout"


def test_unit_longer_than_the_first_limit_is_tried_again_with_more(store: Store) -> None:
    def slow(unit: str, individual: tuple[float, ...]) -> Outcome:
        takes_s = 3 * FIRST_S
        limit_s = farm.tasks[-1].args[-1]
        if limit_s < takes_s:
            return outcome([250.0] * len(UNITS[unit].objectives), "timeout", limit_s)
        return honest(unit, individual)._replace(duration_s=takes_s)

    store.set_note("units", "split")
    farm = CountingFarm(slow)
    subject = scoring(store, farm)
    assert subject.score(1, INDIVIDUALS) == EXPECTED
    assert subject.penalised == 0
    assert subject.simulated == 8, "a try that counts for nothing is no simulated unit"


def test_unit_that_hangs_with_all_of_its_kind_is_given_up_in_the_end(store: Store) -> None:
    def hanging(unit: str, individual: tuple[float, ...]) -> Outcome:
        if unit == "a":
            return outcome([250.0], "timeout", farm.tasks[-1].args[-1])
        return honest(unit, individual)

    store.set_note("units", "split")
    farm = CountingFarm(hanging)
    subject = scoring(store, farm)
    assert [scores[1] for scores in subject.score(1, INDIVIDUALS)] == [250.0] * 4
    assert max(task.args[-1] for task in farm.tasks) == MOST_FIRST_S
    assert subject.penalised == 4


def test_task_limit_that_was_asked_for_holds(store: Store) -> None:
    farm = CountingFarm(honest)
    scoring(store, farm, unit_limit_s=7.5).score(1, INDIVIDUALS)
    assert {task.args[-1] for task in farm.tasks} == {7.5}


def test_score_broken_off_keeps_what_was_scored(store: Store) -> None:
    calls = 0

    def interrupted(unit: str, individual: tuple[float, ...]) -> Outcome:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return honest(unit, individual)

    with pytest.raises(KeyboardInterrupt):
        scoring(store, CountingFarm(interrupted)).score(1, INDIVIDUALS)
    farm = CountingFarm(honest)
    assert scoring(store, farm).score(1, INDIVIDUALS) == EXPECTED
    assert len(farm.tasks) == 2 * 4 + COMPARED - 4


def test_close_closes_the_farm_once_and_only_if_it_was_opened(store: Store) -> None:
    farm = CountingFarm(honest)
    subject = scoring(store, farm)
    subject.close()
    assert farm.closed == 0
    subject.score(1, INDIVIDUALS)
    subject.close()
    subject.close()
    assert farm.closed == 1


def test_parameters_travel_bit_for_bit(store: Store) -> None:
    farm = CountingFarm(honest)
    odd = [(5e-324,), (-0.0,), (0.1 + 0.2,)]
    scoring(store, farm).score(1, odd)
    sent = {task.args[-2] for task in farm.tasks}
    assert sent == {pack_floats(individual) for individual in odd}


# -- units that are scored twice -----------------------------------------------------


class Hosts(CountingFarm):
    """Two hosts; the second one's memory is at fault."""

    def __init__(self, wrong: str = "b") -> None:
        super().__init__(honest)
        self.wrong = wrong
        self.again: list[Task] = []

    def run(self, tasks: Iterable[Task], on_result: Callable[[Task, Any], None]) -> None:
        for number, task in enumerate(tasks):
            host = ("a", "b")[number % 2]
            if task.not_on:
                self.again.append(task)
                host = {"a": "b", "b": "a"}[task.not_on]
            on_result(task, self.scored_on(host, task))

    def scored_on(self, host: str, task: Task) -> Outcome:
        right = honest(*task.key[:2])._replace(host=host)
        if host != self.wrong:
            return right
        return right._replace(scores=tuple(math.nextafter(s, 9) for s in right.scores))


def decided(store: Store) -> None:
    store.set_note("units", "split")


def test_verify_scores_so_many_units_again_on_another_host(store: Store) -> None:
    decided(store)
    farm = Hosts(wrong="nobody")
    subject = scoring(store, farm, verify=3)
    assert subject.score(1, INDIVIDUALS) == EXPECTED
    assert (len(farm.again), subject.verified, subject.simulated) == (3, 3, 8)
    assert subject.score(1, INDIVIDUALS) == EXPECTED
    assert len(farm.again) == 3, "what comes from the store is not scored again"


def test_verify_leaves_the_evolutions_generator_alone(store: Store) -> None:
    decided(store)
    before = random.getstate()
    scoring(store, Hosts(wrong="nobody"), verify=3).score(1, INDIVIDUALS)
    assert random.getstate() == before


@pytest.mark.parametrize("wrong", ["a", "b"])
def test_verify_names_the_host_that_differs_from_the_other_and_from_here(
    store: Store, wrong: str
) -> None:
    decided(store)
    subject = scoring(store, Hosts(wrong), verify=1, score_here=lambda task: honest(*task.key[:2]))
    with pytest.raises(WorkloadFailed, match=f"^{wrong} scores unit") as told:
        subject.score(1, INDIVIDUALS)
    assert f"--without-host {wrong}" in told.value.remedy


def test_verify_model_that_draws_at_random_is_told_as_such(store: Store) -> None:
    decided(store)
    different = iter(range(100))
    subject = scoring(
        store,
        Hosts(),
        verify=1,
        score_here=lambda task: outcome([float(next(different)) + 0.5]),
    )
    with pytest.raises(WorkloadFailed, match="scores differently each time"):
        subject.score(1, INDIVIDUALS)
