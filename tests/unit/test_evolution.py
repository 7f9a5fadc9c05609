"""The evolution's course is BluePyOpt's own, bit for bit."""

from __future__ import annotations

import math
import pickle
import random
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bluepyopt
import pytest
from bluepyopt.deapext.optimisations import DEAPOptimisation

from neurofleet.engine.outcome import Description, Parameter
from neurofleet.errors import UsageError
from neurofleet.evolution import Settings, State, evolve
from neurofleet.units import WHOLE, Unit

#: BluePyOpt leaves its checkpoint files open.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

NAMES = ("x", "y", "z")
OBJECTIVES = ("left", "right", "wave")


def score(parameters: Sequence[float]) -> list[float]:
    x, y, z = parameters
    return [math.hypot(x + 1, y), math.hypot(x - 1, y - 1), math.sin(x * y * z) ** 2]


class Distances(bluepyopt.evaluators.Evaluator):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(
            objectives=[bluepyopt.objectives.Objective(name) for name in OBJECTIVES],
            params=[bluepyopt.parameters.Parameter(name, bounds=(-2.0, 3.0)) for name in NAMES],
        )
        self.param_names = list(NAMES)

    def init_simulator_and_evaluate_with_lists(self, params: Sequence[float]) -> list[float]:
        return score(params)


WHOLE_UNIT = Unit(WHOLE, (), (0, 1, 2))
DESCRIPTION = Description(
    parameters=tuple(Parameter(name, -2.0, 3.0) for name in NAMES),
    objectives=OBJECTIVES,
    penalties=(250.0,) * 3,
    whole=WHOLE_UNIT,
    units=(WHOLE_UNIT,),
    versions={},
)


def course(population: Any, hof: Any, logbook: Any, history: Any) -> dict[str, Any]:
    """Everything that an evolution decides, bit for bit."""

    def bits(individuals: Any) -> list[tuple[list[str], list[str]]]:
        return [
            ([float(v).hex() for v in one], [float(v).hex() for v in one.fitness.values])
            for one in individuals
        ]

    return {
        "population": bits(population),
        "halloffame": bits(hof),
        "logbook": [{name: float(row[name]).hex() for name in row} for row in logbook],
        "table": str(logbook),
        "history": bits(history.genealogy_history.values()),
        "tree": history.genealogy_tree,
    }


def upstream(settings: Settings, generations: int, **run: Any) -> dict[str, Any]:
    optimisation = DEAPOptimisation(
        evaluator=Distances(),
        seed=settings.seed,
        eta=settings.eta,
        mutpb=settings.mutpb,
        cxpb=settings.cxpb,
        selector_name=settings.selector,
    )
    found = optimisation.run(
        max_ngen=generations, offspring_size=settings.offspring_size, **run
    )  # fmt: skip
    return {**course(*found), "generator": random.getstate()}


def all_scores(_generation: int, individuals: Sequence[Sequence[float]]) -> list[list[float]]:
    return [score(one) for one in individuals]


def ours(settings: Settings, generations: int, **more: Any) -> dict[str, Any]:
    more = {"scores": all_scores, "after_generation": lambda _state: None, **more}
    state = evolve(settings, DESCRIPTION, max_ngen=generations, **more)
    found = course(state.population, state.halloffame, state.logbook, state.history)
    return {**found, "generator": random.getstate()}


@pytest.mark.parametrize("selector", ["IBEA", "NSGA2"])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 16])
def test_evolution_any_size_and_selector_is_upstreams(selector: str, size: int) -> None:
    settings = Settings(seed=size, offspring_size=size, selector=selector)
    assert ours(settings, 6) == upstream(settings, 6)


@pytest.mark.parametrize(
    "settings",
    [
        Settings("42", 6),
        Settings("a text", 6),
        Settings(0, 6),
        Settings(-1, 6),
        Settings(3, 6, eta=0.5),
        Settings(3, 6, mutpb=0.3, cxpb=0.7),
        Settings(3, 6, mutpb=0.0, cxpb=0.0),
        Settings(3, 6, mutpb=0.0, cxpb=0.0, selector="NSGA2"),
    ],
    ids=str,
)
def test_evolution_any_settings_are_upstreams(settings: Settings) -> None:
    assert ours(settings, 5) == upstream(settings, 5)


def test_evolution_seed_as_text_is_another_seed_than_the_number() -> None:
    assert ours(Settings("42", 4), 2) != ours(Settings(42, 4), 2)


def test_evolution_scores_that_draw_random_numbers_do_not_change_it() -> None:
    def greedy(generation: int, individuals: Sequence[Sequence[float]]) -> list[list[float]]:
        random.seed(generation)
        random.random()
        return all_scores(generation, individuals)

    settings = Settings(5, 4)
    assert ours(settings, 4, scores=greedy) == upstream(settings, 4)


def where(condition: float, odd: float, usual: float) -> float:
    return odd if condition > 0 else usual


