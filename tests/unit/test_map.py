"""``neurofleet map``, ``run hello`` and ``slurm script`` as a person runs them."""

from __future__ import annotations

import contextlib
import json
import math
import pickle
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from neurofleet.backends.slurm import SlurmRequest
from neurofleet.backends.slurm_script import ScriptRequest, script
from unit.support import assert_refused, command, snapshot, wait_until

pytestmark = pytest.mark.timeout(120)

MODULE = """
import time
from pathlib import Path

import helper


def noted(x):
    with Path("@desk/calls").open("a") as file:
        file.write(f"{x}\\n")
    time.sleep(0.05)
    return helper.square(x)


def picky(x):
    if x == 2 and not Path("@desk/mended").exists():
        raise ValueError("two is\\nno good")
    return x


def no_json(x):
    return {1, 2}


def arrays(x):
    import numpy as np

    return {"a": np.arange(x), "s": np.float64(0.5) if x else np.float64("nan")}


def drawn(x):
    import random

    return random.random()
"""
SERIAL = ("--backend", "serial")


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A directory with a module of the person's own, and its helper."""
    (tmp_path / "mine.py").write_text(MODULE.replace("@desk", str(tmp_path)))
    (tmp_path / "helper.py").write_text("def square(x):\n    return x * x\n")
    (tmp_path / "items.jsonl").write_text("".join(f"{x}\n" for x in range(5)))
    return tmp_path


def results(desk: Path, run: str) -> list[dict[str, object]]:
    text = (desk / "neurofleet-runs" / run / "results.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_map_killed_in_the_middle_goes_on_and_calls_nothing_twice(desk: Path) -> None:
    (desk / "items.jsonl").write_text("".join(f"{x}\n" for x in range(120)))
    words = [Path(sys.executable).parent / "neurofleet", "map", "mine:noted", "items.jsonl"]
    with (desk / "err").open("wb") as err:
        client = subprocess.Popen([*words, "--engines=2"], cwd=desk, stderr=err)
    store = desk / "neurofleet-runs/map-mine.noted-items/items.sqlite"

    def kept() -> list[str]:
        """Return the items whose results are stored, as they stand in the file."""
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(store)) as db:
            found = [pickle.loads(value) for (value,) in db.execute("SELECT value FROM result")]
            return [str(math.isqrt(int(square))) for square in found]
        return []

    wait_until(lambda: store.exists() and len(kept()) >= 20)
    client.send_signal(signal.SIGKILL)
    client.wait()
    stored = kept()
    before = len(stored)
    assert before < 120
    done = command("neurofleet", "map", "mine:noted", "items.jsonl", "--engines=2", cwd=desk)
    assert done.returncode == 0, done.stderr
    assert f"{120 - before} computed, {before} from the run directory" in done.stderr
    assert done.stdout == ""
    assert results(desk, "map-mine.noted-items") == [{"result": x * x} for x in range(120)]
    calls = Counter((desk / "calls").read_text().splitlines())
    assert {calls[item] for item in stored} == {1}
    # What engines had begun when the client was killed is all that is called again.
    assert set(calls.values()) <= {1, 2}


def test_map_items_added_moved_or_equal_computes_only_the_new(desk: Path) -> None:
    assert (
        command("neurofleet", "map", "mine:noted", "items.jsonl", *SERIAL, cwd=desk).returncode == 0
    )
    (desk / "items.jsonl").write_text("9\n4\n\n3\n2\n1\n0\n0\n")
    done = command("neurofleet", "map", "mine:noted", "items.jsonl", *SERIAL, "--json", cwd=desk)
    told = json.loads(done.stdout)
    assert (told["computed"], told["from_store"], told["items"]) == (2, 5, 7)
    expected = [{"result": x * x} for x in (9, 4, 3, 2, 1, 0, 0)]
    assert results(desk, "map-mine.noted-items") == expected


