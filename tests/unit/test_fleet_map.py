"""Fleet.map on a real engine: seeds, failures with their causes, results on disk, files."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neurofleet import Fleet
from neurofleet.engine.job_content import Place
from neurofleet.errors import Interrupted, RunDirectoryError, UsageError
from neurofleet.fleet import ItemFailed, Stopped
from neurofleet.fleet_map import RemoteTraceback, mechanism_files
from unit.support import wait_until

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet.local(1) as made:
        yield made


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have engines see nothing of the person's directory, as on another machine."""

    @contextlib.contextmanager
    def unseen(_directory: Path) -> Iterator[Place]:
        yield Place(os.getcwd())  # noqa: PTH109

    monkeypatch.setattr("neurofleet.here.place", unseen)


def draw(x: int) -> tuple[int, float]:
    return x, random.random()


def writes(x: int) -> int:
    Path(f"trace_{x}.txt").write_text("v" * x)
    return x


def test_map_draws_by_seed_and_number_and_leaves_the_callers_generators(fleet: Fleet) -> None:
    random.seed(3)
    np.random.seed(3)
    before, legacy = random.getstate(), np.random.get_state()[1].tolist()
    found = [fleet.map(draw, range(4)) for _ in range(2)]
    assert found[0] == found[1]
    assert len({value for _, value in found[0]}) == 4
    assert fleet.map(draw, range(4), seed=1) != found[0]
    assert fleet.map(draw, range(4), seed=np.int64(1)) == fleet.map(draw, range(4), seed=1)
    for seed in (1.5, "1", True, -1):
        with pytest.raises(UsageError, match="the seed must be from 0 to"):
            fleet.map(draw, range(4), seed=seed)
    assert random.getstate() == before
    assert np.random.get_state()[1].tolist() == legacy


def test_map_item_that_fails_carries_the_engines_traceback_with_its_causes(fleet: Fleet) -> None:
    def outer(x: int) -> float:
        try:
            return 1 / x
        except ZeroDivisionError as error:
            raise RuntimeError("cannot simulate") from error

    with pytest.raises(ItemFailed, match=r"item 1 \(the first is 0\).*division by zero") as caught:
        fleet.map(outer, [1, 0])
    failure = caught.value
    assert failure.item == 1
    assert "ZeroDivisionError: division by zero" in failure.traceback
    assert "RuntimeError: cannot simulate" in failure.traceback
    assert isinstance(failure.__cause__, RemoteTraceback)
    shown = "".join(traceback.format_exception(failure))
    assert "The above exception was the direct cause of the following" in shown
    assert 'raise RuntimeError("cannot simulate") from error' in shown


