"""``neurofleet status`` says what is in any directory."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from neurofleet import overview
from neurofleet.errors import RunDirectoryError, WorkloadFailed
from neurofleet.itemstore import ItemStore
from neurofleet.runlock import RunLock
from neurofleet.status import Status
from unit.support import assert_refused, called

NOW = time.time()


def write_status(directory: Path, **facts: Any) -> Path:
    """Write what a run that goes on says."""
    with Status(directory, "simulate"):
        pass
    file = directory / "status.json"
    told = json.loads(file.read_text()) | {"state": "running", "engines": 2, "busy": 2} | facts
    file.write_text(json.dumps(told))
    return directory


def test_status_of_a_run_says_what_runs_where_and_for_how_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW)
    running = [
        {"item": 7, "host": "worker1", "since": NOW - 5},
        {"unit": "soma.step of individual 3", "host": "worker2", "since": NOW - 4000},
        {"item": 8, "last": 12, "host": "", "since": NOW - 300},
    ]
    write_status(tmp_path, items_done=6, items_total=20, failed=1, running=running)
    told = overview.look(tmp_path)
    first, *others = overview.lines(told)
    assert first.startswith("simulate: running, 6/20 items, 1 item failed, 2/2 engines busy")
    assert others == [
        "  unit soma.step of individual 3 on worker2 for 66 min",
        "  items 8 to 12 for 5 min",
        "  item 7 on worker1 for 5 s",
    ]
    write_status(tmp_path, running=[{"item": n, "since": NOW} for n in range(30)])
    assert overview.lines(overview.look(tmp_path))[-1] == "  and 10 more"
    write_status(tmp_path, running=running, state="finished")
    assert len(overview.lines(overview.look(tmp_path))) == 1


@pytest.mark.parametrize(
    "running", [{}, [1], [{"since": "x"}], [{"since": 1, "item": "a"}], [{"since": 1, "unit": 3}]],
    ids=str,
)  # fmt: skip
def test_status_with_damaged_entries_is_refused_in_one_line(tmp_path: Path, running: Any) -> None:
    write_status(tmp_path, running=running)
    (tmp_path / "items.sqlite").touch()
    assert_refused(called("neurofleet", "status", ".", cwd=tmp_path), 2, "status.json", "damaged")


def test_status_of_each_kind_of_run_names_the_kind(tmp_path: Path) -> None:
    for name, files, kind in (
        ("o", ["scores.sqlite", "neurofleet-run.json"], "optimisation"),
        ("m", ["items.sqlite"], "map"),
        ("f", ["items.sqlite", "predicted.svg"], "forest"),
    ):
        for file in files:
            (write_status(tmp_path / name) / file).touch()
        assert overview.look(tmp_path / name)["kind"] == kind
    write_status(tmp_path / "m", what="loo-forest")
    assert overview.look(tmp_path / "m")["kind"] == "forest"


@pytest.fixture(autouse=True)
def directories(tmp_path: Path) -> None:
    """Make the directories in which the tests write."""
    for name in ("o", "m", "f"):
        (tmp_path / name).mkdir()


def test_status_of_a_folder_lists_its_runs_the_newest_first(tmp_path: Path) -> None:
    runs = tmp_path / "neurofleet-runs"
    for name, age in (("old", 500.0), ("new", 1.0), ("middle", 90.0)):
        (runs / name).mkdir(parents=True)
        write_status(runs / name, state="finished", what=name, updated=time.time() - age)
    (runs / "hurt").mkdir()
    (runs / "hurt/status.json").write_text("{")
    (runs / "hurt/items.sqlite").touch()
    os.utime(runs / "hurt", (NOW - 10000, NOW - 10000))
    (runs / "notes").mkdir()
    (runs / "notes/text").write_text("no run")
    (runs / "a file").touch()
    done = called("neurofleet", "status", "neurofleet-runs", cwd=tmp_path)
    assert [line.split(": ")[0] for line in done.stdout.splitlines()] == [
        "new", "middle", "old", "hurt",
    ]  # fmt: skip
    assert "hurt: hurt: damaged, " in done.stdout
    here = called("neurofleet", "status", cwd=tmp_path)
    assert here.stdout.splitlines()[0].startswith("neurofleet-runs/new: new: finished")
    told = json.loads(called("neurofleet", "status", "--json", cwd=tmp_path).stdout)
    assert [run["what"] for run in told["runs"]] == ["new", "middle", "old", "hurt"]


def test_status_of_what_is_no_run_says_so(tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/status.json").write_text('{"ok": true}')
    (tmp_path / "file").touch()
    for name, says in (
        ("o", "'o' is empty: nothing was run in it"),
        ("foreign", "'foreign' holds no run of neurofleet"),
        ("nowhere", "there is no directory 'nowhere'"),
        ("file", "'file' is a file"),
    ):
        assert_refused(called("neurofleet", "status", name, cwd=tmp_path), 2, says)


def test_status_of_a_directory_that_is_being_made_names_who_makes_it(tmp_path: Path) -> None:
    lock = RunLock(tmp_path / "o")
    lock.acquire()
    told = overview.look(tmp_path / "o")
    assert told["state"] == "being made"
    assert f"o: being made, by process {os.getpid()} of " in overview.lines(told)[0]
    lock.release()
    assert overview.lines(overview.look(tmp_path / "o")) == ["o: not begun"]
    with ItemStore(tmp_path / "m", {"function": "mine:f"}):
        pass
    assert overview.lines(overview.look(tmp_path / "m")) == ["m: not begun, 0 results in the store"]


def test_status_of_a_run_of_a_version_without_status_tells_what_there_is(tmp_path: Path) -> None:
    run = tmp_path / "o"
    for state, says in (("finished", "finished"), ("running", "killed")):
        about = {"schema_version": 1, "name": "l5pc", "state": state}
        (run / "neurofleet-run.json").write_text(json.dumps(about))
        told = overview.look(run)
        assert (told["kind"], told["state"]) == ("optimisation", says)
        assert overview.lines(told) == [f"l5pc: {says}"]
    (run / "neurofleet-run.json").write_text("{")
    with pytest.raises(RunDirectoryError, match="is damaged"):
        overview.look(run)


def test_status_of_a_run_that_failed_says_why_in_its_line(tmp_path: Path) -> None:
    with pytest.raises(WorkloadFailed), Status(tmp_path / "o", "l5pc"):
        raise WorkloadFailed("the model\nis broken", remedy="Mend it")
    assert overview.lines(overview.look(tmp_path / "o"))[0].endswith(
        "because: the model is broken. Mend it."
    )
