"""The task farm, on real engines."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import shutil
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ipyparallel
import psutil
import pytest
from ipyparallel.serialize import pack_apply_message

from neurofleet import safe_point
from neurofleet.backends.local import LocalEngines
from neurofleet.backends.profile import ProfileEngines
from neurofleet.dispatch import MOST_FAILURES, WINDOW, EngineFarm
from neurofleet.dispatch_engines import Roster, ask
from neurofleet.dispatch_state import Out, Run
from neurofleet.engine import tasks
from neurofleet.engine.outcome import Outcome
from neurofleet.engines_for_model import ModelPreparation, host_cache
from neurofleet.errors import (
    EnginesUnreachable,
    Interrupted,
    ModelError,
    TooFewEngines,
    WorkloadFailed,
)
from neurofleet.farm import ByName, FarmState, SerialFarm, Task
from neurofleet.model import EvaluatorSpec, pack
from neurofleet.store import pack_floats
from unit import farm_tasks
from unit.support import PURE_PYTHON, wait_until

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    """Let engines import this directory's tasks."""
    kept = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    yield
    os.environ.pop("PYTHONPATH")
    if kept is not None:
        os.environ["PYTHONPATH"] = kept


@pytest.fixture(scope="module")
def shared(importable: None) -> Iterator[str]:
    """The name of a profile with two running engines."""
    profiles = Path(os.environ["IPYTHONDIR"])
    cluster = LocalEngines(2, profiles / "started")
    client = cluster.connect()
    client.wait_for_engines(2, timeout=60)
    client.close()
    # A cluster of ipcluster's has the plain name.
    file = Path(cluster.connection_file)
    shutil.copy(file, file.with_name("ipcontroller-client.json"))
    (profiles / "profile_farm").symlink_to(file.parents[1])
    yield "farm"
    cluster.close()


@pytest.fixture
def farm(shared: str) -> Iterator[EngineFarm]:
    made = EngineFarm(ProfileEngines(shared), engine_timeout_s=30)
    made.open()
    assert made.size == 2
    yield made
    made.close()


def run(farm: EngineFarm, wanted: list[Task]) -> dict[Any, Any]:
    """Run tasks and return their results by key; each must come once."""
    found: dict[Any, Any] = {}

    def keep(task: Task, result: Any) -> None:
        assert task.key not in found
        found[task.key] = result

    farm.run(wanted, keep)
    return found


def test_farm_many_tasks_all_results_arrive_once_from_both_engines(
    farm: EngineFarm, tmp_path: Path
) -> None:
    log = str(tmp_path / "log")
    found = run(farm, [Task(i, farm_tasks.work, (log, str(i), 0.01)) for i in range(60)])
    assert {key: name for key, (name, _) in found.items()} == {i: str(i) for i in range(60)}
    assert len({pid for _, pid in found.values()}) == 2
    assert len(Path(log).read_text().splitlines()) == 60


def test_farm_no_tasks_returns_at_once(farm: EngineFarm) -> None:
    assert run(farm, []) == {}


def test_farm_heavier_tasks_start_earlier(farm: EngineFarm, tmp_path: Path) -> None:
    log = tmp_path / "log"
    weights = [3, 9, 1, 12, 7, 5, 11, 2, 10, 4, 8, 6]
    run(farm, [Task(w, farm_tasks.work, (str(log), str(w), 0.1), weight=w) for w in weights])
    started = [int(line.split()[0]) for line in log.read_text().splitlines()]
    # Which of two engines notes its beginning first is chance.
    assert all(abs(w - (12 - position)) <= 2 for position, w in enumerate(started)), started