@pytest.mark.parametrize("selector", ["IBEA", "NSGA2"])
@pytest.mark.parametrize(
    "scored",
    [
        lambda _p: [250.0] * 3,
        lambda _p: [0.0] * 3,
        lambda _p: [math.inf] * 3,
        lambda _p: [math.nan] * 3,
        lambda p: [where(p[0], math.nan, p[0] ** 2), p[1] ** 2, 1.0],
        lambda p: [where(p[0], math.inf, p[0] ** 2), p[1] ** 2, 1.0],
        lambda p: [where(p[0], math.nan, math.inf), where(p[1], -math.inf, 1.0), 1.0],
        lambda p: [1e308, 1e308, p[0]],
    ],
    ids=["penalty", "zero", "inf", "nan", "some-nan", "some-inf", "all-kinds", "huge"],
)
def test_evolution_of_any_scores_is_upstreams_and_warns_of_nothing(
    scored: Callable[[Sequence[float]], list[float]],
    selector: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(globals(), "score", scored)
    settings = Settings(5, 4, selector)
    found = ours(settings, 4)  # a warning is an error here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        expected = upstream(settings, 4)
    assert repr(found) == repr(expected)  # a NaN is not equal to itself


def test_evolution_asks_once_for_each_new_individual_by_generation() -> None:
    asked: list[tuple[int, int]] = []

    def scores(generation: int, individuals: Sequence[Sequence[float]]) -> list[list[float]]:
        asked.append((generation, len(individuals)))
        return all_scores(generation, individuals)

    ours(Settings(5, 4), 3, scores=scores)
    assert asked == [(1, 4), (2, 4), (3, 4)]


def test_evolution_tells_the_state_after_every_generation_from_the_first() -> None:
    states: list[dict[str, Any]] = []
    keep = lambda state: states.append(pickle.loads(pickle.dumps(state.as_dict())))  # noqa: E731
    ours(Settings(5, 4), 3, after_generation=keep)
    assert [state["generation"] for state in states] == [1, 2, 3]
    assert [len(state["logbook"]) for state in states] == [1, 2, 3]
    assert [len(state["population"]) for state in states] == [4, 8, 8]
    assert set(states[0]) == set(State.__dataclass_fields__)


@pytest.mark.parametrize("selector", ["IBEA", "NSGA2"])
def test_checkpoint_of_any_generation_is_upstreams(tmp_path: Path, selector: str) -> None:
    settings = Settings(9, 5, selector)
    states: list[dict[str, Any]] = []
    keep = lambda state: states.append(pickle.loads(pickle.dumps(state.as_dict())))  # noqa: E731
    ours(settings, 4, after_generation=keep)
    for generations in (2, 3, 4):
        path = tmp_path / f"{generations}.pkl"
        upstream(settings, generations, cp_filename=str(path))
        theirs, mine = pickle.loads(path.read_bytes()), states[generations - 1]
        parts = "population", "halloffame", "logbook", "history"
        assert course(*(mine[p] for p in parts)) == course(*(theirs[p] for p in parts))
        rest = "generation", "rndstate", "param_names", "parents"
        assert [mine[name] for name in rest] == [theirs[name] for name in rest]


@pytest.mark.parametrize("selector", ["IBEA", "NSGA2"])
@pytest.mark.parametrize("size", [2, 5])
def test_resume_from_upstreams_checkpoint_goes_on_as_upstream_does(
    tmp_path: Path, selector: str, size: int
) -> None:
    settings = Settings(11, size, selector)
    path = tmp_path / "cp.pkl"
    upstream(settings, 3, cp_filename=str(path))
    kept = path.read_bytes()
    expected = upstream(settings, 7, cp_filename=str(path), continue_cp=True)
    assert ours(settings, 7, resume=pickle.loads(kept)) == expected


def test_resume_of_our_checkpoint_is_read_by_upstream(tmp_path: Path) -> None:
    settings = Settings(11, 4)
    states: list[dict[str, Any]] = []
    keep = lambda state: states.append(pickle.loads(pickle.dumps(state.as_dict())))  # noqa: E731
    ours(settings, 3, after_generation=keep)
    path = tmp_path / "cp.pkl"
    path.write_bytes(pickle.dumps({**states[2], "neurofleet": {}}))
    expected = ours(settings, 6, resume=pickle.loads(path.read_bytes()))
    assert upstream(settings, 6, cp_filename=str(path), continue_cp=True) == expected


def test_resume_when_nothing_is_left_computes_no_generation(tmp_path: Path) -> None:
    settings = Settings(11, 4)
    path = tmp_path / "cp.pkl"
    upstream(settings, 4, cp_filename=str(path))
    told: list[Any] = []
    found = ours(settings, 4, resume=pickle.loads(path.read_bytes()), after_generation=told.append)
    assert told == []
    assert len(found["logbook"]) == 4


@pytest.mark.parametrize(
    "wrong",
    [{"offspring_size": 0}, {"offspring_size": -3}, {"mutpb": 1.1}, {"cxpb": -0.1}, {"eta": 0},
     {"eta": math.nan}, {"mutpb": math.nan}, {"eta": math.inf}],
    ids=str,
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(UsageError, match=f"^--{name.replace('_', '-')} must be "):
        Settings(**wrong)
