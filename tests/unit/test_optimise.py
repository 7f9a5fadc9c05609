"""What an optimisation goes on from: its store, its checkpoint, or BluePyOpt's."""

from __future__ import annotations

import importlib.util
import math
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
from bluepyopt.deapext.optimisations import DEAPOptimisation

from neurofleet import checkpoint, engines_for_model
from neurofleet.backends.choice import EngineChoice
from neurofleet.engine import host_cache
from neurofleet.errors import RunDirectoryError, WorkloadFailed
from neurofleet.evolution import Settings, State
from neurofleet.farm import FarmState
from neurofleet.findings import Findings
from neurofleet.optimise import Result, optimise
from neurofleet.request import Request
from neurofleet.rundir import RunDirectory
from neurofleet.scoring import Progress
from unit.support import CREATE, snapshot, write_model

#: BluePyOpt leaves its checkpoint files open.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.timeout(60),
]


class Silent:
    def __init__(self) -> None:
        self.generations: list[int] = []

    def says(self, text: str) -> None: ...

    def farm(self, state: FarmState) -> None: ...

    def progress(self, progress: Progress) -> None: ...

    def generation(self, state: State, _found: Findings) -> None:
        self.generations.append(state.generation)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


def run(model: Path, where: str, generations: int = 3, view: Any = None, **more: Any) -> Result:
    request = Request(
        "test", model, CREATE, Settings(42, 4), generations, EngineChoice("serial"),
        run_dir=model.parent / where, report=False, **more,
    )  # fmt: skip
    return optimise(request, view or Silent())


