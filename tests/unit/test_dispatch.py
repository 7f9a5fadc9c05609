"""The task farm, on real engines."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import shutil
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
from unit.support import PURE_PYTHON

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
    cluster = LocalEngines(2, Path(os.environ["IPYTHONDIR"]) / "profile_farm")
    client = cluster.connect()
    client.wait_for_engines(2, timeout=60)
    client.close()
    # A cluster of ipcluster's has the plain name.
    file = Path(cluster.connection_file)
    shutil.copy(file, file.with_name("ipcontroller-client.json"))
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
    assert f"fail failed on {MOST_FAILURES} tries" in told
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
    shared = [p for p in ours if "profile_farm" not in _line(p)]
    left = [p for p in shared if str(tmp_path) in _line(p)]
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
        with pytest.raises(ModelError, match="does not have the factory: AttributeError"):
            farm.open()
    finally:
        farm.close()
