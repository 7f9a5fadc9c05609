"""A function called in forks: what a call may do, what it costs, what comes back of it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import psutil
import pytest

from neurofleet.engine import job, job_files, job_mechanisms
from neurofleet.engine.job import Missing
from neurofleet.engine.job_content import BatchEnded, Calls, Ended, JobContent, Place, Source
from neurofleet.engine.job_server import JobServer
from neurofleet.errors import ModelError, WorkloadFailed
from unit.support import command, wait_until

pytestmark = pytest.mark.timeout(60)

THIS = sys.modules[__name__]


@pytest.fixture(autouse=True)
def none_left() -> Iterator[None]:
    """End the job servers, and see that nothing of them is left."""
    yield
    job.close()
    assert not psutil.Process().children(recursive=True)


@pytest.fixture(params=["own process", "one for all"])
def own_process(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "own process")


@pytest.fixture
def here(tmp_path: Path) -> Place:
    """The person's directory, which this process sees."""
    desk, token = tmp_path / "desk", tmp_path / "token"
    desk.mkdir()
    token.write_text("it is here")
    return Place(str(desk), str(token), "it is here")


def by_value(function: Any) -> bytes:
    cloudpickle.register_pickle_by_value(THIS)
    try:
        pickled: bytes = cloudpickle.dumps(function)
    finally:
        cloudpickle.unregister_pickle_by_value(THIS)
    return pickled


def sent(function: Any, *, place: Place = job.NOWHERE, **about: Any) -> str:
    """Have a function's job loaded here; return its hash."""
    call = function if isinstance(function, bytes) else by_value(function)
    payload = JobContent("f", call, **about).dumps()
    digest = hashlib.sha256(payload).hexdigest()
    told = job.prepare(digest, payload, place=place)
    assert isinstance(told, str), told
    return digest


def called(
    function: Any,
    items: Any,
    *,
    place: Place = job.NOWHERE,
    calls: Calls | None = None,
    **about: Any,
) -> list[Ended]:
    """Return how the calls of a function ended."""
    calls = (calls or Calls())._replace(place=place)
    numbered = [(number, pickle.dumps(item)) for number, item in enumerate(items)]
    ended = job.run_batch(sent(function, place=place, **about), numbered, calls)
    assert isinstance(ended, BatchEnded)
    return list(ended.items)


def values(ended: list[Ended]) -> list[Any]:
    assert [one.status for one in ended] == ["ok"] * len(ended), ended
    return [pickle.loads(one.value) for one in ended]


# -- each call sees what was sent ---------------------------------------------------


def test_shared_data_changed_by_a_call_are_as_sent_for_the_next(own_process: bool) -> None:
    shared = [1] * 6

    def leave_out(i: int) -> int:
        shared[i] = 0
        return sum(shared)

    assert values(called(leave_out, range(6), own_process=own_process)) == [5] * 6


def test_large_data_are_not_loaded_for_every_call() -> None:
    def first_two(_: int, large: bytes = os.urandom(3_000_000)) -> tuple[int, int]:
        return os.getpid(), len(large)

    found = values(called(first_two, range(4), own_process=False))
    assert len({pid for pid, _ in found}) == 4  # forks of the process that has them


def test_module_that_takes_long_to_import_is_not_imported_for_every_call() -> None:
    text = (
        b"import os\ntable = [i * i for i in range(3_000_000)]\n\n"
        b"def f(x):\n    return os.getpid()\n"
    )
    sources = {"mine": Source("/home/me/mine.py", text)}
    found = values(called(b"cmine\nf\n.", range(6), sources=sources, own_process=False))
    assert found[0] == found[1]  # here it was imported for the second time, and for the last
    assert len(set(found)) == 5


def test_small_function_is_called_for_all_items_in_one_process() -> None:
    assert len(set(values(called(lambda _: os.getpid(), range(5), own_process=False)))) == 1
    assert len(set(values(called(lambda _: os.getpid(), range(3), own_process=True)))) == 3


