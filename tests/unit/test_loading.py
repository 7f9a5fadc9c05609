"""What is wrong with a model's evaluator is named before anything is simulated."""

from __future__ import annotations

import importlib.metadata
import json
import multiprocessing
import os
import shutil
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

import bluepyopt.ephys  # noqa: F401 - so that the forks need not
import pytest

from neurofleet import engines_for_model
from neurofleet.engine import host_cache, tasks
from neurofleet.engine.loading import _wrong_bounds, load_evaluator
from neurofleet.engine.outcome import Description
from neurofleet.engine.warm_process import without_display
from neurofleet.errors import ModelError, WorkloadFailed
from neurofleet.model import EvaluatorSpec, pack
from neurofleet.units import Unit
from unit.support import write_model

pytestmark = pytest.mark.timeout(90)


def loaded(model: Path, factory: str, **options: Any) -> str:
    """Load an evaluator in a fork; return its objectives, or what was wrong."""
    context = multiprocessing.get_context("fork")
    answer, theirs = context.Pipe(duplex=False)

    def load() -> None:
        os.environ.pop("DISPLAY", None)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            made = load_evaluator(model, EvaluatorSpec(factory, **options))
            theirs.send(" ".join(objective.name for objective in made.objectives))
        except ModelError as error:
            theirs.send(str(error))

    process = context.Process(target=load)
    process.start()
    theirs.close()
    try:
        return str(answer.recv())
    finally:
        process.join(30)


def model_with(directory: Path, more: str) -> Path:
    model = write_model(directory / "model")
    with (model / "evaluator.py").open("a") as file:
        file.write(dedent(more))
    return model


def test_evaluator_that_is_an_object_of_the_module_is_taken(tmp_path: Path) -> None:
    model = model_with(tmp_path, "\nevaluator = create()\nlimit = 4\n")
    assert loaded(model, "evaluator:evaluator") == "first second"
    told = loaded(model, "evaluator:evaluator", kwargs={"params": ["x"]})
    assert "evaluator:evaluator is an evaluator and takes no arguments" in told
    told = loaded(model, "evaluator:limit")
    assert "neither an evaluator nor a callable that returns one: it is of type int" in told


def test_evaluator_that_does_not_exist_is_told_with_what_there_is(tmp_path: Path) -> None:
    model = model_with(tmp_path, "\nready = create()\n\ndef _helper(): pass\n")
    told = loaded(model, "evaluator:make")
    assert told.startswith("evaluator:make does not exist: evaluator has no 'make', it has")
    assert "has create, ready, Model. " in told


@pytest.mark.parametrize(
    ("imported", "told"),
    [
        ("morphio_of_mine", "The package morphio_of_mine is missing where the model is evaluated"),
        ("channels", "It is in 'code' of the model: name that with --search"),
        ("numpy.of_mine", "The installed numpy has no such module"),
    ],
)
def test_module_that_is_missing_is_told_with_what_to_do(
    tmp_path: Path, imported: str, told: str
) -> None:
    model = model_with(tmp_path, f"\nimport {imported}\n")
    (model / "code").mkdir()
    (model / "code" / "channels.py").touch()
    said = loaded(model, "evaluator:create")
    assert f"ModuleNotFoundError: No module named '{imported}' (evaluator.py, line " in said
    assert told in said
    assert ("docs/models.md, 'Packages a model needs'" in said) == ("morphio" in imported)


