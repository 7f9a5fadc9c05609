"""Items of a job on a farm: how engines get the job, how many items go at once, what comes back."""

from __future__ import annotations

import atexit
import functools
import itertools
import math
import pickle
import platform
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurofleet import __version__
from neurofleet.backends.choice import EngineChoice, engine_source
from neurofleet.dispatch import EngineFarm
from neurofleet.engine import job as on_engine
from neurofleet.engine import tasks
from neurofleet.engine.job import Missing
from neurofleet.engine.job_content import BatchEnded, Calls, Ended, Place
from neurofleet.errors import FleetError, WorkloadFailed
from neurofleet.farm import Farm, FarmState, SerialFarm, Task, check_engine
from neurofleet.jobs import Job

#: A batch should take about so long: enough to hide what sending one costs, 4 ms [s].
BATCH_S = 1.0
#: The most that a batch carries [bytes], [items].
BATCH_BYTES, BATCH_ITEMS = 1_000_000, 2_000
#: An engine gets at most this part of what is left, so that all end at about the same time.
SHARE = 1 / 3
#: How long an engine waits for another one of its host to receive a job [s].
RECEIVE_S = 20.0
#: An item whose engine was lost so often is taken to be the cause; the others go on.
MOST_LOSSES = 3


class JobPreparation:
    """Takes an engine through version check and, once for each host, the job's transfer."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._sent: set[str] = set()

    def request(self, answer: Any | None) -> tuple[Any, ...] | None:
        """Return the next call for an engine; see ``farm.Preparation``."""
        if answer is None:
            return (tasks.probe,)
        if isinstance(answer, FleetError):
            raise answer
        if isinstance(answer, dict):
            check_engine(answer, {"neurofleet": __version__, "Python": python_version()})
            # An engine of a host that was sent the job waits for it there.
            wait_s = RECEIVE_S if answer["host"] in self._sent else 0.0
            return (on_engine.prepare, self._job.digest, None, wait_s, here())
        if isinstance(answer, Missing):
            if answer.host in self._sent and not answer.waited:
                return (on_engine.prepare, self._job.digest, None, RECEIVE_S, here())
            # The first of its host, or whoever was receiving it there was lost.
            self._sent.add(answer.host)
            return (on_engine.prepare, self._job.digest, self._job.payload, 0.0, here())
        return None


@functools.cache
def here() -> Place:
    """Return where this program works, so that engines of this computer work there too."""
    folder = Path(tempfile.mkdtemp(prefix="neurofleet-token-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    token = secrets.token_hex()
    (folder / "token").write_text(token)
    return Place(str(Path.cwd()), str(folder / "token"), token)


def calls(limit_s: float | None) -> Calls:
    """Return how items are called."""
    return Calls(limit_s=limit_s, place=here())


def python_version() -> str:
    """Return the part of Python's version on which pickled code depends."""
    return ".".join(platform.python_version_tuple()[:2])


@dataclass(frozen=True)
class Result:
    """What became of one item.

    Attributes
    ----------
    ended : Ended
    host : str
        Where; empty if no engine survived it.
    pid : int
        The engine's.
    """

    ended: Ended
    host: str
    pid: int

    @property
    def ok(self) -> bool:
        """Whether the function returned."""
        return self.ended.status == "ok"

    def value(self) -> Any:
        """Return what the function returned."""
        return pickle.loads(self.ended.value)


class _Batch(Task):
    """Some items in one task; one by one if the engine that has them is lost."""

    __slots__ = ()

    @property
    def title(self) -> str:
        """The items that it has, counted from 1."""
        first, last = self.key[0] + 1, self.key[-1] + 1
        return f"item {first}" if first == last else f"items {first} to {last}"

    @property
    def most_losses(self) -> int:
        """Fewer than a task's: the item fails, the others and the run go on."""
        return MOST_LOSSES if len(self.key) == 1 else MOST_LOSSES + 1

    def parts(self) -> Sequence[Task]:
        """Return a task for each item, so that the one that ends engines is found."""
        digest, items, calls = self.args
        if len(items) == 1:
            return (self,)
        return [
            _Batch((number,), self.function, (digest, ((number, item),), calls))
            for number, item in items
        ]