def upstream(
    model: Path, path: Path, generations: int, *, go_on: bool = False, seed: int = 42
) -> dict[str, Any]:
    """Run BluePyOpt's own optimisation of the same model; return its checkpoint."""
    found = importlib.util.spec_from_file_location("upstreams_evaluator", model / "evaluator.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    evaluator = module.create()
    evaluator.param_names = ["x", "y"]
    evaluator.init_simulator_and_evaluate_with_lists = evaluator.evaluate_with_lists
    DEAPOptimisation(evaluator=evaluator, seed=seed).run(
        max_ngen=generations, offspring_size=4, cp_filename=str(path), continue_cp=go_on
    )
    state: dict[str, Any] = pickle.loads(path.read_bytes())
    return state


def bits(individuals: Any) -> list[tuple[list[float], tuple[float, ...]]]:
    return [(list(one), tuple(one.fitness.values)) for one in individuals]


def same(state: State, expected: dict[str, Any]) -> bool:
    return (
        bits(state.population) == bits(expected["population"])
        and bits(state.halloffame) == bits(expected["halloffame"])
        and [dict(row) for row in state.logbook] == [dict(row) for row in expected["logbook"]]
        and state.rndstate == expected["rndstate"]
    )


def test_optimise_is_upstreams_own_run(model: Path, tmp_path: Path) -> None:
    view = Silent()
    result = run(model, "run", view=view)
    assert same(result.state, upstream(model, tmp_path / "cp.pkl", 3))
    assert view.generations == [1, 2, 3]
    written = pickle.loads((tmp_path / "run" / "checkpoint.pkl").read_bytes())
    assert same(result.state, written)


def test_optimise_leaves_the_callers_directory_and_path_as_they_were(model: Path) -> None:
    import sys

    before = Path.cwd(), list(sys.path), list(sys.argv)
    run(model, "run", 1)
    assert (Path.cwd(), list(sys.path), list(sys.argv)) == before


def test_continue_nothing_is_refused(model: Path) -> None:
    with pytest.raises(
        RunDirectoryError, match=r"nothing to continue.*Leave --continu out"
    ) as caught:
        run(model, "run", go_on=True)
    assert caught.value.exit_code == 2


def test_continue_a_run_replays_its_store(model: Path) -> None:
    run(model, "run", 2)
    (model.parent / "run" / "checkpoint.pkl").unlink()
    result = run(model, "run", 4, go_on=True)
    assert result.from_store >= 8
    assert same(result.state, upstream(model, model.parent / "cp.pkl", 4))


def test_start_on_a_checkpoint_of_bluepyopts_is_refused_and_it_is_not_changed(
    model: Path, tmp_path: Path
) -> None:
    upstream(model, tmp_path / "cp.pkl", 3)
    before = (tmp_path / "cp.pkl").read_bytes()
    with pytest.raises(RunDirectoryError, match=r"written by BluePyOpt itself.*--continu"):
        run(model, "run", 5, checkpoint=tmp_path / "cp.pkl")
    assert (tmp_path / "cp.pkl").read_bytes() == before


def test_continue_a_checkpoint_of_bluepyopts_goes_on_as_bluepyopt_does(
    model: Path, tmp_path: Path
) -> None:
    upstream(model, tmp_path / "cp.pkl", 3)
    (tmp_path / "theirs.pkl").write_bytes((tmp_path / "cp.pkl").read_bytes())
    expected = upstream(model, tmp_path / "theirs.pkl", 6, go_on=True)
    result = run(model, "run", 6, checkpoint=tmp_path / "cp.pkl", go_on=True)
    assert same(result.state, expected)
    assert same(result.state, pickle.loads((tmp_path / "cp.pkl").read_bytes()))


@pytest.mark.parametrize("go_on", [False, True])
def test_optimise_after_continuing_a_checkpoint_of_bluepyopts_goes_on_again(
    model: Path, tmp_path: Path, go_on: bool
) -> None:
    # Of another seed than ours: the store alone would replay another evolution.
    upstream(model, tmp_path / "cp.pkl", 3, seed=7)
    first = run(model, "run", 5, checkpoint=tmp_path / "cp.pkl", go_on=True)
    second = run(model, "run", 6, checkpoint=tmp_path / "cp.pkl", go_on=go_on)
    assert len(second.state.logbook) == 6
    assert second.simulated <= 4
    assert first.simulated > second.simulated
    upstream(model, tmp_path / "theirs.pkl", 3, seed=7)
    assert same(second.state, upstream(model, tmp_path / "theirs.pkl", 6, go_on=True))


def test_continue_a_copied_checkpoint_of_ours_elsewhere_goes_on(
    model: Path, tmp_path: Path
) -> None:
    run(model, "one", 3)
    (tmp_path / "copy.pkl").write_bytes((tmp_path / "one" / "checkpoint.pkl").read_bytes())
    view = Silent()
    result = run(model, "two", 5, view=view, checkpoint=tmp_path / "copy.pkl", go_on=True)
    assert view.generations == [4, 5]
    assert same(result.state, upstream(model, tmp_path / "cp.pkl", 5))


@pytest.mark.parametrize("go_on", [False, True])
def test_checkpoint_of_another_models_is_refused_and_not_changed(
    model: Path, tmp_path: Path, go_on: bool
) -> None:
    state = upstream(model, tmp_path / "cp.pkl", 2)
    identity = {"model": "f" * 64, "versions": host_cache.versions(), "settings": {}}
    checkpoint.write(tmp_path / "cp.pkl", state, identity)
    before = snapshot(tmp_path)
    with pytest.raises(RunDirectoryError, match=r"not this run's: it is of model"):
        run(model, "run", checkpoint=tmp_path / "cp.pkl", go_on=go_on)
    after = snapshot(tmp_path)
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("go_on", [False, True])
def test_checkpoint_with_other_parameters_is_refused(
    model: Path, tmp_path: Path, go_on: bool
) -> None:
    state = upstream(model, tmp_path / "cp.pkl", 2)
    (tmp_path / "cp.pkl").write_bytes(pickle.dumps({**state, "param_names": ["x", "z"]}))
    with pytest.raises(RunDirectoryError, match="it has other parameters"):
        run(model, "run", checkpoint=tmp_path / "cp.pkl", go_on=go_on)


def test_optimise_broken_off_anywhere_and_run_again_is_the_same(model: Path) -> None:
    """The view breaks the run off after so many scores; each run goes on from the last."""
    chance = random.Random(5)
    simulated = 0

    class Breaking(Silent):
        def __init__(self, after: int) -> None:
            super().__init__()
            self.left = after

        def progress(self, progress: Progress) -> None:
            nonlocal simulated
            if progress.outcome is not None:
                simulated += 1
                self.left -= 1
                if self.left == 0:
                    raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(model, "run", 8, view=Breaking(chance.randint(1, 9)))
    result = run(model, "run", 8)
    expected = upstream(model, model.parent / "cp.pkl", 8)
    assert same(result.state, expected)
    everybody = {tuple(one) for one in expected["history"].genealogy_history.values()}
    assert simulated + result.simulated == len(everybody)  # nothing twice


def files(directory: Path) -> dict[str, tuple[int, str]]:
    """Everything in a run directory that says what was run."""
    return {name: found for name, found in snapshot(directory).items() if "lock" not in name}


@pytest.mark.parametrize("moved", [False, True], ids=["in-place", "checkpoint-elsewhere"])
def test_fewer_generations_than_there_are_change_nothing(
    model: Path, tmp_path: Path, moved: bool
) -> None:
    run(model, "run", 4)
    before = files(tmp_path)
    more = {"checkpoint": tmp_path / "cp.pkl"} if moved else {}
    with pytest.raises(RunDirectoryError, match=r"has 4 generations; --max-ngen 2 .*fewer") as told:
        run(model, "run", 2, **more)
    assert told.value.exit_code == 2
    assert "--max-ngen of at least 4" in told.value.remedy
    assert files(tmp_path) == before
    assert run(model, "run", 5).state.generation == 5


def test_fewer_generations_than_bluepyopts_checkpoint_has_change_nothing(
    model: Path, tmp_path: Path
) -> None:
    upstream(model, tmp_path / "cp.pkl", 3)
    before = (tmp_path / "cp.pkl").read_bytes()
    with pytest.raises(RunDirectoryError, match="has 3 generations; --max-ngen 2"):
        run(model, "run", 2, checkpoint=tmp_path / "cp.pkl", go_on=True)
    assert (tmp_path / "cp.pkl").read_bytes() == before


def test_replay_leaves_the_checkpoint_of_the_last_generation_until_it_has_more(
    model: Path, tmp_path: Path
) -> None:
    run(model, "run", 4)
    file = tmp_path / "run" / "checkpoint.pkl"
    seen: list[int] = []

    class Looking(Silent):
        def generation(self, state: State, found: Findings) -> None:
            super().generation(state, found)
            seen.append(checkpoint.read(file)["generation"])

    run(model, "run", 5, view=Looking())
    assert seen == [4, 4, 4, 4, 5]


NAN = "return [math.nan if params[0] > 1.0 else params[0] ** 2, params[1] ** 2]"


def test_scores_that_are_nan_are_upstreams_and_said_once_by_name(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", NAN)

    class Listening(Silent):
        def __init__(self) -> None:
            super().__init__()
            self.said: list[str] = []

        def says(self, text: str) -> None:
            self.said.append(text)

    view = Listening()
    result = run(model, "run", 5, view=view)
    expected = upstream(model, tmp_path / "cp.pkl", 5)
    assert repr(bits(result.state.halloffame)) == repr(bits(expected["halloffame"]))
    assert repr(bits(result.state.population)) == repr(bits(expected["population"]))
    assert str(result.state.logbook) == str(expected["logbook"])
    warnings = [line for line in view.said if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "objective first scores NaN or infinite for" in warnings[0]
    assert set(result.found.not_finite) == {"first"}
    everybody = {tuple(one): one for one in expected["history"].genealogy_history.values()}
    sums = [one.fitness.sum for one in everybody.values()]
    assert result.found.not_finite["first"] == sum(map(math.isnan, sums)) > 0
    assert result.found.fitness == min(value for value in sums if not math.isnan(value))
    # Gone on from, and read by the report, it is the same.
    again = run(model, "run", 5)
    assert again.found.not_finite == result.found.not_finite
    assert list(again.found.best) == list(result.found.best)


FAILS = """
class Broken(bluepyopt.ephys.objectives.EFeatureObjective):
    def calculate_score(self, responses):
        if self.name in {failing!r}:
            raise RuntimeError("Unknown feature name: AP_amplitud")
        return responses["v"] * (1 + len(self.name))


class Cell(bluepyopt.ephys.evaluators.CellEvaluator):
    def __init__(self):
        objectives = [Broken(name, []) for name in ("first", "second")]
        calculator = bluepyopt.ephys.objectivescalculators.ObjectivesCalculator(objectives)
        bluepyopt.evaluators.Evaluator.__init__(
            self, objectives, [bluepyopt.parameters.Parameter("x", bounds=(-1.0, 2.0))]
        )
        self.fitness_calculator, self.fitness_protocols = calculator, {{}}
        self.param_names = ["x"]

    def init_simulator_and_evaluate_with_lists(self, params):
        scores = self.fitness_calculator.calculate_scores({{"v": params[0] ** 2}})
        return list(scores.values())


create = Cell
"""


def failing_model(directory: Path, failing: tuple[str, ...]) -> Path:
    directory.mkdir()
    text = "import bluepyopt\nimport bluepyopt.ephys\n" + FAILS.format(failing=failing)
    (directory / "evaluator.py").write_text(text)
    return directory


def test_objective_that_raises_for_all_stops_the_run_unless_failing_is_allowed(
    tmp_path: Path,
) -> None:
    model = failing_model(tmp_path / "model", ("second",))
    words = "objective second raises for every individual of the first generation: RuntimeError"
    with pytest.raises(WorkloadFailed, match=words) as first:
        run(model, "run", 2)
    simulated: list[Progress] = []

    class Counting(Silent):
        def progress(self, progress: Progress) -> None:
            simulated.extend([progress] if progress.outcome else [])

    with pytest.raises(WorkloadFailed) as again:
        run(model, "run", 2, view=Counting())
    assert (str(again.value), simulated) == (str(first.value), [])
    result = run(model, "run", 2, allow_failing=True)
    assert result.from_store >= 4
    assert {one.fitness.values[1] for one in result.state.population} == {250.0}


def test_objective_that_raises_for_none_runs_as_ever(tmp_path: Path) -> None:
    result = run(failing_model(tmp_path / "model", ()), "run", 2)
    assert result.penalised == 0


def test_run_directory_that_does_not_name_a_version_goes_on_and_says_so(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = host_cache.versions()
    with monkeypatch.context() as before:
        older = {name: recorded[name] for name in ("neuron", "bluepyopt", "efel")}
        before.setattr(engines_for_model, "versions_of", lambda _: dict(older))
        first = run(model, "run", 2)
        about = RunDirectory(tmp_path / "run").read_about() or {}
        about["versions"] = older
        RunDirectory(tmp_path / "run").write_about(about)
    monkeypatch.setattr(engines_for_model, "versions_of", lambda _: {**older, "numpy": "9.9"})
    said: list[str] = []
    view = Silent()
    view.says = said.append  # type: ignore[method-assign]
    again = run(model, "run", 2, view=view)
    assert (again.simulated, again.from_store) == (0, first.simulated)
    assert sum("does not say with which numpy it was run" in line for line in said) == 1
    monkeypatch.setattr(engines_for_model, "versions_of", lambda _: {**older, "numpy": "9.8"})
    with pytest.raises(RunDirectoryError, match=r"was run with numpy 9\.9, this is 9\.8"):
        run(model, "run", 2)