def test_what_a_call_changes_in_its_process_is_put_back(own_process: bool, here: Place) -> None:
    def look_and_change(_: int) -> list[Any]:
        import decimal
        import logging
        import random
        import warnings

        seen: list[Any] = [
            os.environ.get("LEFT"),
            str(Path.cwd()),
            os.umask(0o077),
            signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL,
            signal.setitimer(signal.ITIMER_REAL, 100)[0],
            len(warnings.filters),
            len(logging.root.handlers),
            decimal.getcontext().prec,
            "left" in sys.path,
            sys.getrecursionlimit(),
            random.random(),
        ]
        os.environ["LEFT"] = "over"
        os.chdir("/")
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        warnings.simplefilter("error")
        logging.basicConfig()
        decimal.getcontext().prec = 3
        sys.path.append("left")
        sys.setrecursionlimit(5000)
        sys.stdout.close()
        return seen

    numbers = [(7, pickle.dumps(0))] * 3
    ended = job.run_batch(
        sent(look_and_change, place=here, own_process=own_process), numbers, Calls(1, place=here)
    )
    assert isinstance(ended, BatchEnded)
    first, *others = values(list(ended.items))
    assert first[:5] == [None, here.directory, 0o022, True, 0.0]
    assert others == [first] * 2


def test_own_module_is_imported_anew_and_as_it_was_set(own_process: bool) -> None:
    sources = {"mine": Source("/home/me/mine.py", b"count = [0]\n\ndef f(x):\n    count[0] += x\n"
                                                  b"    return count[0]\n")}  # fmt: skip
    call = b"cmine\nf\n."
    assert values(called(call, [3, 4], sources=sources, own_process=own_process)) == [3, 4]


def test_draws_depend_on_seed_and_number_only(own_process: bool) -> None:
    def draw(kind: str) -> float:
        if kind == "numpy":
            import numpy as np

            return float(np.random.normal())
        if kind == "none":
            return 0.0
        import random

        return random.random()

    digest = sent(draw, own_process=own_process)

    def drawn(numbers: list[int], kinds: list[str], seed: int = 0) -> list[tuple[Any, bool]]:
        items = [(n, pickle.dumps(kind)) for n, kind in zip(numbers, kinds, strict=True)]
        ended = job.run_batch(digest, items, Calls(seed=seed))
        assert isinstance(ended, BatchEnded)
        return [(pickle.loads(one.value), one.drew) for one in ended.items]

    whole = drawn([0, 1, 2, 3], ["random", "numpy", "none", "random"])
    assert [drew for _, drew in whole] == [True, True, False, True]
    assert len({value for value, _ in whole}) == 4
    assert drawn([3, 1], ["random", "numpy"]) == [whole[3], whole[1]]
    assert drawn([3], ["random"], seed=1) != [whole[3]]


# -- what a call costs ---------------------------------------------------------------


def end_by(how: str) -> str:
    if how == "segfault":
        import ctypes

        ctypes.string_at(0)
    if how == "exit":
        print("bye", flush=True)
        os._exit(0)
    if how == "realtime":
        os.kill(os.getpid(), 37)
    if how == "server":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(10)
    if how == "close":
        os.closerange(3, 100)
    return how


def test_call_that_ends_its_process_costs_its_own_item_only(own_process: bool) -> None:
    hows = ["a", "segfault", "b", "exit", "realtime", "close", "c"]
    ended = called(end_by, hows, own_process=own_process)
    assert [one.status for one in ended] == ["ok", *["crashed"] * 1, "ok", *["crashed"] * 3, "ok"]
    assert ended[1].reason.startswith("its process was ended by SIGSEGV")
    assert ended[3].reason == "its process exited with code 0; its last words: bye"
    assert ended[4].reason == "its process was ended by signal 37"
    assert [pickle.loads(ended[i].value) for i in (0, 2, 6)] == ["a", "b", "c"]


def test_call_that_ends_the_server_is_found_and_the_others_have_results() -> None:
    ended = called(end_by, ["a", "server", "b"], own_process=True)
    assert [one.status for one in ended] == ["ok", "crashed", "ok"]
    assert "the process that holds the function ended" in ended[1].reason