def test_farm_task_that_always_raises_fails_in_one_line_with_its_words(
    farm: EngineFarm, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with pytest.raises(WorkloadFailed) as caught:
        run(farm, [Task("bad", farm_tasks.fail, (str(log),))])
    told = str(caught.value)
    assert "ValueError: this cannot be done" in told
    assert f"bad failed on {MOST_FAILURES} tries" in told, "the task, not the function in it"
    assert "\n" not in told
    assert len(log.read_text().splitlines()) == MOST_FAILURES


def test_farm_task_that_raises_once_is_tried_again(farm: EngineFarm, tmp_path: Path) -> None:
    assert run(farm, [Task("t", farm_tasks.fail_once, (str(tmp_path / "m"),))]) == {"t": "done"}


def test_farm_is_used_again_after_a_failure(farm: EngineFarm, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    with pytest.raises(WorkloadFailed):
        run(farm, [Task(i, farm_tasks.fail, (log,)) for i in range(6)])
    assert run(farm, [Task("t", farm_tasks.work, (log, "again"))])["t"][0] == "again"


def test_farm_asked_for_a_safe_point_finishes_what_was_begun_and_begins_no_more(
    farm: EngineFarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safe_point, "_stop", safe_point._Stop())
    log = tmp_path / "log"
    kept: list[Any] = []

    def keep(task: Task, _result: Any) -> None:
        kept.append(task.key)
        if len(kept) == 5:
            safe_point.ask()

    with pytest.raises(Interrupted, match="stopped at a safe point"):
        farm.run([Task(i, farm_tasks.work, (str(log), str(i), 0.05)) for i in range(50)], keep)
    assert 5 <= len(kept) <= 5 + WINDOW * 2
    assert sorted(kept) == sorted(int(line.split()[0]) for line in log.read_text().splitlines())


def test_farm_draws_tasks_of_an_iterator_when_an_engine_could_take_one(
    farm: EngineFarm, tmp_path: Path
) -> None:
    log = str(tmp_path / "log")
    ended: list[Any] = []
    ahead: list[int] = []

    def tasks_as_needed() -> Iterator[Task]:
        for i in range(30):
            ahead.append(i - len(ended))
            yield Task(i, farm_tasks.work, (log, str(i), 0.01))

    farm.run(tasks_as_needed(), lambda task, _result: ended.append(task.key))
    assert sorted(ended) == list(range(30))
    assert max(ahead) <= WINDOW * 2


def test_farm_task_that_fails_for_good_is_handed_over_and_the_others_go_on(
    farm: EngineFarm, tmp_path: Path
) -> None:
    log = str(tmp_path / "log")
    found: list[Any] = []
    failed: dict[Any, str] = {}
    farm.run(
        [Task("bad", farm_tasks.fail, (log,)), *(Task(i, abs, (-i,)) for i in range(5))],
        lambda task, result: found.append((task.key, result)),
        lambda task, failure: failed.update({task.key: str(failure)}),
    )
    assert sorted(found) == [(i, i) for i in range(5)]
    assert list(failed) == ["bad"]
    assert "ValueError: this cannot be done" in failed["bad"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_farm_broken_off_keeps_the_results_that_had_arrived(
    farm: EngineFarm, tmp_path: Path, error: type[BaseException]
) -> None:
    kept: list[Any] = []

    def keep(task: Task, _result: Any) -> None:
        kept.append(task.key)
        if len(kept) == 1:
            time.sleep(1.0)  # meanwhile the others arrive
            raise error

    log = str(tmp_path / "log")
    with pytest.raises(error):
        farm.run([Task(i, farm_tasks.work, (log, str(i))) for i in range(20)], keep)
    assert len(kept) == len(set(kept)) == WINDOW * 2


def test_farm_two_at_once_share_the_engines(shared: str, tmp_path: Path) -> None:
    farms = [EngineFarm(ProfileEngines(shared), engine_timeout_s=30) for _ in range(2)]
    log = str(tmp_path / "log")
    order: list[str] = []
    inner: dict[Any, Any] = {}

    def keep(task: Task, _result: Any) -> None:
        order.append(task.key)
        if task.key == "a3":  # in the middle of one run the other one gets its turn
            inner.update(run(farms[1], [Task("b", farm_tasks.work, (log, "b"))]))
            order.append("b")

    try:
        for farm in farms:
            farm.open()
        wanted = [Task(f"a{i}", farm_tasks.work, (log, f"a{i}", 0.05)) for i in range(40)]
        farms[0].run(wanted, keep)
    finally:
        for farm in farms:
            farm.close()
    assert inner["b"][0] == "b"
    assert len(order) == 41
    assert order.index("b") < 40


def test_farm_client_does_not_keep_what_it_has_handed_over(
    farm: EngineFarm, tmp_path: Path
) -> None:
    client = farm._client
    log = str(tmp_path / "log")
    sizes = []
    for _ in range(3):
        run(farm, [Task(i, farm_tasks.work, (log, "x" * 1000)) for i in range(50)])
        kept = client.results, client.metadata, client.history, client.outstanding
        sizes.append([len(store) for store in kept])
    assert all(size <= 4 for size in sizes[-1]), sizes
    assert len(farm._view.history) <= 4


class Refusing:
    """A preparation that leaves one engine out and has the others ready at once."""

    def __init__(self, *refused: int) -> None:
        self.refused = set(refused)
        self.seen: list[int] = []

    def request(self, answer: Any | None) -> tuple[Any, ...] | None:
        if answer is None:
            return (os.getpid,)
        if answer not in self.seen:
            self.seen.append(answer)
        if self.seen.index(answer) in self.refused:
            raise ModelError(f"engine {answer} has the wrong versions", remedy="Mend it")
        return None


def test_farm_engine_that_cannot_be_prepared_is_left_out_alone(shared: str, tmp_path: Path) -> None:
    farm = EngineFarm(ProfileEngines(shared), preparation=Refusing(0), engine_timeout_s=30)
    try:
        farm.open()
        log = str(tmp_path / "log")
        found = run(farm, [Task(i, farm_tasks.work, (log, str(i))) for i in range(20)])
        assert len(found) == 20
        assert len({pid for _, pid in found.values()}) == 1
        assert farm.size == 1
    finally:
        farm.close()


def test_farm_no_engine_can_be_prepared_says_why(shared: str) -> None:
    farm = EngineFarm(ProfileEngines(shared), preparation=Refusing(0, 1), engine_timeout_s=30)
    try:
        with pytest.raises(ModelError, match=r"has the wrong versions. Mend it"):
            farm.open()
    finally:
        farm.close()


def test_farm_of_a_profile_that_is_not_there_is_unreachable() -> None:
    farm = EngineFarm(ProfileEngines("nobody"), engine_timeout_s=5)
    with pytest.raises(EnginesUnreachable, match="profile nobody"):
        farm.open()
    farm.close()
    assert not ProfileEngines("nobody").answers()


# -- engines that come and go ------------------------------------------------------


@pytest.fixture
def own_engines(tmp_path: Path) -> Iterator[Callable[[int], LocalEngines]]:
    made: list[LocalEngines] = []

    def start(count: int) -> LocalEngines:
        made.append(LocalEngines(count, tmp_path / f"engines{len(made)}"))
        return made[-1]

    yield start
    for source in made:
        source.close()
    ours = [p for p in psutil.Process().children(recursive=True) if "ipyparallel" in _line(p)]
    left = [p for p in ours if str(tmp_path) in _line(p)]
    assert not left


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_farm_engine_killed_in_a_task_is_replaced_and_the_late_one_used_in_the_same_run(
    own_engines: Callable[[int], LocalEngines], tmp_path: Path
) -> None:
    states: list[FarmState] = []
    farm = EngineFarm(own_engines(2), engine_timeout_s=60, watch=states.append)
    try:
        farm.open()
        before = set(farm._client[:].apply_sync(os.getpid))
        mark, log = tmp_path / "mark", str(tmp_path / "log")
        wanted = [Task("deadly", farm_tasks.kill_own_engine_once, (str(mark),), weight=9)]
        wanted += [Task(i, farm_tasks.work, (log, str(i), 0.1)) for i in range(130)]
        found = run(farm, wanted)
    finally:
        farm.close()
    killed = int(mark.read_text())
    assert found.pop("deadly") == "survived"
    assert len(found) == 130
    workers = {pid for _, pid in found.values()}
    assert killed in before
    assert before - {killed} <= workers
    assert len(workers - before) == 1
    assert [size for size, _ in itertools.groupby(states, lambda s: s.engines)][-3:] == [2, 1, 2]


def kill(farm: EngineFarm, pid: int) -> None:
    """End an engine, and return when the farm's client has dropped it."""
    before = len(farm.client.ids)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(farm.client.ids) < before)


@pytest.mark.parametrize("when", ["between two looks", "in the middle of a submission"])
def test_farm_engine_lost_beside_one_that_is_left_out_costs_no_task(
    own_engines: Callable[[int], LocalEngines],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    """Tasks name their engines then, and ipyparallel drops an engine that is gone at once."""
    farm = EngineFarm(own_engines(3), preparation=Refusing(0), engine_timeout_s=60)
    log, killed = str(tmp_path / "log"), []
    found: dict[Any, Any] = {}
    try:
        farm.open()
        assert (farm.size, len(farm.client.ids)) == (2, 3)

        def keep(task: Task, result: Any) -> None:
            assert task.key not in found
            found[task.key] = result
            if when == "between two looks" and len(found) == 3:
                killed.append(result[1])
                kill(farm, result[1])

        submit = farm._view.apply_async

        def submit_late(*args: Any) -> Any:
            if len(found) == 3 and not killed:
                killed.append(found[0][1])
                kill(farm, found[0][1])
            return submit(*args)

        if when != "between two looks":
            monkeypatch.setattr(farm._view, "apply_async", submit_late)
        farm.run([Task(i, farm_tasks.work, (log, str(i), 0.05)) for i in range(40)], keep)
    finally:
        farm.close()
    assert len(killed) == 1
    assert {key: name for key, (name, _) in found.items()} == {i: str(i) for i in range(40)}


def test_farm_submission_that_fails_for_another_reason_ends_the_run_and_keeps_the_task(
    farm: EngineFarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("a fault of our own")

    with monkeypatch.context() as patched:
        patched.setattr(farm._view, "apply_async", broken)
        with pytest.raises(KeyError, match="of our own"):
            run(farm, [Task("t", abs, (-1,))])
    assert run(farm, [Task("t", abs, (-1,))]) == {"t": 1}


def test_farm_whose_controller_tells_the_client_to_close_connects_again(
    farm: EngineFarm, tmp_path: Path
) -> None:
    log = str(tmp_path / "log")
    found: list[Any] = []

    def keep(task: Task, _result: Any) -> None:
        found.append(task.key)
        if len(found) == 3:
            farm.client.close(linger=0)

    farm.run([Task(i, farm_tasks.work, (log, str(i), 0.02)) for i in range(12)], keep)
    assert sorted(found) == list(range(12))


class ToldItsHost:
    """A preparation that asks an engine for its host, and nothing else."""

    def request(self, answer: Any | None) -> tuple[Any, ...] | None:
        return (tasks.probe,) if answer is None else None


def test_farm_tells_what_runs_where_and_since_when(shared: str, tmp_path: Path) -> None:
    states: list[FarmState] = []
    farm = EngineFarm(
        ProfileEngines(shared),
        preparation=ToldItsHost(),
        engine_timeout_s=30,
        watch=states.append,
    )
    begun = time.time()
    try:
        farm.open()
        run(
            farm, [Task(f"t{i}", farm_tasks.work, (str(tmp_path / "log"), "", 1.0)) for i in (1, 2)]
        )
    finally:
        farm.close()
    both = next(state.running for state in states if len(state.running) == 2)
    assert {(one.key, one.host) for one in both} == {
        (key, socket.gethostname()) for key in ("t1", "t2")
    }
    assert begun <= both[0].since <= both[1].since <= time.time()
    assert states[-1].running == ()


class Refused:
    """A result that ipyparallel makes when no engine that was meant is there any more."""

    def get(self, timeout: float) -> Any:
        raise ipyparallel.error.ImpossibleDependency


def test_farm_task_that_no_engine_has_had_has_lost_none(farm: EngineFarm) -> None:
    task = Task("t", abs, (-1,))
    state = Run()
    for i in range(task.most_losses + 1):
        state.out[str(i)] = Out(task)
        farm._task_ended(state, str(i), Refused(), lambda *_: None, None)
        assert [entry[-1] for entry in state.waiting] == [task]
        state.waiting.clear()
    assert not state.losses


class FakeClient:
    """A client that knows engines, and notes what each is asked."""

    _closed = False

    @property
    def ids(self) -> list[int]:
        return list(self._engines)

    def __init__(self, *identities: str) -> None:
        self._engines = dict(enumerate(identities))
        self.asked: list[tuple[int, str]] = []

    def __getitem__(self, number: int) -> Any:
        if number not in self._engines:
            raise IndexError(number)
        self._asking = number
        return self

    def apply_async(self, function: ByName, *_: Any) -> Any:
        self.asked.append((self._asking, function.name))
        return self

    def add_done_callback(self, _callback: Any) -> None: ...


class Answer:
    def __init__(self, value: Any) -> None:
        self.value = value

    def get(self, timeout: float) -> Any:
        return self.value


def test_engine_that_answers_for_something_else_is_not_ready_for_this() -> None:
    client = FakeClient("one")
    roster = Roster(ToldItsHost(), lambda *_: None)
    roster.connect(client)
    roster.follow()
    roster.prepare_for(ToldItsHost())
    roster.take((0, "one", 0), Answer({"host": "a"}))
    assert roster.size == 0
    roster.take((0, "one", 1), Answer({"host": "a"}))
    assert roster.targets("") == ([0], True)
    assert len(client.asked) == 2


def test_engine_that_goes_while_it_is_asked_is_not_left_out() -> None:
    client = FakeClient("one", "two")
    roster = Roster(ToldItsHost(), lambda *_: None)
    roster.connect(client)
    roster.follow()
    roster.take((1, "two", 0), Answer({"host": "b"}))
    del client._engines[0]
    roster.take((0, "one", 0), None)
    assert roster.why_none is None
    assert roster.targets("") == ([1], True)
    client._engines[2] = "three"
    assert roster.targets("") == ([1], False), "it has just come, and nobody has asked it"
    del client._engines[1]
    assert roster.targets("") == ([], False)


class Quiet:
    """A source whose engines come and go by themselves."""

    name, expected, connection_file = "a quiet source", 1, ""

    def connect(self) -> Any: ...

    def tend(self, _engines: int) -> bool:
        return True

    def close(self) -> None: ...


class LeavingOut(ToldItsHost):
    def request(self, answer: Any | None) -> tuple[Any, ...] | None:
        if isinstance(answer, dict) and answer["host"] == "wrong":
            raise ModelError("the engine on wrong has other versions", remedy="Mend it")
        return super().request(answer)


class FromEngine:
    """A result that an engine sent; an error if it is one."""

    def __init__(self, identity: str, result: Any) -> None:
        self.metadata = {"engine_uuid": identity}
        self.result = result

    def get(self, timeout: float) -> Any:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@pytest.mark.parametrize("result", ["done", ModuleNotFoundError("neurofleet")], ids=str)
@pytest.mark.parametrize("turns_out", ["right", "wrong", "gone"])
def test_farm_result_of_an_engine_that_has_just_come_counts_if_it_may_have_tasks(
    turns_out: str, result: Any
) -> None:
    """The scheduler gives it a task before anybody has asked what it is."""
    farm = EngineFarm(Quiet(), preparation=LeavingOut())
    client = farm._client = FakeClient("one")
    farm._roster.connect(client)
    farm._update_engines(Run())
    farm._roster.take((0, "one", 0), Answer({"host": "right"}))
    task = Task("t", abs, (-1,))
    run = Run(out={"m": Out(task)})
    kept: list[Any] = []
    client._engines[1] = "two"
    farm._task_ended(run, "m", FromEngine("two", result), lambda *told: kept.append(told), None)
    assert (list(run.out), run.waiting, kept) == (["m"], [], []), "not decided"
    if turns_out == "gone":
        del client._engines[1]
    else:
        farm._roster.take((1, "two", 0), Answer({"host": turns_out}))
    farm._step(run, lambda *told: kept.append(told))
    again = [entry[-1] for entry in run.waiting]
    counts = turns_out == "right"
    assert kept == ([(task, "done")] if counts and result == "done" else [])
    assert again == ([] if kept else [task])
    assert run.failures == ({"t": 1} if counts and not kept else {})
    assert not run.out


def test_farm_whose_good_engines_are_gone_waits_beside_one_that_is_left_out() -> None:
    """All workers were switched off but the one that was never of use."""
    farm = EngineFarm(Quiet(), preparation=LeavingOut())
    client = farm._client = FakeClient("one", "two")
    farm._roster.connect(client)
    farm._update_engines(Run())
    farm._roster.take((0, "one", 0), Answer({"host": "right"}))
    farm._roster.take((1, "two", 0), Answer({"host": "wrong"}))
    farm._update_engines(Run())
    del client._engines[0]
    farm._update_engines(Run())
    assert farm.size == 0


def test_farm_of_which_only_a_wrong_engine_has_come_waits_for_the_others() -> None:
    source = Quiet()
    source.expected = 2
    farm = EngineFarm(source, preparation=LeavingOut())
    client = farm._client = FakeClient("one")
    farm._roster.connect(client)
    farm._update_engines(Run())
    farm._roster.take((0, "one", 0), Answer({"host": "wrong"}))
    farm._update_engines(Run())
    client._engines[1] = "two"
    farm._update_engines(Run())
    farm._roster.take((1, "two", 0), Answer({"host": "wrong"}))
    with pytest.raises(ModelError, match="has other versions"):
        farm._update_engines(Run())


def test_engine_that_goes_while_all_are_asked_is_not_asked() -> None:
    client = FakeClient("one", "two")
    asked = ask(client, [0, 5, 1], os.getpid)
    assert [number for number, _ in client.asked] == list(asked) == [0, 1]
    client.apply_async = None  # type: ignore[assignment, method-assign]
    with pytest.raises(TypeError):
        ask(client, [0], os.getpid)


@pytest.mark.parametrize(
    ("not_on", "expected"), [("", ([0, 1], True)), ("a", ([1], False)), ("c", ([0, 1], False))]
)
def test_targets_avoid_a_host_while_there_is_another(
    not_on: str, expected: tuple[list[int], bool]
) -> None:
    roster = Roster(ToldItsHost(), lambda *_: None)
    roster.connect(FakeClient("one", "two"))
    roster.follow()
    roster.take((0, "one", 0), Answer({"host": "a"}))
    roster.take((1, "two", 0), Answer({"host": "b"}))
    assert roster.targets(not_on) == expected
    assert roster.hosts()["two"] == "b"


class WithoutEngines:
    """A controller that runs, and nobody who starts an engine."""

    name, expected = "a farm without engines", 1

    def __init__(self, directory: Path) -> None:
        self.connection_file = ""
        self._cluster = ipyparallel.Cluster(
            profile_dir=str(directory), delay=0, load_profile=False, log=logging.getLogger("quiet")
        )

    def connect(self) -> Any:
        self._cluster.start_controller_sync()
        client = self._cluster.connect_client_sync()
        self.connection_file = self._cluster.controller.connection_files["client"]
        return client

    def tend(self, _engines: int) -> bool:
        return True

    def close(self) -> None:
        self._cluster.stop_cluster_sync()


def test_farm_without_engines_gives_up_at_its_limit(tmp_path: Path) -> None:
    farm = EngineFarm(WithoutEngines(tmp_path), engine_timeout_s=2)
    try:
        started = time.monotonic()
        with pytest.raises(TooFewEngines, match=r"no engine of .* could be used for 2 s"):
            farm.open()
        with pytest.raises(TooFewEngines, match=r"\(0 registered\)"):
            run(farm, [Task("t", time.sleep, (0,))])
        assert time.monotonic() - started < 30
    finally:
        farm.close()


# -- this process ------------------------------------------------------------------


def test_serial_farm_runs_in_the_order_given() -> None:
    told: list[str] = []
    farm = SerialFarm(lambda: told.append("open"), lambda: told.append("closed"))
    farm.open()
    wanted = [Task(i, abs, (-i,), weight=i) for i in range(3)]
    farm.run(wanted, lambda task, result: told.append(f"{task.key}={result}"))
    farm.close()
    assert told == ["open", "0=0", "1=1", "2=2", "closed"]


def test_serial_farm_tells_what_runs_and_since_when() -> None:
    states: list[FarmState] = []
    farm = SerialFarm(lambda: None, lambda: None, states.append)
    begun = time.time()
    farm.run([Task(i, abs, (-i,)) for i in range(2)], lambda *_: None)
    assert [[one.key for one in state.running] for state in states] == [[0], [1], []]
    assert [state.busy for state in states] == [1, 1, 0]
    assert states[0].running[0].host == socket.gethostname()
    assert begun <= states[0].running[0].since <= time.time()


# -- a model's engines ---------------------------------------------------------------


def test_payload_of_a_unit_with_twenty_parameters_is_below_2_kb(farm: EngineFarm) -> None:
    """What ipyparallel puts on the wire for one task: header, metadata, call, arguments."""
    values = pack_floats([0.1 * i for i in range(20)])
    args = ("f" * 64, host_cache.versions_stamp(), "Step1", values, 3600.0)
    header = farm._client.session.msg_header("apply_request")
    metadata = {"after": [], "follow": [], "timeout": 0.0, "targets": [], "retries": 0}
    frames = [json.dumps(part, default=str).encode() for part in (header, {}, metadata)]
    frames += [bytes(part) for part in pack_apply_message(ByName.of(tasks.run_unit), args, {})]
    total = sum(map(len, frames)) + 64 + len(b"<IDS|MSG>")  # and the signature
    assert total <= 2048, [len(frame) for frame in frames]
    assert struct.unpack("<20d", values)[19] == 0.1 * 19


def model_farm(profile: str, spec: EvaluatorSpec) -> tuple[EngineFarm, str]:
    bundle = pack(PURE_PYTHON, spec)
    farm = EngineFarm(
        ProfileEngines(profile),
        preparation=ModelPreparation(bundle, host_cache.versions()),
        engine_timeout_s=60,
        is_not_ready=lambda result: isinstance(result, tasks.NotReady),
    )
    return farm, bundle.digest


def test_farm_of_a_model_prepares_each_engine_once_and_scores(shared: str) -> None:
    farm, digest = model_farm(shared, EvaluatorSpec("evaluator:create"))
    try:
        farm.open()
        points = [(0.1 * i, -0.5) for i in range(8)]
        stamp = host_cache.versions_stamp()
        found = run(
            farm,
            [
                Task(p, tasks.run_unit, (digest, stamp, "whole", pack_floats(p), 60.0))
                for p in points
            ],
        )
    finally:
        farm.close()
    assert {type(outcome) for outcome in found.values()} == {Outcome}
    assert {outcome.status for outcome in found.values()} == {"ok"}
    assert [found[x, y].scores[0] for x, y in points] == [math.hypot(x + 1, y) for x, y in points]


def test_farm_of_a_model_that_does_not_load_says_why(shared: str) -> None:
    farm, _ = model_farm(shared, EvaluatorSpec("evaluator:no_such_factory"))
    try:
        with pytest.raises(
            ModelError, match=r"does not exist: evaluator has no .no_such_factory., it has create"
        ):
            farm.open()
    finally:
        farm.close()