def test_evaluators_module_that_is_elsewhere_is_told_with_its_directory(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    (model / "code").mkdir()
    (model / "evaluator.py").rename(model / "code" / "evaluator.py")
    assert "It is in 'code' of the model" in loaded(model, "evaluator:create")
    assert loaded(model, "evaluator:create", search=("code",)) == "first second"
    assert "Name a module of the model with --evaluator" in loaded(model, "evaluators:create")


def test_cause_in_a_models_code_is_the_innermost_with_its_file(tmp_path: Path) -> None:
    more = """
    def read():
        open("morph/cell.asc")

    def create_wrapped():
        try:
            read()
        except OSError as error:
            raise RuntimeError("no cell") from error
    """
    told = loaded(model_with(tmp_path, more), "evaluator:create_wrapped")
    assert "does not build its evaluator: FileNotFoundError: " in told
    assert "'morph/cell.asc' (evaluator.py, line " in told


def test_bounds_that_cannot_be_used_are_refused_by_name(tmp_path: Path) -> None:
    more = """
    def create_bounds():
        made = create()
        made.params = [
            bluepyopt.parameters.Parameter(name, bounds=bounds)
            for name, bounds in {
                "absent": None, "equal": (1.0, 1.0), "upside_down": (2.0, 1.0),
                "no_number": (math.nan, 1.0), "right": (0.0, 1.0),
            }.items()
        ]
        return made
    """
    told = loaded(model_with(tmp_path, more), "evaluator:create_bounds")
    assert (
        "has parameters without usable bounds: absent (none), equal (1 to 1 are equal),"
        " upside_down (2 to 1 are reversed), no_number (nan to 1). Give each"
    ) in told


@pytest.mark.parametrize(
    ("bounds", "told"),
    [
        ((0, 1), ""),
        ((-1e-12, 0.0), ""),
        ((None, 1.0), "g (None to 1.0)"),
        (("low", 1.0), "g ('low' to 1.0)"),
        ((0.0, float("inf")), "g (0 to inf)"),
    ],
)
def test_bounds_are_two_finite_numbers(bounds: tuple[Any, Any], told: str) -> None:
    found = SimpleNamespace(name="g", lower_bound=bounds[0], upper_bound=bounds[1])
    assert _wrong_bounds(found) == told


def test_description_with_penalties_that_are_no_numbers_is_json_and_comes_back() -> None:
    whole = Unit("whole", (), (0, 1, 2))
    penalties = (float("nan"), float("inf"), 250.0)
    made = Description((), ("a", "b", "c"), penalties, whole, (whole,), {})
    assert made.as_json()["penalties"] == ["nan", "inf", 250.0]
    told = json.loads(json.dumps(made.as_json(), allow_nan=False))
    assert repr(Description.from_json(told)) == repr(made)


def test_environment_of_a_model_has_nrnivmodl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert shutil.which("nrnivmodl", path=without_display()["PATH"])


def test_cache_that_is_relative_is_where_the_program_was_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NEUROFLEET_CACHE", "models")
    monkeypatch.chdir(tmp_path)
    assert host_cache.cache_directory() == tmp_path / "models"
    monkeypatch.chdir("/")
    assert host_cache.cache_directory() == tmp_path / "models"
    assert os.environ["NEUROFLEET_CACHE"] == str(tmp_path / "models")


def test_versions_of_what_decides_a_score_are_those_of_what_its_code_imports(
    tmp_path: Path,
) -> None:
    model = model_with(tmp_path, "\nfrom parts import cell\n")
    (model / "parts").mkdir()
    (model / "parts/__init__.py").write_text("")
    (model / "parts/cell.py").write_text(
        "from . import shape\nimport json, cell_of_nobody\n"
        "def late():\n    import sklearn.ensemble\n"
    )
    (model / "parts/shape.py").write_text("import click\n")
    (model / "plot.py").write_text("import matplotlib\n")  # the evaluator does not need it
    found = engines_for_model.versions_of(pack(model, EvaluatorSpec("evaluator:create")))
    always = {"neuron", "bluepyopt", "efel", "numpy", "scipy", "Python"}
    assert set(found) >= always | {"scikit-learn", "click", "joblib"}
    assert not {"matplotlib", "parts", "cell_of_nobody"} & set(found)
    assert found["click"] == importlib.metadata.version("click")


@pytest.mark.parametrize(
    ("theirs", "python", "says"),
    [
        ({"scikit-learn": "0.1"}, None, r"has scikit-learn 0\.1, this machine has 1\.8"),
        ({"numpy": "0.1"}, None, r"has numpy 0\.1, this machine has"),
        ({}, "2.7", r"has Python 2\.7, this machine has 3\."),
        ({}, None, None),
    ],
)
def test_engine_with_other_versions_of_what_the_evaluator_uses_is_left_out(
    tmp_path: Path, theirs: dict[str, str], python: str | None, says: str | None
) -> None:
    """One without a package that the evaluator may never import is seen when the model loads."""
    bundle = pack(write_model(tmp_path / "model"), EvaluatorSpec("evaluator:create"))
    wanted = {**engines_for_model.versions_of(bundle), "scikit-learn": "1.8", "click": "8"}
    preparation = engines_for_model.ModelPreparation(bundle, wanted)
    ask = preparation.request(None)
    assert ask is not None
    assert {"scikit-learn", "click"} <= set(ask[1])
    answer = tasks.probe(())
    answer["versions"] = {**host_cache.versions(), **theirs}
    if python:
        answer["python"] = python
    if says:
        with pytest.raises(WorkloadFailed, match=says):
            preparation.request(answer)
    else:
        assert preparation.request(answer) == (tasks.prepare, bundle.digest)