def test_map_item_that_raises_is_named_and_computed_again(desk: Path) -> None:
    done = command("neurofleet", "map", "mine:picky", "items.jsonl", *SERIAL, cwd=desk)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert (
        "1 of 5 items failed; the first, item 3: ValueError: two is no good (mine.py, line 17)"
        in errors[0]
    )
    expected: list[dict[str, object]] = [{"result": x} for x in range(5)]
    found = results(desk, "map-mine.picky-items")
    assert found[2] == {"error": "ValueError: two is no good (mine.py, line 17)"}
    assert found[:2] + found[3:] == expected[:2] + expected[3:]
    (desk / "items.jsonl").write_text("0\n\n1\n2\n3\n4\n")
    done = command("neurofleet", "map", "mine:picky", "items.jsonl", *SERIAL, cwd=desk)
    assert "the first, item 3 (line 4 of items.jsonl): ValueError" in done.stderr
    (desk / "mended").touch()
    done = command("neurofleet", "map", "mine:picky", "items.jsonl", *SERIAL, cwd=desk)
    assert done.returncode == 0, done.stderr
    assert "1 computed, 4 from" in done.stderr
    assert results(desk, "map-mine.picky-items") == expected


def test_map_draws_what_its_seed_says_here_and_on_engines(desk: Path) -> None:
    (desk / "items.jsonl").write_text("1\n2\n")

    def drawn(run: str, *options: str) -> list[object]:
        done = command(
            "neurofleet", "map", "mine:drawn", "items.jsonl", f"--run-dir=neurofleet-runs/{run}",
            *options, cwd=desk,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return [row["result"] for row in results(desk, run)]

    first = drawn("a", *SERIAL, "--seed=3")
    assert drawn("b", "--engines=2", "--seed=3") == first
    assert not set(drawn("c", *SERIAL, "--seed=4")) & set(first)


def test_map_results_of_numpy_are_json_and_others_are_told(desk: Path) -> None:
    done = command("neurofleet", "map", "mine:arrays", "items.jsonl", *SERIAL, cwd=desk)
    assert done.returncode == 0, done.stderr
    assert "numbers that are NaN or infinite: 1 in 1 of 5 results" in done.stderr
    found = results(desk, "map-mine.arrays-items")
    assert found[3] == {"result": {"a": [0, 1, 2], "s": 0.5}}
    assert found[0] == {"result": {"a": [], "s": None}, "not_finite": {"/s": "nan"}}
    done = command("neurofleet", "map", "mine:no_json", "items.jsonl", *SERIAL, cwd=desk)
    assert done.returncode == 1
    assert "a set cannot be written as JSON; return numbers" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["absent:f", "items.jsonl"], ["'absent' cannot be imported", "No module named"]),
        (["mine:absent", "items.jsonl"], ["has no function 'absent'", "It has Path, arrays"]),
        (["mine", "items.jsonl"], ["not of the form MODULE:FUNCTION"]),
        (["broken:f", "items.jsonl"], ["'broken' cannot be imported", "SyntaxError"]),
        (["mine:noted", "nothing.jsonl"], ["cannot be read (No such file"]),
        (["mine:noted", "bad.jsonl"], ["line 3 of 'bad.jsonl' is not JSON"]),
        (["mine:noted", "binary"], ["cannot be read (it is not text)"]),
        (["mine:noted", "items.jsonl", "--output", "no/where"], ["there is no directory"]),
        (["mine:noted", "items.jsonl", "--run-dir", "."], ["not empty and not a run directory"]),
        (["mine:noted", "items.jsonl", "--engines", "0"], ["--engines must be from 1 to"]),
        (
            ["mine:noted", "items.jsonl", "--partition", "p"],
            ["options of Slurm", "--backend slurm"],
        ),
        (
            ["mine:noted", "items.jsonl", "--item-timeout", "0"],
            ["must be a number of seconds above 0, up to a year, not 0"],
        ),
        (["mine:noted", "items.jsonl", "--backend", "slurm", "--engines", "2"], ["no Slurm on"]),
    ],
    ids=lambda value: " ".join(value) if value and ":" in value[0] else "",
)
def test_map_that_cannot_be_done_is_refused_in_one_line_and_changes_nothing(
    desk: Path, words: list[str], says: list[str]
) -> None:
    (desk / "bad.jsonl").write_text('1\n{"a": 2}\n{oops\n')
    (desk / "binary").write_bytes(b"\xff\xfe\x00")
    (desk / "broken.py").write_text("def f(:\n")
    before = snapshot(desk)
    done = command("neurofleet", "map", *words, cwd=desk)
    assert_refused(done, 2, *says)
    after = {name: what for name, what in snapshot(desk).items() if "__pycache__" not in name}
    assert after == before


