"""What an optimisation goes on from: its store, its checkpoint, or BluePyOpt's."""

from __future__ import annotations

import importlib.util
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
from bluepyopt.deapext.optimisations import DEAPOptimisation

from neurofleet import checkpoint
from neurofleet.backends.choice import EngineChoice
from neurofleet.engine import host_cache
from neurofleet.errors import RunDirectoryError
from neurofleet.evolution import Settings, State
from neurofleet.farm import FarmState
from neurofleet.findings import Findings
from neurofleet.optimise import Result, optimise
from neurofleet.request import Request
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
