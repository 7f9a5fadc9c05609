"""The run directory that nobody named: below one place, and never one for two inputs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from neurofleet.backends.choice import EngineChoice
from neurofleet.evolution import Settings
from neurofleet.request import LONGEST_PART, Request, folder_name
from neurofleet.rundir import RunDirectory
from unit.support import CREATE, called, write_model

ONE, OTHER = "1" * 64, "2" * 64


def asked(name: str = "cell", settings: Settings | None = None, **more: Any) -> Request:
    settings = settings or Settings(42, 10)
    return Request(name, Path("cell"), CREATE, settings, 1, EngineChoice("serial"), **more)


def begun(request: Request, digest: str) -> Path:
    """Have the directory of a request hold its run."""
    directory = request.directory_for(digest)
    directory.create()
    s = request.settings
    kept = {"seed": s.seed, "offspring_size": s.offspring_size, "selector": s.selector,
            "eta": s.eta, "mutpb": s.mutpb, "cxpb": s.cxpb}  # fmt: skip
    directory.write_about({"model": {"digest": digest}, "settings": kept})
    return directory.path


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/x", "..", ".", ".hidden", "-rf", "a/b", "a\0b", "a\nb", "", "x" * 5000,
     "\u00e9" * 300, "\udcff", "a/../../../b"],
    ids=ascii,
)  # fmt: skip
def test_directory_of_any_name_is_one_below_the_default_place(here: Path, name: str) -> None:
    found = asked(name).directory_for(ONE).path
    assert found.parent == here / "neurofleet-runs"
    assert found.name[0] not in ".-"
    assert len(found.name.encode()) < LONGEST_PART + 100
    found.mkdir(parents=True)  # the file system takes it


def test_directory_of_an_ordinary_name_is_called_by_it() -> None:
    for name in ("cell", "my cell", "zelle-\u00e4", "l5pc.v2", "x" * LONGEST_PART):
        assert asked(name).directory_for(ONE).path.name == f"{name}-seed42-offspring10"


def test_folder_names_of_two_texts_are_two() -> None:
    texts = [
        "a/b",
        "a_b",
        "a\0b",
        "a\tb",
        "_b",
        "-b",
        ".b",
        "",
        "_",
        *("x" * n for n in (100, 101, 102)),
    ]
    assert len({folder_name(text) for text in texts}) == len(texts)


@pytest.mark.parametrize("seed", ["../7", "a/b", "9" * 300, -7], ids=str)
def test_directory_of_a_seed_that_is_any_text_stays_in_place(here: Path, seed: Any) -> None:
    found = asked(settings=Settings(seed, 10)).directory_for(ONE).path
    assert found.parent == here / "neurofleet-runs"
    assert len(found.name) < 250


@pytest.mark.parametrize(
    ("settings", "digest"),
    [
        (Settings(42, 10), OTHER),
        (Settings(42, 10, mutpb=0.5), ONE),
        (Settings(42, 10, cxpb=0.5), ONE),
        (Settings("42", 10), ONE),
        (Settings(42, 10, eta=10.0000001), ONE),
    ],
    ids=["model", "mutpb", "cxpb", "seed-as-text", "eta"],
)
def test_directory_of_another_input_is_another_and_each_finds_its_own_again(
    settings: Settings, digest: str
) -> None:
    first, second = asked(), asked(settings=settings)
    path = begun(first, ONE)
    other = begun(second, digest)
    assert other != path
    assert first.directory_for(ONE).path == path
    assert second.directory_for(digest).path == other
    # Also when the one that has the plain name is gone, or came later.
    (path / "neurofleet-run.json").unlink()
    path.rmdir()
    assert second.directory_for(digest).path == other
    assert begun(first, ONE) == path
    assert second.directory_for(digest).path == other


def test_directory_that_was_named_is_taken_whoever_has_it(here: Path) -> None:
    path = begun(asked(run_dir=here / "mine"), ONE)
    assert asked(run_dir=Path("mine")).directory_for(OTHER).path == path


@pytest.mark.timeout(120)
def test_optimise_model_directory_whose_name_is_no_text_goes_on_and_is_reported(
    here: Path,
) -> None:
    model = write_model(here / os.fsdecode(b"m\xff\n\x01"))
    for generations in (1, 2):
        done = called(
            "neurofleet", "optimise", model.name, "--evaluator=evaluator:create",
            "--backend=serial", "--offspring-size=2", f"--max-ngen={generations}", cwd=here,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert len(list(here.glob("neurofleet-runs/*/report.html"))) == 1


@pytest.mark.timeout(120)
def test_optimise_two_models_of_one_name_have_two_directories(here: Path) -> None:
    def run(model: str) -> Path:
        words = ["--evaluator=evaluator:create", "--backend=serial", "--offspring-size=2"]
        done = called("neurofleet", "optimise", model, *words, "--max-ngen=1", "--no-report",
                       "--json", cwd=here)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return Path(json.loads(done.stdout)["run_dir"])

    write_model(here / "a/cell")
    write_model(here / "b/cell", "return [params[0] ** 2, params[1] ** 2]")
    first, second = run("a/cell"), run("b/cell")
    assert first.name == "cell-seed42-offspring2"
    assert second.parent == first.parent
    assert second != first
    assert RunDirectory(first).read_about() != RunDirectory(second).read_about()
    assert (run("b/cell"), run("a/cell")) == (second, first)
