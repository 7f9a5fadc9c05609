"""Run directories whose records were damaged, and what commands make of them."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurofleet.atomic import write_whole
from neurofleet.engine import host_cache
from neurofleet.errors import FleetError, RunDirectoryError
from neurofleet.model import pack
from neurofleet.report import record
from neurofleet.rundir import RunDirectory
from unit.hostile.inputs import (
    DAMAGE,
    NO_FILES,
    Damage,
    assert_documented,
    assert_in_words,
    command,
    hostile,
    json_texts,
    scratch,
)
from unit.support import CREATE, PURE_PYTHON, snapshot

pytestmark = pytest.mark.timeout(240)

SMALL = ("--offspring-size", "3", "--max-ngen", "2", "--backend", "serial", "--no-report")
OPTIMISE = ("optimise", PURE_PYTHON, "--evaluator", "evaluator:create", *SMALL, "--run-dir", "run")


class Finished:
    """A finished run; changed in copies only."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.about = json.loads((directory / "run" / "neurofleet-run.json").read_text())

    def __repr__(self) -> str:
        return "Finished()"

    def copied(self, to: Path) -> Path:
        shutil.copytree(self.directory / "run", to / "run")
        return to / "run"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    directory = tmp_path_factory.mktemp("finished")
    assert command(*OPTIMISE, cwd=directory).code == 0
    (directory / "run" / "best.json").write_text(json.dumps(BEST))
    return Finished(directory)


BEST = {"parameters": [0.5, 0.5], "status": "ok", "responses": {"soma.v": [[0, 1, 2], [-70, 0, 1]]}}


@given(data=st.data())
@hostile("neurofleet-run.json", 60)
def test_record_damaged_is_reported_or_refused(finished: Finished, data: st.DataObject) -> None:
    with scratch() as folder:
        run = finished.copied(folder)
        content = data.draw(json_texts(finished.about))
        (run / "neurofleet-run.json").write_bytes(content)
        before = snapshot(run)
        done = assert_documented(command("report", run, cwd=folder))
        assert snapshot(run).items() >= before.items() or done.code == 0
        assert (run / "neurofleet-run.json").read_bytes() == content


@given(data=st.data())
@hostile("neurofleet-run.json, gone on from", 40)
def test_record_damaged_is_gone_on_from_or_refused(finished: Finished, data: st.DataObject) -> None:
    with scratch() as folder:
        run = finished.copied(folder)
        content = data.draw(json_texts(finished.about))
        (run / "neurofleet-run.json").write_bytes(content)
        done = assert_documented(command(*OPTIMISE, "--json", cwd=folder))
        if done.code == 0:
            assert json.loads(done.out)["simulated"] == 0
        else:
            assert (run / "neurofleet-run.json").read_bytes() == content
        for kept in ("scores.sqlite", "checkpoint.pkl"):
            assert (run / kept).exists()


@given(content=json_texts(BEST))
@hostile("best.json", 60)
def test_traces_damaged_are_left_out_of_the_report(finished: Finished, content: bytes) -> None:
    with scratch() as folder:
        run = finished.copied(folder)
        (run / "best.json").write_bytes(content)
        traces = record.read(run).traces
        assert traces.state == "ok" or not traces.recordings
        assert (run / "best.json").read_bytes() == content


@given(name=st.sampled_from(["scores.sqlite", "checkpoint.pkl"]), damage=DAMAGE)
@hostile("run, reported", 50)
def test_report_of_a_damaged_run_is_written_or_refused(
    finished: Finished, name: str, damage: Damage
) -> None:
    with scratch() as folder:
        run = finished.copied(folder)
        damaged = damage((run / name).read_bytes())
        (run / name).write_bytes(damaged)
        try:
            record.read(run)
        except RunDirectoryError as error:
            assert_in_words(error)
        assert (run / name).read_bytes() == damaged