class Items:
    """Items that are not done, handed out in batches that follow what was measured.

    Parameters
    ----------
    job : Job
    items : mapping of int to bytes
        Pickled, by number.
    engines : callable
        How many can be used now.
    limit_s : float or None
        Limit of one item [s].
    """

    def __init__(
        self,
        job: Job,
        items: Mapping[int, bytes],
        engines: Callable[[], int],
        limit_s: float | None = None,
    ) -> None:
        self._job = job
        self._items = items
        self._left = iter(items.items())
        self._undrawn = len(items)
        self._engines = engines
        self._limit_s = limit_s
        self._done, self._took_s = 0, 0.0

    def __iter__(self) -> Iterator[Task]:
        return self

    def __next__(self) -> Task:
        """Return the next batch, as large as is sensible now."""
        numbers, content, size = [], [], 0
        for number, item in itertools.islice(self._left, self._sensible()):
            numbers.append(number)
            content.append((number, item))
            size += len(item)
            if size > BATCH_BYTES:
                break
        if not numbers:
            raise StopIteration
        self._undrawn -= len(numbers)
        args = (self._job.digest, tuple(content), calls(self._limit_s))
        return _Batch(tuple(numbers), on_engine.run_batch, args)

    def ended(self, batch: BatchEnded) -> None:
        """Learn from a batch how long items take."""
        self._done += len(batch.items)
        self._took_s += batch.duration_s

    def _sensible(self) -> int:
        if not self._done:
            return 1
        each_s = max(self._took_s / self._done, 1e-6)
        share = math.ceil(self._undrawn * SHARE / max(self._engines(), 1))
        return max(1, min(BATCH_ITEMS, share, round(BATCH_S / each_s)))


def open_farm(
    choice: EngineChoice, job: Job, logs: Path, watch: Callable[[FarmState], None] | None = None
) -> tuple[Farm, str]:
    """Return a farm whose engines will hold a job, and the name of its backend.

    Parameters
    ----------
    choice : EngineChoice
    job : Job
    logs : Path
        Directory for what engines that are started here leave behind.
    watch : callable or None
        Told the ``FarmState`` when it changes.
    """
    if choice.backend == "serial":
        return SerialFarm(lambda: _prepare_here(job), on_engine.close, watch), "serial"
    source, backend = engine_source(choice, logs)
    farm = EngineFarm(
        source,
        preparation=JobPreparation(job),
        engine_timeout_s=choice.timeout_s,
        watch=watch,
        is_not_ready=lambda result: isinstance(result, Missing),
    )
    return farm, backend


def _prepare_here(job: Job) -> None:
    answer = on_engine.prepare(job.digest, job.payload, 0.0, here())
    if isinstance(answer, FleetError):
        raise answer


def run_items(
    farm: Farm,
    job: Job,
    items: Mapping[int, bytes],
    on_results: Callable[[Mapping[int, Result]], None],
    limit_s: float | None = None,
) -> None:
    """Call a job for every item.

    Parameters
    ----------
    farm : Farm
        Prepared for the job.
    job : Job
    items : mapping of int to bytes
        Pickled, by number.
    on_results : callable
        Called with what has come, each item once, in any order.
    limit_s : float or None
        Limit of one item [s].
    """
    batches = Items(job, items, lambda: farm.size, limit_s)

    def ended(task: Task, batch: BatchEnded) -> None:
        batches.ended(batch)
        results = {
            number: Result(one, batch.host, batch.pid)
            for number, one in zip(task.key, batch.items, strict=True)
        }
        on_results(results)

    def failed(task: Task, failure: WorkloadFailed) -> None:
        reason = failure.what.removeprefix(f"{task.title} ")
        on_results({number: Result(Ended("lost", reason=reason), "", 0) for number in task.key})

    farm.run(batches, ended, failed)