class BadText(Exception):
    def __str__(self) -> str:
        return "code %d at %.1f ms" % 1  # type: ignore[str-format]  # noqa: F507, UP031


class Unpicklable(BaseException):
    def __reduce__(self) -> Any:
        raise KeyboardInterrupt


def raise_it(what: str) -> str:
    if what == "bad text":
        raise BadText
    if what == "base":
        raise Unpicklable("not an Exception")
    if what == "exit":
        sys.exit(3)
    if what == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
    if what == "result":
        return Unpicklable()  # type: ignore[return-value]
    if what == "cause":
        try:
            {}["key"]  # type: ignore[index]
        except KeyError as error:
            raise ValueError("wrapped") from error
    if what == "input":
        input()
    return what


def test_whatever_a_call_raises_is_its_own_items_result(own_process: bool) -> None:
    whats = ["bad text", "base", "exit", "interrupt", "result", "cause", "input", "fine"]
    *ended, fine = called(raise_it, whats, own_process=own_process)
    assert [one.status for one in ended] == ["raised"] * len(ended)
    assert fine.status == "ok"
    begins = ["BadText", "Unpicklable: not an", "SystemExit: 3", "KeyboardInterrupt",
              "its result cannot be sent back", "KeyError", "EOFError"]  # fmt: skip
    for one, begin in zip(ended, begins, strict=True):
        assert one.reason.startswith(begin), one
    assert "test_job_server.py, line" in ended[5].reason
    assert "ValueError: wrapped" in ended[5].traceback
    assert "call.py" not in ended[5].traceback  # ours


def test_event_loop_of_a_function_runs(own_process: bool) -> None:
    def work(x: int) -> int:
        import asyncio

        async def later() -> int:
            await asyncio.sleep(0.001)
            return x

        return asyncio.run(later())

    assert values(called(work, range(3), own_process=own_process)) == [0, 1, 2]


def test_answer_that_is_cut_off_in_the_middle_costs_its_own_item() -> None:
    def dies_while_sending(x: int) -> Any:
        if x != 1:
            return x
        import threading

        def end() -> None:
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=end, daemon=True).start()
        os.kill(os.getppid(), signal.SIGSTOP)  # so that the answer waits in the pipe
        threading.Thread(target=_continue, args=(os.getppid(),), daemon=True).start()
        return b"x" * 10_000_000

    def _continue(server: int) -> None:
        subprocess.Popen(["sh", "-c", f"sleep 0.4; kill -CONT {server}"], start_new_session=True)

    ended = called(dies_while_sending, range(3), own_process=False)
    assert [one.status for one in ended] == ["ok", "crashed", "ok"]
    assert "SIGKILL" in ended[1].reason


@pytest.mark.parametrize("how", ["python", "native", "child"])
def test_call_that_does_not_end_is_ended_at_its_limit_with_its_children(
    tmp_path: Path, how: str, own_process: bool
) -> None:
    def endless(x: int) -> int:
        import hashlib

        while x == 1:
            if how == "native":
                hashlib.pbkdf2_hmac("sha256", b"", b"", 500_000_000)
            if how == "child":
                child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
                (tmp_path / "child").write_text(str(child.pid))
                child.wait()
            time.sleep(0.01)
        return x

    started = time.monotonic()
    ended = called(endless, range(3), calls=Calls(limit_s=0.4), own_process=own_process)
    assert [one.status for one in ended] == ["ok", "timeout", "ok"]
    assert ended[1].reason == "ended at its limit of 0.4 s"
    assert time.monotonic() - started < 20
    if how == "child":
        assert not psutil.pid_exists(int((tmp_path / "child").read_text()))


def test_children_that_a_call_leaves_end_with_it(tmp_path: Path, own_process: bool) -> None:
    def leave(x: int) -> int:
        child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        return child.pid

    found = values(called(leave, range(2), own_process=own_process))
    assert not any(map(psutil.pid_exists, found))


def test_processes_of_multiprocessing_work(own_process: bool) -> None:
    def pooled(x: int) -> list[int]:
        import multiprocessing

        with multiprocessing.Pool(2) as pool:
            return pool.map(abs, [-x, x])

    assert values(called(pooled, [1, 2], own_process=own_process)) == [[1, 1], [2, 2]]