@given(name=st.sampled_from(["scores.sqlite", "checkpoint.pkl", "best.json"]), damage=DAMAGE)
@hostile("run, reported by command", 12)
def test_command_that_reports_a_damaged_run_ends_as_documented(
    finished: Finished, name: str, damage: Damage
) -> None:
    with scratch() as folder:
        run = finished.copied(folder)
        damaged = damage((run / name).read_bytes())
        (run / name).write_bytes(damaged)
        assert_documented(command("report", run, cwd=folder))
        assert (run / name).read_bytes() == damaged


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("parameters", 0, "name"), None),
        (("whole", "objectives"), [99]),
        (("penalties",), []),
        (("versions",), {"neuron": None}),
    ],
)
def test_record_that_describes_no_model_is_refused(
    finished: Finished, tmp_path: Path, where: tuple[str | int, ...], value: object
) -> None:
    run = finished.copied(tmp_path)
    about = json.loads(json.dumps(finished.about))
    inside = about["description"]
    for key in where[:-1]:
        inside = inside[key]
    inside[where[-1]] = value
    (run / "neurofleet-run.json").write_text(json.dumps(about))
    done = assert_documented(command("report", run, cwd=tmp_path))
    assert "does not describe the model" in done.err


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away takes root")
@pytest.mark.parametrize("name", ["neurofleet-run.json", "scores.sqlite", "checkpoint.pkl"])
@pytest.mark.parametrize("verb", ["optimise", "report"])
def test_run_of_another_user_is_not_gone_on_from(
    finished: Finished, tmp_path: Path, name: str, verb: str
) -> None:
    run = finished.copied(tmp_path)
    os.chown(run / name, 12345, 12345)
    before = snapshot(run)
    words = OPTIMISE if verb == "optimise" else ("report", run, "--traces")
    done = assert_documented(command(*words, cwd=tmp_path))
    assert done.code == 2, done
    assert "another user" in done.err
    assert "code" in done.err
    assert snapshot(run) == before


@pytest.mark.parametrize("kind", ["pipe", "device", "directory"])
def test_result_is_never_written_over_what_is_no_file(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"
    NO_FILES[kind](target)
    (tmp_path / "items.jsonl").write_text("4\n")
    words = ("map", "math:sqrt", "items.jsonl", "--backend", "serial", "--run-dir", "run")
    before = target.lstat().st_mode
    done = assert_documented(command(*words, "--output", target, cwd=tmp_path))
    assert done.code == 2, done
    assert target.lstat().st_mode == before
    with pytest.raises(OSError, match="it is not a plain file"):
        write_whole(target, b"lost")
    assert target.lstat().st_mode == before


def test_link_with_the_name_of_a_file_that_is_being_written_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thesis").write_text("years of work")
    monkeypatch.setattr(secrets, "token_hex", lambda _size: "0123")
    partial = tmp_path / f".file.{os.getpid()}.0123"
    partial.symlink_to(tmp_path / "thesis")
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "file", b"lost")
    monkeypatch.undo()
    write_whole(tmp_path / "file", b"new")
    assert (tmp_path / "thesis").read_text() == "years of work"
    assert (tmp_path / "file").read_bytes() == b"new"


@given(damage=DAMAGE)
@hostile("mark that a model is ready", 40)
def test_mark_of_a_ready_model_damaged_gives_the_same_evaluator(damage: Damage) -> None:
    bundle = pack(PURE_PYTHON, CREATE)
    with scratch() as folder, pytest.MonkeyPatch.context() as patched:
        patched.setenv("NEUROFLEET_CACHE", str(folder))
        host_cache.receive(bundle.digest, bundle.archive)
        model, spec = host_cache.ensure_compiled(bundle.digest)
        mark = model.parent / "ready"
        mark.write_bytes(damage(mark.read_bytes()))
        assert host_cache.ensure_compiled(bundle.digest) == (model, spec)


def test_record_that_is_no_run_is_told(tmp_path: Path) -> None:
    (tmp_path / "neurofleet-run.json").write_text('{"schema_version": 1}')
    assert RunDirectory(tmp_path).read_about() == {"schema_version": 1}
    with pytest.raises(FleetError) as caught:
        raise RunDirectoryError("a\x1b[2Jb\ud800", remedy="c\nd")
    assert_in_words(caught.value)
