"""Fleet.map on real engines: order, batches, losses, and what cannot be sent."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neurofleet import Fleet, __version__
from neurofleet.batches import Items, JobPreparation, python_version
from neurofleet.engine import host_cache, tasks
from neurofleet.engine.job import Missing
from neurofleet.engine.job_content import BatchEnded, Ended
from neurofleet.errors import EnginesUnreachable, UsageError, WorkloadFailed
from neurofleet.fleet import ItemFailed
from neurofleet.jobs import Job

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet.local(2) as made:
        yield made


def received() -> list[Path]:
    """The jobs that this host has received."""
    folder = host_cache.host_directory() / "jobs"
    return sorted(folder.iterdir()) if folder.exists() else []


def of_this_file(x: int) -> tuple[int, int]:
    return x * x, os.getppid()


def test_map_of_many_items_gives_results_in_order_from_both_engines(fleet: Fleet) -> None:
    found = fleet.map(of_this_file, range(300))
    assert [square for square, _ in found] == [x * x for x in range(300)]
    assert len({pid for _, pid in found}) == 2  # each engine's process that holds the function
    assert os.getpid() not in {pid for _, pid in found}


def test_map_of_nothing_is_empty(fleet: Fleet) -> None:
    assert fleet.map(abs, []) == []


def test_map_quick_items_travel_in_batches_slow_ones_alone(fleet: Fleet) -> None:
    sent: list[int] = []
    farm = fleet._farm
    assert farm is not None
    submit, fleet_submit = farm._view.apply_async, "apply_async"

    def counted(function: Any, *args: Any) -> Any:
        if getattr(function, "name", "").endswith("run_batch"):
            sent.append(len(args[1]))
        return submit(function, *args)

    farm._view.__dict__[fleet_submit] = counted
    try:
        fleet.map(abs, range(5000))
        assert max(sent) > 200, sent
        assert len(sent) < 200
        sent.clear()
        fleet.map(lambda _x: time.sleep(0.6), range(6))
        assert sent == [1] * 6
    finally:
        del farm._view.__dict__[fleet_submit]


@pytest.mark.parametrize(("each_s", "together"), [(0.3, 3), (0.6, 2), (0.7, 1), (3.0, 1)])
def test_batch_takes_about_a_second(each_s: float, together: int) -> None:
    items = Items(Job.of(abs), dict.fromkeys(range(100), b""), lambda: 2)
    assert len(next(items).key) == 1  # nothing is known yet
    items.ended(BatchEnded((Ended("ok"),), each_s, "host", 1))
    assert len(next(items).key) == together


def test_map_shared_data_are_received_once_by_a_host(fleet: Fleet) -> None:
    before = received()
    data = np.arange(200_000.0)
    found = fleet.map(
        lambda i, values: (float(values[i]), os.getpid()), range(40), shared={"values": data}
    )
    assert [value for value, _ in found] == list(map(float, range(40)))
    new = [path for path in received() if path not in before]
    assert len(new) == 1
    assert new[0].stat().st_size > data.nbytes
    assert new[0].parent.stat().st_mode & 0o077 == 0


def test_preparation_sends_a_job_once_to_each_host_and_again_when_the_receiver_was_lost() -> None:
    preparation = JobPreparation(Job.of(abs))
    sent: list[str] = []

    def ask(host: str, answer: Any) -> Any:
        call = preparation.request(answer)
        assert call is not None
        if len(call) > 2 and call[2] is not None:
            sent.append(host)
        return call

    for host in ("a", "b", "a", "b", "b"):
        assert ask(host, None) == (tasks.probe,)
    about = {"neurofleet": __version__, "python": python_version(), "versions": {}}
    waiting = [ask(host, {"host": host, **about}) for host in ("a", "b", "a", "b", "b")]
    assert [call[3] for call in waiting] == [0.0] * 5
    for host in ("a", "b", "a", "b"):
        ask(host, Missing(host))
    assert sent == ["a", "b"]
    assert ask("b", {"host": "b", **about})[3] > 1  # it waits for what is being received
    ask("b", Missing("b", waited=True))  # and waited in vain
    assert sent == ["a", "b", "b"]
    assert preparation.request("a") is None


def test_preparation_leaves_out_an_engine_with_another_python() -> None:
    about = {"host": "a", "neurofleet": __version__, "python": "3.1", "versions": {}}
    with pytest.raises(WorkloadFailed, match=r"the engine on a has Python 3.1, this machine has"):
        JobPreparation(Job.of(abs)).request(about)


def test_map_function_that_raises_names_item_exception_and_line(fleet: Fleet) -> None:
    with pytest.raises(ItemFailed, match=r"item 3.*ZeroDivisionError") as caught:
        fleet.map(lambda x: 1 / (x - 3), range(6))
    assert caught.value.item == 3
    assert "test_fleet.py, line" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_map_exceptions_returned_beside_the_results_of_the_others(fleet: Fleet) -> None:
    found = fleet.map(lambda x: 6 // x, [1, 0, 3], return_exceptions=True)
    assert found[0] == 6
    assert found[2] == 2
    assert isinstance(found[1], ItemFailed)


@pytest.mark.parametrize("how", ["python", "native"])
def test_map_item_that_never_ends_is_ended_at_its_limit_the_others_are_kept(
    fleet: Fleet, how: str
) -> None:
    def endless(x: int, how: str) -> int:
        import hashlib

        while x == 2:
            if how == "native":  # one call that does not come back to Python for long
                hashlib.pbkdf2_hmac("sha256", b"", b"", 500_000_000)
            time.sleep(0.01)
        return x

    found = fleet.map(
        endless, range(5), shared={"how": how}, item_timeout_s=0.5, return_exceptions=True
    )
    assert [value for value in found if not isinstance(value, ItemFailed)] == [0, 1, 3, 4]
    assert "ended at its limit of 0.5 s" in str(found[2])
    assert fleet.map(abs, [-1]) == [1]


def test_map_item_that_ends_its_process_costs_no_other_item_and_no_engine(fleet: Fleet) -> None:
    engines = fleet.client[:].apply_sync(os.getpid)

    def deadly(x: int) -> int:
        if x == 70:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    found = fleet.map(deadly, range(100), return_exceptions=True)
    bad = [n for n, value in enumerate(found) if isinstance(value, ItemFailed)]
    assert bad == [70]
    assert "its process was ended by SIGKILL" in str(found[70])
    assert fleet.client[:].apply_sync(os.getpid) == engines


def test_map_item_that_cannot_be_sent_is_named(fleet: Fleet) -> None:
    with pytest.raises(UsageError, match="item 2, a generator, cannot be sent"):
        fleet.map(abs, [1, 2, (i for i in range(3))])


def test_map_function_that_cannot_be_sent_is_named(fleet: Fleet) -> None:
    notes = sqlite3.connect(":memory:")
    with pytest.raises(UsageError, match="cannot be sent to engines: its variable 'notes' is a"):
        fleet.map(lambda x: notes.execute("select ?", (x,)), [1])


def test_map_result_that_cannot_be_sent_back_is_told(fleet: Fleet) -> None:
    with pytest.raises(ItemFailed, match="its result cannot be sent back"):
        fleet.map(lambda x: (i for i in range(x)), [1])


def test_map_function_whose_import_engines_lack_is_told_with_a_remedy(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    # It is installed for the client only, so it travels as a name.
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "only_here.py").write_text("def f(x):\n    return x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import only_here  # type: ignore[import-not-found]

    try:
        with pytest.raises(WorkloadFailed, match="No module named 'only_here'") as caught:
            fleet.map(only_here.f, [1])
    finally:
        del sys.modules["only_here"]
    assert "Install what it imports there" in str(caught.value)
    assert fleet.map(abs, [-1]) == [1]


def test_client_is_a_plain_client_of_these_engines(fleet: Fleet) -> None:
    view = fleet.client[:]
    assert view.apply_sync(os.getpid) != []
    assert fleet.client is fleet.client
    assert len(fleet.client.ids) == len(fleet)


def test_fleet_outside_its_block_is_refused() -> None:
    with pytest.raises(UsageError, match="closed"):
        Fleet.local(1).map(abs, [1])
    for count in (0, 1.5, "2", True):
        with pytest.raises(UsageError, match=f"--engines must be from 1 to .*, not {count!r}"):
            Fleet.local(count)  # type: ignore[arg-type]


def test_fleet_of_a_profile_that_nobody_started_is_unreachable() -> None:
    with (
        pytest.raises(EnginesUnreachable, match=re.escape("profile nobody")),
        Fleet.profile("nobody"),
    ):
        pass
