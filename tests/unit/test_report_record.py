"""Reading a run directory: what is taken, what is refused, and with which remedy."""

from __future__ import annotations

import json
import math
import os
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from neurofleet.engine.outcome import Outcome
from neurofleet.errors import FleetError, RunDirectoryError
from neurofleet.report import record, write_report
from neurofleet.report.scores import engine_order
from neurofleet.store import FILE, Store
from unit.report_runs import DIGEST, SMALL, VERSIONS, Shape, make_run, put_all


def test_record_whole_run_holds_what_was_written(tmp_path: Path) -> None:
    found = record.read(make_run(tmp_path / "run", SMALL))
    assert found.directory == "run"
    assert found.generation == 3
    assert found.progress.generation.tolist() == [1, 2, 3]
    assert found.population.shape == (8, 5)
    assert found.best.fitness == pytest.approx(sum(found.best.scores))
    assert found.best.scores[7] == 250.0
    assert len(found.evaluations.phases) == 4
    assert found.evaluations.count == 6 + 3 * 8
    assert found.evaluations.units == ("bAP", "Step1", "whole")
    assert found.traces.state == "ok"
    assert "Step1.soma.v" in found.traces.recordings


def test_record_run_in_progress_is_read_beside_its_writer(tmp_path: Path) -> None:
    run = make_run(tmp_path, replace(SMALL, state="running"))
    with Store(run, DIGEST, VERSIONS):
        assert record.read(run).about["state"] == "running"


def test_record_reading_changes_nothing_in_the_directory(tmp_path: Path) -> None:
    run = make_run(tmp_path, SMALL)
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in run.iterdir() if p.is_file()}
    record.read(run)
    after = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in run.iterdir() if p.is_file()}
    assert before == after


def test_record_scores_of_other_versions_are_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path, SMALL)
    expected = record.read(run).evaluations.count
    for model, versions in ((DIGEST, {**VERSIONS, "neuron": "8.2.0"}), ("ab" * 32, VERSIONS)):
        with Store(run, model, versions) as store:
            put_all(store, [("bAP", (1.0,), Outcome("ok", (1.0,), "", 1e9, 5.0, "old", 1))])
    found = record.read(run).evaluations
    assert found.count == expected
    assert ("old", 1) not in found.engines


def test_record_store_absent_gives_no_evaluations(tmp_path: Path) -> None:
    run = make_run(tmp_path, SMALL)
    (run / FILE).unlink()
    assert record.read(run).evaluations.count == 0
    assert "No unit of this run has been simulated here" in write_report(run).read_text()


@pytest.mark.parametrize("named", ["elsewhere", "gone"])
def test_record_checkpoint_named_in_the_record_is_found(tmp_path: Path, named: str) -> None:
    run = make_run(tmp_path / "run", SMALL)
    about = json.loads((run / "neurofleet-run.json").read_text())
    about["checkpoint"] = str(tmp_path / named / "my.pkl")
    (run / "neurofleet-run.json").write_text(json.dumps(about))
    if named == "elsewhere":
        (tmp_path / named).mkdir()
        (run / "checkpoint.pkl").rename(about["checkpoint"])
    assert record.read(run).generation == 3


@pytest.mark.parametrize(
    ("content", "state"),
    [
        (None, "absent"),
        ({"parameters": [1.0], "status": "ok", "responses": {}}, "stale"),
        ("not json", "unreadable"),
        ([], "unreadable"),
    ],
)
def test_record_traces_unusable_are_named(tmp_path: Path, content: object, state: str) -> None:
    run = make_run(tmp_path, SMALL)
    (run / "best.json").unlink()
    if content is not None:
        text = content if content == "not json" else json.dumps(content)
        (run / "best.json").write_text(str(text))
    assert record.read(run).traces.state == state
    assert "--traces" in write_report(run).read_text()


def test_record_traces_with_holes_keep_what_is_finite(tmp_path: Path) -> None:
    run = make_run(tmp_path, SMALL)
    best = json.loads((run / "best.json").read_text())
    best["responses"] = {
        "bAP.soma.v": [[0, 1, 2, 3], [-80, math.nan, -70, -60]], "Step1.soma.v": None,
        "Step2.soma.v": [[], []], "Step3.soma.v": [[0.0], [-80.0]], "bAP.count": 3,
    }  # fmt: skip
    (run / "best.json").write_text(json.dumps(best))
    traces = record.read(run).traces
    assert list(traces.recordings) == ["bAP.soma.v"]
    assert np.array_equal(traces.recordings["bAP.soma.v"][1], [-80, -70, -60])
    assert traces.empty == ("Step1.soma.v", "Step2.soma.v", "Step3.soma.v", "bAP.count")
    write_report(run)


def _refused(run: Path) -> str:
    with pytest.raises(FleetError) as caught:
        write_report(run)
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    assert not (run / "report.html").exists()
    return str(caught.value)


def test_report_no_run_there_says_so(tmp_path: Path) -> None:
    assert "there is no run" in _refused(tmp_path)
    assert "there is no run" in _refused(tmp_path / "missing")


def test_report_no_finished_generation_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path, SMALL)
    (run / "checkpoint.pkl").unlink()
    assert "finished no generation yet" in _refused(run)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_report_checkpoint_of_another_user_is_not_opened(tmp_path: Path) -> None:
    run = make_run(tmp_path, SMALL)
    os.chown(run / "checkpoint.pkl", 65534, 65534)
    assert "belongs to another user" in _refused(run)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x04N."])
def test_report_damaged_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    run = make_run(tmp_path, SMALL)
    (run / "checkpoint.pkl").write_bytes(content)
    assert "is damaged" in _refused(run)


def test_report_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", SMALL)
    other = make_run(tmp_path / "b", Shape(generations=2, parameters=("x", "y")))
    (other / "checkpoint.pkl").replace(run / "checkpoint.pkl")
    assert "another model's" in _refused(run)


def test_report_damaged_store_points_to_repair(tmp_path: Path) -> None:
    run = make_run(tmp_path, SMALL)
    (run / FILE).write_bytes(b"no database at all, and long enough to be none" * 40)
    assert "neurofleet repair" in _refused(run)


def test_report_store_of_a_later_format_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, SMALL)
    db = sqlite3.connect(run / FILE)
    db.execute("PRAGMA user_version = 99")
    db.close()
    assert "format 99" in _refused(run)


@pytest.mark.parametrize("field", ["description", "model"])
def test_report_record_without_its_model_is_refused(tmp_path: Path, field: str) -> None:
    run = make_run(tmp_path, SMALL)
    about = json.loads((run / "neurofleet-run.json").read_text())
    del about[field]
    (run / "neurofleet-run.json").write_text(json.dumps(about))
    assert "does not describe the model" in _refused(run)


def test_report_unwritable_directory_keeps_the_old_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, SMALL)
    write_report(run)
    before = (run / "report.html").read_bytes()

    def no_room(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(RunDirectoryError, match="No space left"):
        write_report(run)
    assert (run / "report.html").read_bytes() == before


def test_engine_order_numbered_hosts_sorts_by_number() -> None:
    engines = [("w10", 1), ("w9", 2), ("w9", 1), ("a", 5), ("10.0.0.2", 1)]
    assert sorted(engines, key=engine_order) == [
        ("10.0.0.2", 1), ("a", 5), ("w9", 1), ("w9", 2), ("w10", 1),
    ]  # fmt: skip
