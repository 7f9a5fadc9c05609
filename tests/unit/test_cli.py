"""The commands as a person runs them: what they teach, what they refuse, and how."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import neurofleet
from neurofleet.store import FILE
from unit.support import (
    MODELS,
    PURE_PYTHON,
    assert_refused,
    called,
    command,
    snapshot,
    write_model,
)
from unit.test_optimise import upstream

pytestmark = pytest.mark.timeout(120)

#: Options of every run in these tests: small, serial, without a report.
SMALL = ("--offspring-size", "3", "--max-ngen", "2", "--backend", "serial", "--no-report")
root_only = pytest.mark.skipif(os.getuid() != 0, reason="takes root")


def optimise(
    cwd: Path,
    *more: str | Path,
    model: str | Path = PURE_PYTHON,
    evaluator: str = "evaluator:create",
) -> subprocess.CompletedProcess[str]:
    """Run ``neurofleet optimise`` in this process, where all is imported already."""
    words = ("optimise", model, "--evaluator", evaluator, *SMALL, *more)
    return called("neurofleet", *words, cwd=cwd)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one finished run, ``run``; never changed."""
    directory = tmp_path_factory.mktemp("finished")
    done = command(
        "neurofleet", "optimise", PURE_PYTHON, "--evaluator", "evaluator:create", *SMALL,
        "--run-dir", "run", cwd=directory,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be damaged."""
    subprocess.run(["cp", "-a", finished / "run", tmp_path / "run"], check=True)
    return tmp_path / "run"


def assert_refused_and_unchanged(
    cwd: Path, code: int, *words: str, run: tuple[str | Path, ...] = (), **how: str | Path
) -> None:
    before = snapshot(cwd)
    done = optimise(cwd, *run, **how)  # type: ignore[arg-type]
    assert_refused(done, code, *words)
    assert done.stdout == ""
    assert snapshot(cwd) == before


# -- what teaches -------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [["neurofleet"], ["neurofleet", "optimise"], ["neurofleet", "report"], ["neurofleet", "repair"],
     ["neurofleet", "completion"], ["neurofleet", "map"], ["neurofleet", "run"],
     ["neurofleet", "run", "hello"], ["neurofleet", "run", "loo-forest"],
     ["neurofleet", "slurm", "script"], ["opt_l5pc"]],
    ids=" ".join,
)  # fmt: skip
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_of_every_command_shows_examples_and_exit_codes(
    tmp_path: Path, words: list[str], option: str
) -> None:
    done = command(words[0], *words[1:], option, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "Examples:" in done.stdout
    assert "130" in done.stdout
    assert words[0] in done.stdout.partition("Examples:")[2]


@pytest.mark.parametrize("name", ["neurofleet", "opt_l5pc"])
def test_version_tells_all_five(tmp_path: Path, name: str) -> None:
    import importlib.metadata

    done = command(name, "--version", cwd=tmp_path)
    assert done.returncode == 0
    versions = dict(line.split() for line in done.stdout.splitlines())
    assert versions == {
        "neurofleet": neurofleet.__version__,
        **{
            shown: importlib.metadata.version(shown.lower())
            for shown in ("NEURON", "BluePyOpt", "eFEL", "ipyparallel")
        },
    }


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    done = optimise(tmp_path, "--dry-run", "--seed", "7")
    plan = json.loads(done.stdout)
    assert (done.returncode, plan["schema_version"], plan["settings"]["seed"]) == (0, 1, 7)
    assert plan["run_dir"].startswith(str(tmp_path))
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize(
    ("evaluator", "words"),
    [
        ("nothing:create", "nothing"),
        ("evaluator:nothing", "does not exist"),
    ],
)
def test_dry_run_finds_an_evaluator_that_does_not_exist(
    tmp_path: Path, evaluator: str, words: str
) -> None:
    done = optimise(tmp_path, "--dry-run", evaluator=evaluator)
    assert_refused(done, 2, words)
    assert (done.stdout, snapshot(tmp_path)) == ("", {})


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--seed", "7"), "was run with seed 42"),
        (("--max-ngen", "1"), "has 2 generations; --max-ngen 1 asks for fewer"),
        (("--checkpoint", "nowhere/cp.pkl"), "there is no directory"),
        (("--checkpoint", "damaged.pkl"), "is damaged"),
    ],
    ids=["settings", "fewer", "no-directory", "damaged"],
)
def test_dry_run_is_refused_where_the_run_would_be(
    run_dir: Path, more: tuple[str, ...], words: str
) -> None:
    (run_dir.parent / "damaged.pkl").write_bytes(b"no checkpoint")
    before = snapshot(run_dir.parent)
    for dry in (("--dry-run",), ()):
        assert_refused(optimise(run_dir.parent, "--run-dir", "run", *more, *dry), 2, words)
    assert snapshot(run_dir.parent) == before


def test_dry_run_of_a_run_that_is_there_says_how_far_it_is(run_dir: Path) -> None:
    before = snapshot(run_dir)
    done = optimise(run_dir.parent, "--run-dir", "run", "--max-ngen", "9", "--dry-run")
    plan = json.loads(done.stdout)
    assert (plan["generations_done"], plan["max_ngen"]) == (2, 9)
    assert plan["parameters"] == ["x", "y"]
    assert snapshot(run_dir) == before


def strict(text: str) -> dict[str, Any]:
    """Read JSON as other languages do, which have no NaN in it."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return dict(json.loads(text, parse_constant=refuse))


def test_optimise_with_a_misspelt_efel_feature_ends_with_its_name(tmp_path: Path) -> None:
    model = shutil.copytree(MODELS / "quick", tmp_path / "model")
    evaluator = model / "quick_evaluator.py"
    evaluator.write_text(evaluator.read_text().replace('"Spikecount", 30', '"Spikecuont", 30'))
    done = command(
        "neurofleet", "optimise", model, "--evaluator=quick_evaluator:create", "--backend=serial",
        "--offspring-size=2", "--max-ngen=1", cwd=tmp_path, timeout_s=100,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "error: objective strong.count raises for every individual of the first generation:"
        " RuntimeError: Unknown feature name: Spikecuont. Mend it, or "
    )


def test_optimise_of_scores_that_are_nan_names_them_in_every_place_and_in_json(
    tmp_path: Path,
) -> None:
    body = "return [math.nan if params[0] > 0.0 else abs(params[0]), params[1] ** 2]"
    model = write_model(tmp_path / "model", body)
    done = optimise(tmp_path, "--run-dir", "run", "--offspring-size", "6", "--json", model=model)
    assert done.returncode == 0
    told = strict(done.stdout)
    assert set(told["not_finite"]) == {"first"}
    assert isinstance(told["best"]["fitness"], float)
    assert told["best"]["not_finite"] == {}
    assert told["logbook"][0]["min"] is None
    assert told["logbook"][0]["not_finite"]["min"] == "nan"
    count = told["not_finite"]["first"]
    assert (
        f"NaN or infinite scores among {told['simulated']} individuals: first ({count})"
        in done.stderr
    )
    assert done.stderr.count("warning: objective first scores NaN or infinite") == 1
    assert "best nan" not in done.stderr
    assert "RuntimeWarning" not in done.stderr
    status = strict((tmp_path / "run/status.json").read_text())
    assert status["not_finite"] == told["not_finite"]
    assert status["best"] == told["best"]["fitness"]
    strict((tmp_path / "run/neurofleet-run.json").read_text())
    shown = command("neurofleet", "status", "run", cwd=tmp_path)
    assert shown.returncode == 0
    assert f"best {status['best']:.6g}" in shown.stdout


def test_optimise_ends_with_the_best_individual_and_its_parameters(run_dir: Path) -> None:
    done = optimise(run_dir.parent, "--run-dir", "run", "--json")
    best = json.loads(done.stdout)["best"]
    assert sum(best["scores"]) == best["fitness"]
    assert f"best individual: sum of scores {best['fitness']:.6g}, worst objectives:" in done.stderr
    for name, value in best["parameters"].items():
        assert f"\n  {name} = {value!r}\n" in done.stderr


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_optimise_goes_on_from_a_checkpoint_of_bluepyopts_with_the_option_that_it_names(
    tmp_path: Path,
) -> None:
    model = write_model(tmp_path / "model")
    upstream(model, tmp_path / "theirs.pkl", 2)
    options = ("--run-dir", "run", "--checkpoint", "theirs.pkl", "--max-ngen", "4")
    refused = optimise(tmp_path, *options, model=model)
    assert_refused(refused, 2, "written by BluePyOpt itself", "Go on from it with --continu")
    done = optimise(tmp_path, *options, "--continu", model=model)
    assert done.returncode == 0, done.stderr
    assert "generation 4/4: best " in done.stderr


def test_optimise_continue_nothing_names_an_option_of_this_command(tmp_path: Path) -> None:
    done = optimise(tmp_path, "--run-dir", "run", "--continu")
    assert "--start" not in assert_refused(done, 2, "nothing to continue", "Leave --continu out")


def test_optimise_prints_json_on_stdout_and_talk_on_stderr(finished: Path) -> None:
    done = optimise(finished, "--run-dir", "run", "--json")
    told = json.loads(done.stdout)
    assert told["schema_version"] == 1
    assert [row["gen"] for row in told["logbook"]] == [1, 2]
    assert set(told["best"]["parameters"]) == {"x", "y"}
    assert told["simulated"] == 0
    assert "0 simulated, 6 from the store" in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_of_every_shell_names_both_commands(tmp_path: Path, shell: str) -> None:
    done = command("neurofleet", "completion", shell, cwd=tmp_path)
    assert done.returncode == 0
    assert "_NEUROFLEET_COMPLETE" in done.stdout
    assert "_OPT_L5PC_COMPLETE" in done.stdout


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["neurofleet", "op"], {"optimise"}),
        (["neurofleet", "re"], {"repair", "report"}),
        (["neurofleet", "optimise", "--max"], {"--max-ngen"}),
        (["neurofleet", "optimise", "--selector", "N"], {"NSGA2"}),
        (["opt_l5pc", "--offs"], {"--offspring-size"}),
        (["opt_l5pc", "--sim", ""], {"nrn", "arb"}),
    ],
    ids=" ".join,
)
def test_completion_sourced_by_a_real_bash_completes(
    tmp_path: Path, typed: list[str], expected: set[str]
) -> None:
    words = " ".join(f"'{word}'" for word in typed)
    script = f"""
        source <(neurofleet completion bash)
        COMP_WORDS=({words}); COMP_CWORD={len(typed) - 1}
        function=$(complete -p {typed[0]} | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        $function {typed[0]} '{typed[-1]}' '{typed[-2]}'
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", script], cwd=tmp_path, env={**os.environ, "PATH": path},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert set(done.stdout.split()) == expected


def test_underscores_in_option_names_work_as_dashes(tmp_path: Path) -> None:
    done = command(
        "neurofleet", "optimise", PURE_PYTHON, "--evaluator", "evaluator:create",
        "--offspring_size=5", "--max_ngen=9", "--unit_timeout=3", "--engine_timeout=4",
        "--run_dir=here", "--dry_run", cwd=tmp_path,
    )  # fmt: skip
    plan = json.loads(done.stdout)
    assert (plan["settings"]["offspring_size"], plan["max_ngen"]) == (5, 9)


@pytest.mark.parametrize("words", [(), ("run",), ("slurm",)], ids=" ".join)
def test_group_without_a_command_prints_its_help(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = called("neurofleet", *words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == called("neurofleet", *words, "--help", cwd=tmp_path).stdout
    assert "error" not in done.stderr.splitlines()[0]


def test_optimize_is_optimise(tmp_path: Path) -> None:
    words = (PURE_PYTHON, "--evaluator", "evaluator:create", "--dry-run")
    told = [called("neurofleet", name, *words, cwd=tmp_path) for name in ("optimise", "optimize")]
    assert told[0].returncode == 0
    assert told[0].stdout == told[1].stdout
    assert "  optimize " not in called("neurofleet", "--help", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("optmise", "m"), "'optimise'?"),
        (("run", "helo"), "Did you mean hello? There are hello, loo-forest"),
        (("slurm", "scrip"), "'script'?"),
        (("run", "hello", "--engine", "3"), "'--engines'?"),
        (("slurm", "script", "--enginez", "4", "--", "opt_l5pc"), "'--engines'?"),
    ],
    ids=str,
)
def test_word_that_is_not_known_is_answered_with_the_nearest(
    tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    assert_refused(called("neurofleet", *words, cwd=tmp_path), 2, "Did you mean", says)


def test_underscores_in_names_of_workloads_work_as_dashes(tmp_path: Path) -> None:
    done = called("neurofleet", "run", "loo_forest", "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("optimise", "m", "--head", "u@h"), "--head comes first: neurofleet --head USER@HOST o"),
        (("run", "hello", "--head=u@h"), "--head comes first: neurofleet --head USER@HOST run h"),
        (("run", "--head", "u@h", "hello"), "neurofleet --head USER@HOST run ..."),
        (("map", "m:f", "i.jsonl", "--head"), "neurofleet --head USER@HOST map ..."),
        (("slurm", "script", "--engines", "2", "--head", "h", "--", "opt_l5pc"), "comes first"),
        (("slurm", "script", "--engines=2", "--", "neurofleet", "--head", "h", "map"), "--head"),
        (("--head", "u@h", "--head", "u@i", "run", "hello"), "--head is given twice"),
        (("--head", "u@h", "run", "hello", "--head=u@i"), "--head is given twice"),
        (("--head",), "--head names no host."),
        (("--head", "", "run", "hello"), "--head names no host."),
        (("--head=", "run", "hello"), "--head names no host."),
        (("--head", " ", "run"), "--head names no host"),
        (("--head", "run", "hello"), "--head names no host but 'run'. neurofleet --head USER@H"),
        (("--head", "--json", "run"), "--head names no host but '--json'"),
        (("--head", ":bin/neurofleet", "run"), "--head names no host"),
    ],
    ids=str,
)
def test_head_that_cannot_work_says_where_it_goes(
    tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    assert_refused(called("neurofleet", *words, cwd=tmp_path), 2, says)


def test_head_of_opt_l5pc_says_where_it_goes(tmp_path: Path) -> None:
    done = called("opt_l5pc", "--start", "--head", "u@h", cwd=tmp_path)
    assert_refused(done, 2, "--head comes first: neurofleet --head USER@HOST opt_l5pc ...")


def test_head_gets_all_words_that_follow_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("NEUROFLEET_SSH", str(ssh))
    words = ("--head", "u@h", "slurm", "script", "--help", "--", "opt_l5pc", "--head", "x")
    done = command("neurofleet", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "neurofleet slurm script --help -- opt_l5pc --head x" in done.stdout


# -- what is refused before anything is written --------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--offspring-size", "-4"), ("--offspring-size must be from 1 to", "not -4")),
        (("--offspring-size", "0"), ("--offspring-size must be from 1 to", "not 0")),
        (("--offspring-size", "four"), ("--offspring-size", "four")),
        (("--max-ngen", "-1"), ("--max-ngen must be at least 1, not -1",)),
        (("--max-ngen", "0"), ("--max-ngen must be at least 1, not 0",)),
        (("--max-ngen", "9" * 20), ("--max-ngen must be at most 1000000, not 999",)),
        (("--engines", "0", "--backend", "local"), ("--engines must be from 1 to", "not 0")),
        (("--engines", "-2", "--backend", "local"), ("--engines must be from 1 to", "not -2")),
        (("--unit-timeout", "0"), ("--unit-timeout must be above 0 and at most", "not 0")),
        (("--unit-timeout", "1e20"), ("--unit-timeout must be above 0 and at most", "not 1e+20")),
        (("--engine-timeout", "1e20"), ("--engine-timeout must be above 0 and at most",)),
        (("--offspring-size", "9" * 20), ("--offspring-size must be from 1 to",)),
        (("--engines", "9" * 20, "--backend", "local"), ("--engines must be from 1 to",)),
        (("--unit-timeout", "-1"), ("--unit-timeout",)),
        (("--unit-timeout", "nan"), ("--unit-timeout",)),
        (("--engine-timeout", "-5"), ("--engine-timeout",)),
        (("--engine-timeout", "nan"), ("--engine-timeout",)),
        (("--mutpb", "2"), ("mutpb",)),
        (("--cxpb", "nan"), ("cxpb",)),
        (("--eta", "0"), ("eta",)),
        (("--selector", "CMA"), ("--selector", "IBEA")),
        (("--kwargs", "{"), ("--kwargs is not JSON",)),
        (("--kwargs", "[1]"), ("--kwargs is a JSON list, not an object",)),
        (("--kwargs", '{"a": NaN}'), ("not JSON",)),
        (("--search", "../x"), ("leads out of the model",)),
        (("--mechanisms", "/x"), ("leads out of the model",)),
        (("--nonsense",), ("--nonsense",)),
        (("surplus",), ("surplus",)),
    ],
    ids=str,
)
def test_optimise_wrong_option_is_refused_in_one_line(
    tmp_path: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    assert_refused_and_unchanged(tmp_path, 2, *words, run=options)


@pytest.mark.parametrize(
    "form", ["evaluator", "evaluator:", ":create", "evaluator.py:create()", ""]
)
def test_optimise_evaluator_of_another_form_is_refused(tmp_path: Path, form: str) -> None:
    assert_refused_and_unchanged(tmp_path, 2, "module:callable", evaluator=form)


def test_optimise_missing_model_directory_is_refused(tmp_path: Path) -> None:
    assert_refused_and_unchanged(tmp_path, 2, "no model directory", model=tmp_path / "nowhere")


def test_optimise_empty_model_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert_refused_and_unchanged(tmp_path, 2, "is empty", model=tmp_path / "model")


def test_optimise_file_as_model_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("")
    assert_refused_and_unchanged(tmp_path, 2, "model.py", model=tmp_path / "model.py")


@pytest.mark.parametrize("where", ["file", "file/below", "/proc/neurofleet", "/proc/self"])
def test_optimise_run_directory_that_cannot_be_is_refused(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("in the way")
    assert_refused_and_unchanged(tmp_path, 2, where, run=("--run-dir", where))


def test_optimise_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    assert_refused_and_unchanged(
        tmp_path, 2, "is not empty and not a run directory", run=("--run-dir", "thesis")
    )


# -- what is wrong with the model -----------------------------------------------------


@pytest.mark.parametrize(
    ("model", "evaluator", "words"),
    [
        ("does_not_import", "evaluator:create", ("does not import",)),
        ("not_an_evaluator", "evaluator:create", ("not a BluePyOpt evaluator",)),
        ("does_not_compile", "evaluator:create", ("do not compile", "nfbroken.mod")),
        ("pure_python", "no_such_module:create", ("ModuleNotFoundError", "no_such_module")),
        ("pure_python", "evaluator:no_such_callable", ("does not exist", "no_such_callable")),
    ],
)
def test_optimise_model_that_is_no_use_is_refused(
    tmp_path: Path, model: str, evaluator: str, words: tuple[str, ...]
) -> None:
    assert_refused(optimise(tmp_path, model=MODELS / model, evaluator=evaluator), 2, *words)


def test_optimise_run_directory_of_a_refused_model_is_used_when_it_is_mended(
    tmp_path: Path,
) -> None:
    run = ("--run-dir", "run")
    refused = optimise(tmp_path, *run, model=MODELS / "does_not_import")
    assert_refused(refused, 2, "does not import")
    mended = optimise(tmp_path, *run)
    assert mended.returncode == 0, mended.stderr


def test_optimise_arguments_that_the_factory_does_not_take_are_refused(tmp_path: Path) -> None:
    done = optimise(tmp_path, "--kwargs", '{"colour": "red"}')
    assert_refused(done, 2, "does not build its evaluator", "colour")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise ValueError('no such channel')", ("no unit of any", "no such channel")),
        ("os.kill(os.getpid(), 11)", ("no unit of any", "crashed", "SIGSEGV")),
        ("while True: pass", ("no unit of any", "timeout", "--unit-timeout")),
    ],
)
def test_optimise_model_that_never_scores_fails_in_one_line(
    tmp_path: Path, body: str, words: tuple[str, ...]
) -> None:
    model = write_model(tmp_path / "model", body)
    done = optimise(tmp_path, "--unit-timeout", "0.5", model=model)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1, done.stderr
    assert len(errors) == 1
    assert all(word in errors[0] for word in words), errors[0]
    assert "Traceback" not in done.stderr


def test_optimise_model_that_prints_and_exits_when_imported_is_refused(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    (model / "evaluator.py").write_text("import sys\nprint('usage: evaluator')\nsys.exit(3)\n")
    assert_refused(optimise(tmp_path, model=model), 2, "does not import", "SystemExit")


# -- what is wrong with the run directory ----------------------------------------------


def test_optimise_run_again_simulates_nothing_and_changes_no_score(run_dir: Path) -> None:
    checkpoint = run_dir / "checkpoint.pkl"
    before = checkpoint.read_bytes()
    done = optimise(run_dir.parent, "--run-dir", "run")
    assert done.returncode == 0
    assert "0 simulated, 6 from the store" in done.stderr
    old, new = (pickle.loads(content) for content in (before, checkpoint.read_bytes()))
    assert old["population"] == new["population"]
    assert old["rndstate"] == new["rndstate"]


def test_optimise_more_generations_go_on_from_what_there_is(run_dir: Path, tmp_path: Path) -> None:
    longer = optimise(run_dir.parent, "--run-dir", "run", "--max-ngen", "4", "--json")
    anew = optimise(tmp_path, "--run-dir", "anew", "--max-ngen", "4", "--json")
    told, expected = json.loads(longer.stdout), json.loads(anew.stdout)
    assert told["from_store"] >= 6  # a later child may be one of those again
    assert told["simulated"] > 0
    assert (told["logbook"], told["best"]) == (expected["logbook"], expected["best"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--seed", "7"), ("seed 42, this is 7",)),
        (("--offspring-size", "4"), ("offspring_size 3, this is 4",)),
        (("--selector", "NSGA2"), ("selector IBEA, this is NSGA2",)),
        (("--kwargs", "{}", "--search", "."), ()),
    ],
    ids=str,
)
def test_optimise_run_directory_of_other_settings_is_refused(
    run_dir: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    if not words:  # the same in other words is no other run
        assert optimise(run_dir.parent, "--run-dir", "run", *options).returncode == 0
        return
    assert_refused_and_unchanged(run_dir.parent, 2, *words, run=("--run-dir", "run", *options))


def test_optimise_run_directory_of_another_model_is_refused(run_dir: Path) -> None:
    model = write_model(run_dir.parent / "model")
    words = "is of model", "nothing was changed"
    assert_refused_and_unchanged(run_dir.parent, 2, *words, run=("--run-dir", "run"), model=model)


def test_optimise_run_directory_of_another_bluepyopt_is_refused(run_dir: Path) -> None:
    about = run_dir / "neurofleet-run.json"
    told = json.loads(about.read_text())
    told["versions"]["bluepyopt"] = "1.13.0"
    about.write_text(json.dumps(told))
    assert_refused_and_unchanged(
        run_dir.parent, 2, "bluepyopt 1.13.0, this is 1.14", run=("--run-dir", "run")
    )


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema_version": 99}'])
def test_optimise_damaged_record_is_refused(run_dir: Path, content: str) -> None:
    (run_dir / "neurofleet-run.json").write_text(content)
    assert_refused_and_unchanged(run_dir.parent, 2, "neurofleet-run.json", run=("--run-dir", "run"))


@pytest.mark.parametrize("cut", [100, 20_000])
def test_optimise_damaged_store_is_refused_repaired_and_gone_on_from(
    run_dir: Path, cut: int
) -> None:
    store = run_dir / "scores.sqlite"
    damaged = store.read_bytes()[:cut]
    store.write_bytes(damaged)
    assert_refused_and_unchanged(
        run_dir.parent, 2, "is damaged", "neurofleet repair", run=("--run-dir", "run")
    )
    repaired = command("neurofleet", "repair", run_dir, cwd=run_dir.parent)
    assert repaired.returncode == 0, repaired.stderr
    aside = Path(repaired.stdout.rstrip().rpartition(" ")[2])
    assert aside.read_bytes() == damaged
    done = optimise(run_dir.parent, "--run-dir", "run")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("content", [b"", b"rubbish", pickle.dumps({"generation": 1})])
def test_optimise_damaged_checkpoint_is_refused(run_dir: Path, content: bytes) -> None:
    (run_dir / "checkpoint.pkl").write_bytes(content)
    assert_refused_and_unchanged(
        run_dir.parent, 2, "checkpoint", "is damaged", run=("--run-dir", "run")
    )


@root_only
def test_optimise_checkpoint_of_another_user_is_not_opened(run_dir: Path) -> None:
    os.chown(run_dir / "checkpoint.pkl", 12345, 12345)
    assert_refused_and_unchanged(
        run_dir.parent, 2, "belongs to another user", run=("--run-dir", "run")
    )


def test_optimise_checkpoint_of_another_run_is_refused(run_dir: Path, tmp_path: Path) -> None:
    other = optimise(tmp_path, "--run-dir", "other", "--seed", "5")
    assert other.returncode == 0, other.stderr
    (tmp_path / "cp.pkl").write_bytes((tmp_path / "other" / "checkpoint.pkl").read_bytes())
    run = ("--run-dir", "run", "--checkpoint", "cp.pkl")
    assert_refused_and_unchanged(tmp_path, 2, "is not this run's", "seed 5", run=run)


def test_optimise_refused_for_its_checkpoint_can_be_run_without_it(tmp_path: Path) -> None:
    (tmp_path / "cp.pkl").write_bytes(b"rubbish")
    run = ("--run-dir", "new")
    assert_refused(optimise(tmp_path, *run, "--checkpoint", "cp.pkl"), 2, "is damaged")
    assert (tmp_path / "cp.pkl").read_bytes() == b"rubbish"
    done = optimise(tmp_path, *run)
    assert done.returncode == 0, done.stderr


def test_optimise_checkpoint_in_no_directory_is_refused(tmp_path: Path) -> None:
    done = optimise(tmp_path, "--run-dir", "run", "--checkpoint", "nowhere/cp.pkl")
    assert_refused(done, 2, "there is no directory", "nowhere")
    with contextlib.closing(sqlite3.connect(tmp_path / "run" / FILE)) as db:
        assert db.execute("SELECT count(*) FROM score").fetchone() == (0,)


def test_optimise_directory_in_use_names_its_holder(run_dir: Path) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from neurofleet.store import Store\n"
        "store = Store(Path(sys.argv[1]), 'm', {})\n"
        "print('held', flush=True)\n"
        "time.sleep(60)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, run_dir], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        run = ("--run-dir", "run")
        assert_refused_and_unchanged(
            run_dir.parent, 2, f"is in use by process {holder.pid} of", run=run
        )
        assert_refused(command("neurofleet", "repair", "run", cwd=run_dir.parent), 2, "in use")
    finally:
        holder.kill()
        holder.communicate()


def test_optimise_refused_as_a_command_of_its_own_is_one_line_and_its_code(run_dir: Path) -> None:
    words = "optimise", PURE_PYTHON, "--evaluator", "evaluator:create", *SMALL, "--run-dir", "run"
    for more, code in ((("--seed", "7"), 2), (("--max-ngen", "0"), 2), ((), 0)):
        done = command("neurofleet", *words, *more, cwd=run_dir.parent)
        if code:
            assert_refused(done, code)
        else:
            assert done.returncode == 0


@contextlib.contextmanager
def tiny_disk(place: Path, size: str) -> Iterator[None]:
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", place]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@root_only
@pytest.mark.parametrize("size", ["8k", "64k"])
def test_optimise_on_a_full_disk_says_so_in_one_line(tmp_path: Path, size: str) -> None:
    with tiny_disk(tmp_path / "disk", size):
        done = optimise(tmp_path, "--run-dir", "disk", "--max-ngen", "9", "--offspring-size", "30")
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.returncode in (1, 2), done.stderr
        assert len(errors) == 1, done.stderr
        assert "ake room" in errors[0]
        assert "Traceback" not in done.stderr


@root_only
def test_optimise_read_only_run_directory_says_so(run_dir: Path) -> None:
    bind = ["mount", "--bind", run_dir, run_dir]
    if subprocess.run(bind, capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", run_dir], check=True)
        assert_refused_and_unchanged(
            run_dir.parent, 2, "the run directory", "Read-only", run=("--run-dir", "run")
        )
    finally:
        subprocess.run(["umount", "-l", run_dir], check=True)


def test_optimise_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = command(
        "neurofleet", "optimise", PURE_PYTHON, "--evaluator", "evaluator:create", *SMALL,
        "--run-dir", "run", cwd=tmp_path, env={"NEUROFLEET_CACHE": str(tmp_path / "file")},
    )  # fmt: skip
    assert_refused(done, 1, "model cache", "NEUROFLEET_CACHE")


def test_optimise_profile_without_controller_is_unreachable(tmp_path: Path) -> None:
    done = optimise(
        tmp_path, "--backend", "profile", "--profile", "nobody", "--engine-timeout", "2"
    )
    assert_refused(done, 3, "no controller answers", "nobody")


# -- report, repair -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["report", "repair"])
def test_report_and_repair_of_what_is_no_run_directory_are_refused(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "empty").mkdir()
    for where in ("nowhere", "empty"):
        before = snapshot(tmp_path)
        assert_refused(command("neurofleet", name, where, cwd=tmp_path), 2, where)
        assert snapshot(tmp_path) == before


def test_output_that_nobody_reads_ends_without_a_traceback(finished: Path) -> None:
    script = "set -o pipefail; neurofleet completion bash | true; neurofleet --help | head -1"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=finished, env={**os.environ, "PATH": path},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stderr == ""


#: No locale that knows more than ASCII, and no help for it.
PLAIN_ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "COLUMNS": "1"}


def test_names_that_the_terminal_cannot_show_are_printed_all_the_same(tmp_path: Path) -> None:
    run = tmp_path / "Körnerzelle-\N{GREEK SMALL LETTER ALPHA}"
    run.mkdir()
    (run / "neurofleet-run.json").write_text(
        '{"schema_version": 1, "name": "K\\u00f6rnerzelle \\u03b1", "state": "finished"}'
    )
    env = {**PLAIN_ASCII, "PYTHONIOENCODING": "iso8859-5", "TERM": ""}
    done = command("neurofleet", "status", run, cwd=tmp_path, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "K\\xf6rnerzelle \\u03b1: finished\n"
    done = command("neurofleet", "status", "nö", cwd=tmp_path, env=env)
    assert_refused(done, 2, "there is no directory")
    for words in (("--help",), ("run", "loo-forest", "--help"), ("optimise", "--help")):
        done = command("neurofleet", *words, cwd=tmp_path, env=env)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "> /dev/full"])
def test_closed_streams_are_no_error_and_spoil_no_file(finished: Path, closed: str) -> None:
    script = f"neurofleet optimise '{PURE_PYTHON}' --evaluator evaluator:create"
    script += f" {' '.join(SMALL)} --run-dir run --json {closed}"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=finished, env={**os.environ, "PATH": path},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.returncode == (1 if "full" in closed else 0), done.stderr
    if "2>" not in closed and "full" not in closed:
        assert "0 simulated, 6 from the store" in done.stderr
    with contextlib.closing(sqlite3.connect(finished / "run" / FILE)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("SELECT count(*) FROM score").fetchone() == (5,)  # one twin


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_large_answer_that_is_cut_off_ends_without_a_word(tmp_path: Path, unbuffered: str) -> None:
    for number in range(600):
        run = tmp_path / "neurofleet-runs" / f"{number}-{'x' * 200}"
        run.mkdir(parents=True)
        (run / "neurofleet-run.json").write_text('{"schema_version": 1, "state": "finished"}')
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", "neurofleet status --json | head -c 100 | wc -c; echo ${PIPESTATUS[0]}"],
        cwd=tmp_path, env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": unbuffered},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.stderr, done.stdout.split()) == ("", ["100", "1"])


def test_no_command_waits_for_a_person() -> None:
    source = Path(neurofleet.__file__).parent
    asks = re.compile(r"\binput\(|getpass\(|click\.(prompt|confirm|getchar|pause)|sys\.stdin\.read")
    found = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*.py")
        if asks.search(path.read_text())
    }
    assert not found
