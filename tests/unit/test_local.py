"""Engines on this machine: as many as asked for, and none left afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from neurofleet.backends.local import LocalEngines, usable_cores
from neurofleet.backends.own_cluster import make_cluster
from neurofleet.errors import UsageError
from unit.support import wait_until


def ours(directory: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if str(directory) in line and "ipyparallel" in line:
            found.append(process)
    return found


@pytest.mark.parametrize("count", [0, -1])
def test_local_engines_fewer_than_one_is_refused(tmp_path: Path, count: int) -> None:
    with pytest.raises(UsageError, match="at least one"):
        LocalEngines(count, tmp_path)


def test_usable_cores_follow_the_affinity_of_this_process() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert usable_cores() == len(allowed)


def test_local_engines_closed_before_they_are_started_do_nothing(tmp_path: Path) -> None:
    LocalEngines(1, tmp_path / "engines").close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(90)
def test_local_engines_started_and_closed_leave_no_process(tmp_path: Path) -> None:
    directory = tmp_path / "engines"
    source = LocalEngines(1, directory)
    try:
        with source.connect() as client:
            client.wait_for_engines(1, timeout=60)
            threads = client[0].apply_sync(os.getenv, "OMP_NUM_THREADS")
            where = client[0].apply_sync(os.getcwd)
        assert threads == "1"
        assert Path(where) == directory  # never the model's
        assert Path(source.connection_file).exists()
        assert source.tend(1) is True
        mode = Path(source.connection_file).stat().st_mode
        assert mode & 0o077 == 0  # it holds the key
    finally:
        source.close()
    wait_until(lambda: not ours(directory), 10)
    source.close()


def test_cluster_in_a_directory_that_was_used_keeps_what_items_have_printed(tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output/host-1.log").write_text("hello")
    (tmp_path / "log").mkdir()
    (tmp_path / "log/old.log").touch()
    (tmp_path / "ipcontroller-client.json").touch()
    make_cluster(0, tmp_path)
    assert (tmp_path / "output/host-1.log").read_text() == "hello"
    assert not (tmp_path / "log/old.log").exists()
    assert not (tmp_path / "ipcontroller-client.json").exists()
