"""The run directory: made, read, and left alone when it is somebody else's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from neurofleet.errors import RunDirectoryError
from neurofleet.rundir import RunDirectory, this_machine, write_whole
from unit.support import snapshot


def test_create_new_directory_with_parents_is_empty(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "a" / "b")
    run.create()
    run.create()
    assert list(run.path.iterdir()) == []
    assert run.read_about() is None


def test_create_directory_of_something_else_is_refused_and_not_changed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    before = snapshot(tmp_path)
    with pytest.raises(RunDirectoryError, match="is not empty and no run directory"):
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


def test_write_whole_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    """The limit on file sizes makes a write fail half-way, as a full disk does."""
    (tmp_path / "file").write_text("old")
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from neurofleet.errors import RunDirectoryError\n"
        "from neurofleet.rundir import write_whole\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    write_whole(Path(sys.argv[1]), b'new' * 10_000)\n"
        "except RunDirectoryError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "file"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "cannot be written (File too large). Make room" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_write_whole_into_no_directory_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        write_whole(tmp_path / "nowhere" / "file", b"")


def test_this_machine_says_what_a_reader_wants() -> None:
    told = this_machine()
    assert told["cores"] >= 1
    assert told["python"] == sys.version.split()[0]
    json.dumps(told)