@pytest.mark.parametrize("limit", [-1, 0, float("inf"), float("nan")])
def test_map_with_a_limit_that_is_none_is_refused_and_ends_no_engine(
    fleet: Fleet, limit: float
) -> None:
    with pytest.raises(UsageError, match="must be a number of seconds above 0"):
        fleet.map(abs, [1], item_timeout_s=limit)
    assert fleet.map(abs, [-1]) == [1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"files_limit_mb": float("inf")}, "files_limit_mb"),
        ({"files_limit_mb": float("nan")}, "files_limit_mb"),
        ({"files_limit_mb": -1}, "files_limit_mb"),
    ],
)
def test_map_with_a_number_out_of_its_range_is_refused(
    fleet: Fleet, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        fleet.map(draw, [1], **options)


class TwoParts(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def test_map_result_that_cannot_be_loaded_costs_its_own_item_only(fleet: Fleet) -> None:
    def one_by_one(x: int) -> Any:
        return TwoParts(1, 2) if x == 1 else x

    first, failed, last = fleet.map(one_by_one, range(3), return_exceptions=True)
    assert (first, last) == (0, 2)
    assert isinstance(failed, ItemFailed)
    assert "its result cannot be loaded here: TypeError" in failed.what
    assert "TypeError" in failed.traceback


def test_map_shows_what_calls_print_if_wanted(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    def speaks(x: int) -> int:
        print("hello", x)
        return x

    fleet.map(speaks, [5, 6])
    assert capsys.readouterr().out == ""
    fleet.map(speaks, [5, 6], verbose=True)
    assert capsys.readouterr().out == "items[0]: hello 5\nitems[1]: hello 6\n"


def test_map_works_in_the_callers_directory_and_leaves_nothing_else(
    fleet: Fleet, desk: Path
) -> None:
    assert fleet.map(writes, [1, 2]) == [1, 2]
    assert {path.name for path in desk.iterdir()} == {"trace_1.txt", "trace_2.txt"}


def test_map_on_disk_goes_on_for_the_same_function_data_and_seed_only(
    fleet: Fleet, desk: Path
) -> None:
    def counted(x: int, calls: str) -> int:
        with Path(calls).open("a") as file:
            file.write(f"{x}\n")
        return x * x

    shared = {"calls": str(desk / "calls")}
    assert fleet.map(counted, [1, 2], shared=shared, run_dir="run") == [1, 4]
    assert fleet.map(counted, [3, 2, 1], shared=shared, run_dir="run") == [9, 4, 1]
    assert sorted((desk / "calls").read_text().split()) == ["1", "2", "3"]
    with pytest.raises(RunDirectoryError, match="results of shared data"):
        fleet.map(counted, [1], shared={"calls": str(desk / "others")}, run_dir="run")
    with pytest.raises(RunDirectoryError, match="results of seed 0, this is 1"):
        fleet.map(counted, [1], shared=shared, run_dir="run", seed=1)
    with pytest.raises(UsageError, match="run_dir="):
        fleet.map(counted, [1], shared=shared, keep_results=True)
    assert list(desk.glob(".neurofleet*")) == []
    assert list((desk / "run").glob(".neurofleet*")) == []


def test_map_on_disk_with_changed_code_keeps_results_if_told_to(fleet: Fleet, desk: Path) -> None:
    def make(factor: int) -> Any:
        def scaled(x: int) -> int:
            if x == 2 and factor == 10:
                raise ValueError("a bug")
            return x * factor

        return scaled

    found = fleet.map(make(10), [1, 2], run_dir="run", return_exceptions=True)
    assert found[0] == 10
    with pytest.raises(RunDirectoryError, match="keep_results=True keeps them"):
        fleet.map(make(20), [1, 2], run_dir="run")
    found = fleet.map(make(20), [1, 2, 3], run_dir="run", retry_failed=True, return_exceptions=True)
    assert found[:2] == [10, 40]
    assert "retry_failed=True computes nothing else" in str(found[2])
    assert fleet.map(make(20), [1, 2, 3], run_dir="run") == [10, 40, 60]


def test_map_on_disk_uses_what_was_drawn_for_the_same_number_only(fleet: Fleet, desk: Path) -> None:
    first = fleet.map(draw, [5, 6], run_dir="run")
    assert fleet.map(draw, [5, 6], run_dir="run") == first
    moved = fleet.map(draw, [6, 5], run_dir="run")
    assert [x for x, _ in moved] == [6, 5]
    assert [value for _, value in moved] == [value for _, value in first]


def test_map_on_other_machines_says_which_files_are_lost_or_brings_them_back(
    fleet: Fleet, desk: Path, elsewhere: None
) -> None:
    with pytest.warns(RuntimeWarning, match=r"trace_1\.txt \(item 0\).*run_dir="):
        fleet.map(writes, [1, 2])
    assert list(desk.iterdir()) == []
    for items in ([1, 2], [2, 3, 1]):
        assert fleet.map(writes, items, run_dir="run") == items
        for number, x in enumerate(items, start=1):
            assert (desk / f"run/files/{number}/trace_{x}.txt").read_text() == "v" * x


def test_map_on_other_machines_names_what_exceeds_the_limit(
    fleet: Fleet, desk: Path, elsewhere: None
) -> None:
    def large(x: int) -> int:
        Path("large").write_bytes(bytes(3000))
        Path("small").write_bytes(bytes(10))
        return x

    for _ in range(2):  # the second time it is in the run directory
        with pytest.warns(RuntimeWarning, match=r"not brought back: large \(item 0\)") as caught:
            assert fleet.map(large, [1], run_dir="run", files_limit_mb=0.001) == [1]
        assert caught[0].filename == __file__
    assert [path.name for path in (desk / "run/files/1").iterdir()] == ["small"]


def test_mechanisms_that_are_not_there_are_refused(tmp_path: Path) -> None:
    assert mechanism_files(None) == {}
    for directory in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UsageError, match=r"mechanisms|no \.mod files"):
            mechanism_files(directory)
    (tmp_path / "leak.mod").write_bytes(b"NEURON {}")
    (tmp_path / "notes.txt").touch()
    assert mechanism_files(tmp_path) == {"leak.mod": b"NEURON {}"}


PROGRAM = """
import sys, time
from neurofleet import Fleet

def slow(x):
    time.sleep(0.2)
    return x

if __name__ == "__main__":
    with Fleet.local(1) as fleet:
        print(fleet.map(slow, range(int(sys.argv[1])), run_dir="run"))
"""


def test_map_on_disk_of_a_program_that_is_asked_to_stop_goes_on(desk: Path) -> None:
    (desk / "mine.py").write_text(PROGRAM)
    words = [sys.executable, "mine.py"]
    with (desk / "err").open("wb") as err:
        program = subprocess.Popen([*words, "400"], stderr=err)

    def computed() -> int:
        with contextlib.suppress(OSError, ValueError):
            told = json.loads((desk / "run/status.json").read_text())
            return int(told.get("items_done", 0))
        return 0

    wait_until(lambda: computed() >= 2, timeout_s=60)
    program.send_signal(signal.SIGUSR1)
    assert program.wait(timeout=60) == 130
    told = (desk / "err").read_text().splitlines()
    assert len(told) == 1, told
    assert told[0].startswith("stopped at a safe point")
    kept = computed()
    assert 2 <= kept < 400
    done = subprocess.run([*words, "3"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[0, 1, 2]\n"), done.stderr


def test_stop_that_nobody_catches_ends_a_program_with_130() -> None:
    assert issubclass(Stopped, Interrupted)
    program = "from neurofleet.fleet import Stopped; raise Stopped('stopped', remedy='go on')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (130, b"")