# -- where calls work, what they write ------------------------------------------------


def test_processes_started_anew_import_the_persons_own_modules(here: Place) -> None:
    pool = """
import multiprocessing, joblib
from lab import cells

def f(x):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        spawned = pool.map(cells.double, [x])
    return spawned + joblib.Parallel(n_jobs=2)(joblib.delayed(cells.double)(n) for n in (x, 5))
"""
    sources = {
        "mine": Source("/home/me/mine.py", pool.encode()),
        "lab": Source("/home/me/lab/__init__.py", b"", package=True),
        "lab.cells": Source("/home/me/lab/cells.py", b"def double(x):\n    return 2 * x\n"),
    }
    for place in (job.NOWHERE, here):
        found = values(called(b"cmine\nf\n.", [3], sources=sources, place=place))
        assert found == [[6, 6, 10]]
    assert not [*Path(here.directory).iterdir()]


def write_and_read(x: int) -> str:
    Path(f"trace_{x}.txt").write_text("v" * x)
    given = Path("given.json")
    return f"{Path.cwd()} {json.loads(given.read_text()) if given.exists() else None}"


def test_calls_work_in_the_persons_directory_where_it_is_seen(
    here: Place, own_process: bool
) -> None:
    (Path(here.directory) / "given.json").write_text("7")
    ended = called(write_and_read, range(3), place=here, own_process=own_process)
    assert values(ended) == [f"{here.directory} 7"] * 3
    assert [one.files for one in ended] == [b""] * 3
    assert (Path(here.directory) / "trace_2.txt").read_text() == "vv"


@pytest.mark.parametrize("differs", ["token", "directory", "pipe"])
def test_calls_elsewhere_work_in_a_directory_of_their_own_that_comes_back(
    here: Place, tmp_path: Path, own_process: bool, differs: str
) -> None:
    place = here._replace(token="another") if differs == "token" else here
    if differs == "directory":
        place = here._replace(directory=str(tmp_path / "not here"))
    if differs == "pipe":
        os.mkfifo(tmp_path / "pipe")
        place = here._replace(token_file=str(tmp_path / "pipe"))
    ended = called(write_and_read, range(2), place=place, own_process=own_process)
    directories = {value.partition(" ")[0] for value in values(ended)}
    assert len(directories) == 2
    assert not any(map(os.path.exists, directories))
    assert unpacked(ended[1]) == {"trace_1.txt": b"v"}
    assert list(Path(here.directory).iterdir()) == []


def unpacked(ended: Ended) -> dict[str, bytes | None]:
    found = {}
    with tarfile.open(fileobj=io.BytesIO(ended.files)) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            found[member.name] = file.read() if file else None
    return found


def test_what_is_not_brought_back_is_named(own_process: bool) -> None:
    def write(what: str) -> None:
        Path("below/empty").mkdir(parents=True)
        Path("below/a").write_bytes(b"x" * 600)
        Path("big").write_bytes(b"x" * 600)
        Path("small").write_bytes(b"y")
        Path("inside").symlink_to("small")
        Path("outside").symlink_to("/etc/passwd")
        os.mkfifo("pipe")
        if what == "crash":
            os._exit(3)

    done, crashed = called(
        write, ["fine", "crash"], calls=Calls(files_bytes=1000), own_process=own_process
    )
    assert crashed.status == "crashed"
    for ended in (done, crashed):
        assert unpacked(ended) == {
            "below": None,
            "below/a": b"x" * 600,
            "below/empty": None,
            "inside": None,
            "small": b"y",
        }
        assert ended.left_behind == (
            "big", "outside (a link to /etc/passwd)", "pipe (no plain file)",
        )  # fmt: skip


def test_files_that_a_call_has_left_open_are_written(here: Place, own_process: bool) -> None:
    def leave(x: int) -> None:
        KEPT.append(Path(f"log{x}").open("w"))  # noqa: SIM115
        KEPT[-1].write("all")

    called(leave, range(3), place=here, own_process=own_process)
    assert [Path(here.directory, f"log{x}").read_text() for x in range(3)] == ["all"] * 3


