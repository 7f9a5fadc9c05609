"""Files that are replaced whole, and what those who write them say when there is no room."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from neurofleet import checkpoint, remembered
from neurofleet.atomic import write_whole
from neurofleet.errors import RunDirectoryError, UsageError
from neurofleet.status import Status, read
from neurofleet.workloads import hello
from unit.support import no_room


def test_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with no_room(1000), pytest.raises(OSError, match="File too large") as caught:
        write_whole(tmp_path / "file", b"new" * 10_000)
    assert caught.value.errno == errno.EFBIG
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_write_of_a_file_with_the_longest_name_works(tmp_path: Path) -> None:
    for name in ("n" * 255, "日" * 85):
        write_whole(tmp_path / name, b"new")
        assert (tmp_path / name).read_bytes() == b"new"


def test_write_from_several_threads_leaves_one_of_the_contents(tmp_path: Path) -> None:
    contents = [bytes([number]) * 300_000 for number in range(4)]

    def write(content: bytes) -> None:
        for _ in range(10):
            write_whole(tmp_path / "file", content, lasting=False)

    threads = [threading.Thread(target=write, args=[content]) for content in contents]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert not (tmp_path / "file").exists() or (tmp_path / "file").read_bytes() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("number", "is_written"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_write_where_directories_cannot_be_synchronised_is_a_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_written: bool
) -> None:
    fsync = os.fsync

    def of_files_only(opened: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{opened}"):  # noqa: PTH112
            raise OSError(number, os.strerror(number))
        fsync(opened)

    monkeypatch.setattr(os, "fsync", of_files_only)
    if is_written:
        write_whole(tmp_path / "file", b"new")
        assert (tmp_path / "file").read_bytes() == b"new"
    else:
        with pytest.raises(OSError, match="Input/output error"):
            write_whole(tmp_path / "file", b"new")


def test_checkpoint_without_room_says_that_no_score_is_lost(tmp_path: Path) -> None:
    with no_room(), pytest.raises(RunDirectoryError) as caught:
        checkpoint.write(tmp_path / "here.pkl", {"generation": 1}, {})
    assert "no score is lost" in caught.value.remedy
    assert "--checkpoint" in caught.value.remedy


def test_hello_without_room_says_nothing_of_a_run(tmp_path: Path) -> None:
    with no_room(), pytest.raises(UsageError, match=r"cannot be written .*--output") as caught:
        hello.keep([], tmp_path / "said.json")
    assert "kept" not in str(caught.value)


def test_status_and_what_is_remembered_go_on_without_room(tmp_path: Path) -> None:
    with Status(tmp_path, "a run") as status:
        with no_room():
            status.tell(items_done=1)
            remembered.remember(tmp_path / "units.json", {"mode": "split"})
        assert remembered.recall(tmp_path / "units.json") is None
        remembered.remember(tmp_path / "units.json", {"mode": "whole"})
    assert read(tmp_path)["items_done"] == 1
    assert remembered.recall(tmp_path / "units.json") == {"mode": "whole"}


def test_costs_without_room_say_so_on_the_head(tmp_path: Path) -> None:
    machine = {
        "id": "i-1",
        "name": "head",
        "pool": "head",
        "type": "t3.small",
        "spot": False,
        "launched": 0.0,
    }
    asked = {"fleet": "lab", "machines": [machine | {"hourly_usd": 0.02, "price_of": "today"}]}
    done = subprocess.run(
        [sys.executable, "-m", "neurofleet.costs", "update", tmp_path / "none" / "costs.json"],
        input=json.dumps(asked), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "cannot be written (No such file or directory). Make room" in done.stderr
    assert "run the same command" not in done.stderr