def test_map_with_other_code_or_function_in_the_same_directory_is_refused(desk: Path) -> None:
    words = ("items.jsonl", *SERIAL, "--run-dir", "run")
    assert command("neurofleet", "map", "mine:noted", *words, cwd=desk).returncode == 0
    before = snapshot(desk / "run")
    done = command("neurofleet", "map", "mine:picky", *words, cwd=desk)
    assert_refused(done, 2, "has results of function mine:noted, this is mine:picky", "--run-dir")
    (desk / "helper.py").write_text("def square(x):\n    return x ** 3\n")
    done = command("neurofleet", "map", "mine:noted", *words, cwd=desk)
    assert_refused(done, 2, "has results of other code (helper has changed)", "--run-dir")
    assert snapshot(desk / "run") == before


def test_map_with_damaged_results_leaves_them_as_they_are(desk: Path) -> None:
    words = ("map", "mine:noted", "items.jsonl", *SERIAL, "--run-dir", "run")
    assert command("neurofleet", *words, cwd=desk).returncode == 0
    store = desk / "run/items.sqlite"
    content = store.read_bytes()
    assert content.count(b"16") >= 1
    for damaged in (content[:2000], content.replace(b"mine:noted", b"mine;noted"), b"x" * 5000):
        store.write_bytes(damaged)
        done = command("neurofleet", *words, cwd=desk)
        assert_refused(done, 2, "run")
        assert store.read_bytes() == damaged
    store.rename(store.with_name("items.sqlite.damaged"))
    done = command("neurofleet", *words, cwd=desk)
    assert done.returncode == 0, done.stderr
    assert "5 computed" in done.stderr


# -- workloads -----------------------------------------------------------------------


def test_output_that_is_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text("4\n")
    (tmp_path / "link").symlink_to(tmp_path / "kept.jsonl")
    words = ("map", "math:sqrt", "items.jsonl", "--backend", "serial", "--output", "link")
    done = command("neurofleet", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "kept.jsonl").read_text() == '{"result": 2.0}\n'


def test_hello_prints_a_line_for_each_engine_and_keeps_it(tmp_path: Path) -> None:
    done = command("neurofleet", "run", "hello", "--engines=2", "--output=h.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(" on ")[0] for line in lines] == ["engine 0", "engine 1"]
    assert all(line.endswith(": Hello, World") and "neuron 9" in line for line in lines)
    kept = json.loads((tmp_path / "h.json").read_text())["engines"]
    assert len({engine["pid"] for engine in kept}) == 2


def test_workload_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    done = command("neurofleet", "run", "nothing", cwd=tmp_path)
    assert_refused(done, 2, "no workload 'nothing'", "hello, loo-forest")


def test_script_for_slurm_runs_the_command_on_its_own_tasks(tmp_path: Path) -> None:
    done = command(
        "neurofleet", "slurm", "script", "--engines", "8", "--partition", "p", "--time", "90",
        "--slurm-option=--mem-per-cpu=2G", "--module", "gcc", "--stop-before", "60", "--",
        "opt_l5pc", "--start", "--run-dir", "a directory", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=False).returncode == 0
    lines = done.stdout.splitlines()
    for line in (
        "#SBATCH --ntasks=8", "#SBATCH --partition=p", "#SBATCH --time=90", "#SBATCH --requeue",
        "#SBATCH --mem-per-cpu=2G", "#SBATCH --signal=B:USR1@60", "module load gcc",
    ):  # fmt: skip
        assert line in lines
    (called,) = [line for line in lines if "opt_l5pc --backend=slurm" in line]
    assert called.endswith("--stop-within=40s --start --run-dir 'a directory' &")


@pytest.mark.parametrize("words", [["--stop-within=5s"], ["--stop_within", "5s"]])
def test_script_for_slurm_leaves_the_time_to_stop_that_was_given(words: list[str]) -> None:
    text = script(ScriptRequest(["opt_l5pc", *words], engines=1, slurm=SlurmRequest()))
    assert text.count("within") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--engines", "0", "--", "opt_l5pc"], "--engines must be at least 1"),
        (
            ["--engines", "2", "--stop-before", "5", "--", "opt_l5pc"],
            "--stop-before must be at least",
        ),
        (["--engines", "2", "--", "opt_l5pc", "--engines=3"], "the command has --engines"),
        (["--", "opt_l5pc"], "Missing option '--engines'"),
    ],
)
def test_script_for_slurm_that_makes_no_sense_is_refused(
    tmp_path: Path, words: list[str], says: str
) -> None:
    assert_refused(command("neurofleet", "slurm", "script", *words, cwd=tmp_path), 2, says)