KEPT: list[Any] = []


def test_output_of_each_call_is_told_with_that_of_c_and_of_children(own_process: bool) -> None:
    def talk(x: int) -> None:
        import ctypes
        import logging

        print(f"printed {x}")
        logging.warning("logged %d", x)
        subprocess.run(["echo", f"child {x}"], check=True)
        ctypes.CDLL(None).printf(b"c %d\n", x)
        if x == 2:
            print("x" * 200_000 + "end")

    ended = called(talk, range(4), own_process=own_process)
    for x in (0, 1, 3):
        lines = sorted(ended[x].output.decode().splitlines())
        assert lines == [f"WARNING:root:logged {x}", f"c {x}", f"child {x}", f"printed {x}"]
    long = ended[2].output
    assert len(long) < 66_000
    assert b"bytes before this were left out]\n" in long[:60]
    assert b"xend\n" in long[-20:]


def test_call_that_needs_too_much_memory_fails_and_says_so(
    own_process: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEUROFLEET_UNIT_MEMORY_MB", "300")
    ended = called(lambda x: len(bytes(x)), [1, 2_000_000_000, 2], own_process=own_process)
    assert [one.status for one in ended] == ["ok", "raised", "ok"]
    assert "its process may have 300 MB (NEUROFLEET_UNIT_MEMORY_MB sets it)" in ended[1].reason


@pytest.mark.parametrize("cache", ["cache", "Zwischenspeicher für Müller"])
def test_mechanisms_are_compiled_once_and_loaded_before_the_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    monkeypatch.setenv("NEUROFLEET_CACHE", str(tmp_path / cache))
    mod = b"NEURON { SUFFIX kept NONSPECIFIC_CURRENT i }\nASSIGNED { i }\nBREAKPOINT { i = 0 }\n"

    def inserted(_: int) -> bool:
        from neuron import h

        section = h.Section(name="soma")
        section.insert("kept")
        return any(mechanism.name() == "kept" for mechanism in section(0.5))

    assert values(called(inserted, range(2), mechanisms={"kept.mod": mod})) == [True, True]
    payload = JobContent("f", by_value(inserted), mechanisms={"kept.mod": b"NEURON { oops"}).dumps()
    told = job.prepare(hashlib.sha256(payload).hexdigest(), payload)
    assert isinstance(told, ModelError)
    assert "do not compile" in told.what


# -- the job's file, the server's life -------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "gone"])
def test_damaged_job_file_is_sent_again(damage: str) -> None:
    payload = JobContent(damage, pickle.dumps(abs)).dumps()
    digest = hashlib.sha256(payload).hexdigest()
    assert isinstance(job.prepare(digest), Missing)
    assert isinstance(job.prepare(digest, payload), str)
    job.close()
    file = job_files.path(digest)
    if damage == "gone":
        file.unlink()
    else:
        content = {"cut": payload[:-5], "changed": payload[:-5] + b"12345", "empty": b""}[damage]
        file.write_bytes(content)
    item = [(0, pickle.dumps(-1))]
    assert isinstance(job.run_batch(digest, item, Calls()), Missing)
    assert isinstance(job.prepare(digest), Missing)
    assert not file.exists()
    assert isinstance(job.prepare(digest, payload), str)
    ended = job.run_batch(digest, item, Calls())
    assert isinstance(ended, BatchEnded)
    assert values(list(ended.items)) == [1]


def test_damaged_job_file_is_replaced_when_the_job_comes() -> None:
    payload = JobContent("abs", pickle.dumps(abs)).dumps()
    digest = hashlib.sha256(payload).hexdigest()
    job_files.keep(digest, payload)
    job_files.path(digest).write_bytes(payload[:10])
    assert isinstance(job.prepare(digest, payload), str)


def test_function_that_cannot_be_loaded_says_why(own_process: bool) -> None:
    payload = JobContent("f", b"cnot_there\nf\n.", own_process=own_process).dumps()
    told = job.prepare(hashlib.sha256(payload).hexdigest(), payload)
    assert isinstance(told, WorkloadFailed)
    assert "No module named 'not_there'" in told.what
    crash = JobContent("f", b"cos\n_exit\n(I3\ntR.").dumps()
    told = job.prepare(hashlib.sha256(crash).hexdigest(), crash)
    assert isinstance(told, WorkloadFailed)
    assert "its process ended" in told.what


def test_servers_of_the_last_two_jobs_are_kept() -> None:
    functions: list[Callable[[int], int]] = [lambda x: x, lambda x: x + 1, lambda x: x + 2]
    digests = [sent(function) for function in functions]
    assert [digest for digest, _ in job._loaded] == digests[1:]
    assert len(psutil.Process().children()) == 2


CLIENT = """
import hashlib, pickle, sys
from neurofleet.engine import job
from neurofleet.engine.job_content import Calls, JobContent
payload = JobContent("sleep", b"ctime\\nsleep\\n.", own_process=False).dumps()
digest = hashlib.sha256(payload).hexdigest()
assert isinstance(job.prepare(digest, payload), str)
print("ready", flush=True)
job.run_batch(digest, [(0, pickle.dumps(1000))], Calls())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_client_that_ends_in_the_middle_of_a_call_leaves_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=environment,
    )  # fmt: skip
    with client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
        process = psutil.Process(client.pid)
        wait_until(lambda: len(process.children(recursive=True)) == 2)
        below = process.children(recursive=True)
        client.send_signal(number)
        client.wait(20)
    _, alive = psutil.wait_procs(below, 10)
    assert not alive
    wait_until(lambda: not list(tmp_path.iterdir()))


def test_server_starts_quickly() -> None:
    program = "import sys, neurofleet.engine.job_server; print(*sys.modules)"
    told = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True
    )
    heavy = {"ipyparallel", "bluepyopt", "neuron", "numpy", "zmq", "asyncio", "importlib.metadata"}
    assert not heavy & set(told.stdout.split())


def test_stop_after_and_an_items_limit_hold_together_without_engines(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import time\n\ndef f(x):\n    time.sleep(1000 if x == 0 else 0.2)\n    return x\n"
    )
    (tmp_path / "items.jsonl").write_text("".join(f"{x}\n" for x in range(1000)))
    done = command(
        "neurofleet", "map", "mine:f", "items.jsonl", "--backend=serial", "--item-timeout=1",
        "--stop-after=5s", "--run-dir=run", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run/results.jsonl").read_text().splitlines()]
    assert "ended at its limit of 1 s" in lines[0]["error"]
    assert lines[1] == {"result": 1}
    assert lines[-1]["pending"] is True


def test_library_of_mechanisms_that_was_cut_short_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Path] = []

    def compile_mechanisms(home: Path, _directories: list[str]) -> None:
        compiled.append(home / "x86_64" / "libnrnmech.so")
        compiled[-1].parent.mkdir()
        compiled[-1].write_bytes(b"a library")

    monkeypatch.setenv("NEUROFLEET_CACHE", str(tmp_path))
    monkeypatch.setattr("neurofleet.engine.compiling.compile_mechanisms", compile_mechanisms)
    mechanisms = {"leak.mod": b"NEURON { SUFFIX leak }"}
    for _ in range(2):
        job_mechanisms._compiled(mechanisms)
    assert len(compiled) == 1
    compiled[0].write_bytes(b"a lib")  # as a power cut leaves it
    job_mechanisms._compiled(mechanisms)
    assert len(compiled) == 2
    assert compiled[0].read_bytes() == b"a library"


def test_directory_that_a_call_made_read_only_is_removed() -> None:
    with tempfile.TemporaryDirectory() as top:
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                if os.getuid() == 0:  # who may do anything
                    os.chown(top, 65534, 65534)
                    os.setuid(65534)
                inside = Path(top, "call", "kept")
                inside.mkdir(parents=True)
                (inside / "trace.txt").write_text("v")
                inside.chmod(0o500)
                files, _ = JobServer._take(inside.parent, 1000)
                os._exit(0 if files and not inside.parent.exists() else 2)
            os._exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
