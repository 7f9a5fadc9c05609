"""``status.json`` says how far a run is, also when the run cannot say it any more."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from neurofleet import status
from neurofleet.errors import Interrupted, RunDirectoryError, WorkloadFailed
from neurofleet.farm import FarmState, Running
from neurofleet.status import CONFIRM_S, SOON_S, WORTH_A_LINE_S, Patience, Status
from unit.support import command, wait_until, write_model


def content(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "status.json").read_text()))


def test_status_of_a_run_that_finished_was_interrupted_or_failed(tmp_path: Path) -> None:
    with Status(tmp_path, "l5pc"):
        assert content(tmp_path)["state"] == "preparing"
    assert content(tmp_path)["state"] == "finished"
    for error, state in (
        (Interrupted("a", remedy="b"), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
        (WorkloadFailed("the model is broken", remedy="Mend it"), "failed"),
    ):
        with pytest.raises(type(error)), Status(tmp_path, "l5pc"):
            raise error
        assert content(tmp_path)["state"] == state
    assert content(tmp_path)["why"] == "the model is broken. Mend it."


def test_status_changes_are_in_the_file_soon_and_confirmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with Status(tmp_path, "l5pc") as told:
        told.tell(units_done=1)
        assert "units_done" not in content(tmp_path), "not more than twice a second"
        clock[0] += SOON_S + 0.1
        told.tell(units_done=1)  # somebody tends the engines: what has waited is written
        assert content(tmp_path)["units_done"] == 1
        before = content(tmp_path)["updated"]
        clock[0] += CONFIRM_S - 0.1
        told.tell(units_done=1)
        assert content(tmp_path)["updated"] == before
        clock[0] += 0.2
        told.tell(units_done=1)
        assert content(tmp_path)["updated"] > before


def test_status_tells_since_when_engines_are_missing(tmp_path: Path) -> None:
    with Status(tmp_path, "l5pc") as told:
        told.farm(FarmState(0, 0, time.monotonic() - 20, 2, 300.0))
        time.sleep(SOON_S + 0.1)
        told.farm(FarmState(0, 0, time.monotonic() - 20, 2, 300.0))
        found = content(tmp_path)
        assert found["state"] == "waiting for engines"
        assert 19 < found["updated"] - found["waiting_since"] < 25
        time.sleep(SOON_S + 0.1)
        told.farm(FarmState(2, 1, None, 2, 300.0))
        found = content(tmp_path)
        assert (found["state"], found["busy"], found["waiting_since"]) == ("running", 1, None)


def test_status_names_what_runs_where_and_since_when(tmp_path: Path) -> None:
    running = (
        Running(("Step1", (0.5, 1.0)), "worker2", 1000.04),
        Running((4,), "worker1", 2000.0),
        Running((7, 8, 9), "", 3000.0),
    )
    with Status(tmp_path, "l5pc") as told:
        told.farm(FarmState(3, 3, None, 3, 300.0, running))
        wait_until(lambda: content(tmp_path).get("running"))
        assert content(tmp_path)["running"] == [
            {"unit": "Step1", "host": "worker2", "since": 1000.0},
            {"item": 5, "host": "worker1", "since": 2000.0},
            {"item": 8, "last": 10, "host": "", "since": 3000.0},
        ]
    assert content(tmp_path)["running"] == []


def test_status_change_is_in_the_file_also_if_nobody_says_more(tmp_path: Path) -> None:
    """A unit that this process computes itself may take an hour."""
    with Status(tmp_path, "l5pc") as told:
        told.tell(units_done=1)
        wait_until(lambda: content(tmp_path).get("units_done") == 1, 5)


def test_status_of_a_run_whose_number_another_process_has_is_killed(tmp_path: Path) -> None:
    with Status(tmp_path, "l5pc"):
        found = content(tmp_path)
        assert status.read(tmp_path)["state"] == "preparing"
    file = tmp_path / "status.json"
    file.write_text(json.dumps({**found, "pid_start": found["pid_start"] - 1}))
    assert status.read(tmp_path)["state"] == "killed"
    del found["pid_start"]  # written by an earlier version
    file.write_text(json.dumps(found))
    assert status.read(tmp_path)["state"] == "preparing"


def test_status_command_tells_a_finished_and_a_killed_run(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    done = command(
        "neurofleet", "optimise", "model", "--evaluator=evaluator:create", "--backend=serial",
        "--offspring-size=3", "--max-ngen=2", "--no-report", "--run-dir=run", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    simulated = int(done.stderr.split(" simulated")[0].rpartition("\n")[2])
    told = command("neurofleet", "status", "run", cwd=tmp_path)
    assert told.stdout.startswith("model: finished, generation 2 of 2, 3/3 units, best ")
    found = json.loads(command("neurofleet", "status", "run", "--json", cwd=tmp_path).stdout)
    assert (found["simulated"], found["generations_done"], found["engines"]) == (simulated, 2, 0)

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / "run/status.json").write_text(
        json.dumps({**found, "state": "running", "pid": gone.pid})
    )
    told = command("neurofleet", "status", "run", cwd=tmp_path)
    assert told.stdout.startswith("model: killed, generation 2 of 2")


def test_status_of_scores_that_are_not_finite_is_json_that_any_reader_takes(
    tmp_path: Path,
) -> None:
    with Status(tmp_path, "l5pc") as told:
        told.tell(best=math.nan, population_min=math.inf, mean=math.nan, not_finite={"a": 3})
    text = (tmp_path / "status.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    found = status.read(tmp_path)
    assert (found["best"], found["not_finite"]) == (None, {"a": 3})
    assert "NaN or infinite scores: a (3)" in status.line(found)


def test_status_best_is_the_best_so_far_with_the_populations_own_beside_it(tmp_path: Path) -> None:
    with Status(tmp_path, "l5pc") as told:
        told.tell(best=1.5, population_min=1.75)
    assert "best 1.5 (population minimum 1.75)" in status.line(status.read(tmp_path))


def test_status_that_an_earlier_version_wrote_with_nan_is_read(tmp_path: Path) -> None:
    with Status(tmp_path, "l5pc"):
        pass
    found = {**content(tmp_path), "best": math.nan, "mean": math.inf}
    (tmp_path / "status.json").write_text(json.dumps(found))
    assert status.read(tmp_path)["best"] is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", '{"schema_version": 1}', '{"schema_version": 2}', "\0"]
)
def test_status_that_is_damaged_is_told_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text)
    with pytest.raises(RunDirectoryError, match="is damaged"):
        status.read(tmp_path)


def test_status_of_another_version_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"schema_version": 2, "state": "running"}')
    with pytest.raises(RunDirectoryError, match="schema_version 2, this program knows 1") as told:
        status.read(tmp_path)
    assert "damaged" not in str(told.value)


@pytest.mark.parametrize(
    ("seconds", "says"),
    [(-3, "0 s"), (0.4, "0 s"), (119, "119 s"), (150, "2 min"), (8000, "2 h 13 min"),
     (3 * 86400 + 5, "3 days")],
)  # fmt: skip
def test_length_of_time_is_said_as_people_say_it(seconds: float, says: str) -> None:
    assert status.plain_time(seconds) == says


def test_status_of_what_is_no_run_directory_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="No such file"):
        status.read(tmp_path)


def test_patience_speaks_after_ten_seconds_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    patience = Patience(again_s=30.0)
    none = FarmState(0, 0, 1000.0, 0, 300.0)
    assert patience.line(none) is None
    clock[0] += WORTH_A_LINE_S
    assert patience.line(none) == ("waiting for engines since 10 s (none); giving up after 300 s")
    clock[0] += 29.0
    assert patience.line(none) is None
    clock[0] += 1.0
    assert patience.line(none._replace(registered=2)) == (
        "waiting for engines since 40 s (2 registered, being prepared); giving up after 300 s"
    )
    assert patience.line(FarmState(2, 0, None)) is None
    clock[0] += 1.0
    assert patience.line(none._replace(waiting_since=clock[0] - 11)) is not None, "a new wait"
