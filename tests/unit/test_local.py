"""Engines on this machine: as many as asked for, and none left afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from neurofleet import __version__
from neurofleet.backends.local import LocalEngines, usable_cores
from neurofleet.engine import tasks
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
        assert Path(where) == Path.cwd()  # as ipyparallel's own do
        assert Path(source.connection_file).exists()
        assert source.tend(1) is True
        mode = Path(source.connection_file).stat().st_mode
        assert mode & 0o077 == 0  # it holds the key
    finally:
        source.close()
    wait_until(lambda: not ours(directory), 10)
    source.close()


@pytest.mark.timeout(90)
def test_local_engines_in_a_directory_with_files_named_like_modules_start_and_keep_all_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("random", "neurofleet", "zmq", "neuron"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    directory = tmp_path / "run" / "engines"
    earlier = directory / "log" / "ipengine-old.log"  # as neurofleet 0.1 left it
    earlier.parent.mkdir(parents=True)
    earlier.write_text("kept")
    printed = directory / "output" / "host-1.log"
    printed.parent.mkdir()
    printed.write_text("hello")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        source = LocalEngines(1, directory)
        try:
            with source.connect() as client:
                client.wait_for_engines(1, timeout=60)
                told = client[0].apply_sync(tasks.probe)
        finally:
            source.close()
        assert told["neurofleet"] == __version__
    assert earlier.read_text() == "kept"
    assert printed.read_text() == "hello"
    logs = {path.relative_to(directory).parts[0] for path in directory.rglob("*.log")}
    assert logs == {"log", "output", "1", "2"}
    assert not list(directory.rglob("*.json"))  # those with the key are gone
