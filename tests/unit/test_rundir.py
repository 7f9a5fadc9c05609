"""The run directory: made, read, and left alone when it is somebody else's."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from neurofleet.errors import RunDirectoryError
from neurofleet.rundir import RunDirectory, this_machine, write_file
from unit.support import no_room, snapshot


def test_create_new_directory_with_parents_is_empty(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "a" / "b")
    run.create()
    run.create()
    assert list(run.path.iterdir()) == []
    assert run.read_about() is None


def test_create_directory_of_something_else_is_refused_and_not_changed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    before = snapshot(tmp_path)
    with pytest.raises(RunDirectoryError, match="is not empty and not a run directory"):
        RunDirectory(tmp_path).create()
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "names",
    [["scores.lock"], ["scores.lock", "scores.sqlite"], ["scores.sqlite", "checkpoint.pkl"]],
    ids=str,
)
def test_create_what_a_refused_run_left_is_used_again(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).touch()
    RunDirectory(tmp_path).create()


def test_create_file_in_the_way_is_refused_and_not_changed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RunDirectoryError, match="cannot be used"):
            RunDirectory(path).create()
    assert (tmp_path / "file").read_text() == "content"


def test_create_where_nothing_can_be_written_is_refused() -> None:
    with pytest.raises(RunDirectoryError, match="cannot be used"):
        RunDirectory(Path("/proc/self")).create()


def test_about_written_is_read_again(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write_about({"name": "l5pc", "seed": 42})
    run.create()
    assert run.read_about() == {"schema_version": 1, "name": "l5pc", "seed": 42}


@pytest.mark.parametrize("content", ["", "{", "[]", "1", "{}", "null", "\0"])
def test_about_damaged_is_refused_and_not_changed(tmp_path: Path, content: str) -> None:
    run = RunDirectory(tmp_path)
    run.about.write_text(content)
    with pytest.raises(RunDirectoryError, match=r"is damaged.*Remove that file"):
        run.read_about()
    assert run.about.read_text() == content


def test_about_not_utf8_is_refused(tmp_path: Path) -> None:
    RunDirectory(tmp_path).about.write_bytes(b"\xff\xfe{}")
    with pytest.raises(RunDirectoryError, match="is damaged"):
        RunDirectory(tmp_path).read_about()


def test_about_of_a_later_version_is_refused(tmp_path: Path) -> None:
    RunDirectory(tmp_path).about.write_text(json.dumps({"schema_version": 2}))
    with pytest.raises(RunDirectoryError, match="has schema_version 2"):
        RunDirectory(tmp_path).read_about()


def test_file_of_a_run_that_cannot_be_written_says_what_is_kept(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.write_about({"command": "old"})
    with no_room(), pytest.raises(RunDirectoryError) as caught:
        directory.write_about({"command": "new" * 100})
    assert "neurofleet-run.json' cannot be written (File too large)" in caught.value.what
    assert "what was computed is kept" in caught.value.remedy
    assert (directory.read_about() or {})["command"] == "old"
    with pytest.raises(RunDirectoryError, match=r"cannot be written .*Another place\."):
        write_file(tmp_path / "nowhere" / "file", b"", remedy="Another place")


def test_this_machine_says_what_a_reader_wants() -> None:
    told = this_machine()
    assert told["cores"] >= 1
    assert told["python"] == sys.version.split()[0]
    json.dumps(told)
