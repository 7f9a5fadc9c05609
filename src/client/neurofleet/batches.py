"""Items of a job on a farm: how engines get the job, how many items go at once, what comes back."""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurofleet import __version__
from neurofleet.backends.choice import EngineChoice, engine_source
from neurofleet.dispatch import EngineFarm
from neurofleet.engine import job as on_engine
from neurofleet.engine import tasks
from neurofleet.engine.host_cache import python_version
from neurofleet.engine.job import Missing
from neurofleet.engine.job_content import BatchEnded, Calls, Ended, Place
from neurofleet.errors import FleetError, WorkloadFailed
from neurofleet.farm import Farm, FarmState, SerialFarm, Task, check_engine
from neurofleet.itemlimit import ItemLimit
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
#: How an item ended of which one learns how long items take.
BY_ITSELF = ("ok", "raised")


class JobPreparation:
    """Takes an engine through version check and, once for each host, the job's transfer.

    Parameters
    ----------
    job : Job
    place : Place
        Where the person's program works.
    """

    def __init__(self, job: Job, place: Place | None = None) -> None:
        self._job = job
        self._place = place or Place()
        self._sent: set[str] = set()

    def request(self, answer: Any | None) -> tuple[Any, ...] | None:
        """Return the next call for an engine; see ``farm.Preparation``."""
        if answer is None:
            names = tuple(self._job.versions)
            return (tasks.probe, names) if names else (tasks.probe,)
        if isinstance(answer, FleetError):
            raise answer
        if isinstance(answer, dict):
            wanted = {"neurofleet": __version__, "Python": python_version(), **self._job.versions}
            check_engine(answer, wanted)
            # An engine of a host that was sent the job waits for it there.
            return self._prepare(RECEIVE_S if answer["host"] in self._sent else 0.0)
        if isinstance(answer, Missing):
            if answer.host in self._sent and not answer.waited:
                return self._prepare(RECEIVE_S)
            # The first of its host, or whoever was receiving it there was lost.
            self._sent.add(answer.host)
            return (on_engine.prepare, self._job.digest, self._job.payload, 0.0, self._place)
        return None

    def _prepare(self, wait_s: float) -> tuple[Any, ...]:
        return (on_engine.prepare, self._job.digest, None, wait_s, self._place)


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
    took_s : float
        At most so long [s]; 0 is not known.
    """

    ended: Ended
    host: str
    pid: int
    took_s: float = 0.0

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
        return [_Batch((item[0],), self.function, (digest, (item,), calls)) for item in items]


class Items:
    """Items that are not done, handed out in batches that follow what was measured.

    Parameters
    ----------
    job : Job
    items : mapping of int to bytes
        Pickled, by number.
    engines : callable
        How many can be used now.
    calls : Calls
        How they are called; the limit is that of ``limit``.
    limit : ItemLimit or None
        The limit of one item; ``None`` is that of ``calls``.
    """

    def __init__(
        self,
        job: Job,
        items: Mapping[int, bytes],
        engines: Callable[[], int],
        calls: Calls | None = None,
        limit: ItemLimit | None = None,
    ) -> None:
        self._job = job
        self._left = iter(items.items())
        self._undrawn = len(items)
        self._engines = engines
        self._calls = calls or Calls()
        self._limit = limit
        self._done, self._took_s = 0, 0.0

    def __iter__(self) -> Iterator[Task]:
        return self

    def __next__(self) -> Task:
        """Return the next batch, as large as is sensible now."""
        items: list[tuple[int, bytes]] = []
        size = 0
        for item in itertools.islice(self._left, self._sensible()):
            items.append(item)
            size += len(item[1])
            if size > BATCH_BYTES:
                break
        if not items:
            raise StopIteration
        self._undrawn -= len(items)
        calls = self._calls
        if self._limit is not None:
            calls = calls._replace(limit_s=self._limit.now_s)
        numbers = tuple(number for number, _ in items)
        return _Batch(numbers, on_engine.run_batch, (self._job.digest, tuple(items), calls))

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
    choice: EngineChoice,
    job: Job,
    logs: Path,
    watch: Callable[[FarmState], None] | None = None,
    place: Place | None = None,
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
    place : Place or None
        Where the person's program works.
    """
    if choice.backend == "serial":
        where = place or Place()
        return SerialFarm(lambda: _prepare_here(job, where), on_engine.close, watch), "serial"
    source, backend = engine_source(choice, logs)
    farm = EngineFarm(
        source,
        preparation=JobPreparation(job, place),
        engine_timeout_s=choice.timeout_s,
        watch=watch,
        is_not_ready=lambda result: isinstance(result, Missing),
    )
    return farm, backend


def _prepare_here(job: Job, place: Place) -> None:
    answer = on_engine.prepare(job.digest, job.payload, 0.0, place)
    if isinstance(answer, FleetError):
        raise answer


def run_items(
    farm: Farm,
    job: Job,
    items: Mapping[int, bytes],
    on_results: Callable[[Mapping[int, Result]], None],
    calls: Calls | None = None,
    limit: ItemLimit | None = None,
    on_again: Callable[[Sequence[int], float, float], None] = lambda _items, _had, _gets: None,
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
    calls : Calls or None
        How they are called.
    limit : ItemLimit or None
        The limit of one item; ``None`` is that of ``calls``.
    on_again : callable
        Told which items reached a limit that was a guess, what it was, and with which one
        they are tried again [s].
    """
    left = dict(items)
    while left:
        batches = Items(job, left, lambda: farm.size, calls, limit)
        turn = _Turn(batches, limit, on_results)
        farm.run(batches, turn.ended, turn.failed)
        again = turn.judged()
        left = {number: items[number] for number in again}
        if again and limit is not None:
            on_again(list(again), max(again.values()), limit.now_s or 0.0)


class _Turn:
    """Results of one turn of the items; those that reached a limit are judged at its end."""

    def __init__(
        self,
        batches: Items,
        limit: ItemLimit | None,
        on_results: Callable[[Mapping[int, Result]], None],
    ) -> None:
        self._batches = batches
        self._limit = limit
        self._on_results = on_results
        self._doubtful: dict[int, tuple[Result, float]] = {}

    def ended(self, task: Task, batch: BatchEnded) -> None:
        """Hand over what became of a batch."""
        self._batches.ended(batch)
        had_s = task.args[2].limit_s
        by_itself = all(one.status in BY_ITSELF for one in batch.items)
        took_s = batch.duration_s if by_itself else 0.0
        if self._limit is not None and by_itself:
            self._limit.ended(took_s)
        results = {}
        for number, one in zip(task.key, batch.items, strict=True):
            result = Result(one, batch.host, batch.pid, took_s)
            if one.status == "timeout" and self._deserves_more(had_s):
                self._doubtful[number] = (result, had_s)
            else:
                results[number] = result
        if results:
            self._on_results(results)

    def failed(self, task: Task, failure: WorkloadFailed) -> None:
        """Hand over that no engine survived a batch."""
        reason = failure.what.removeprefix(f"{task.title} ")
        self._on_results(
            {number: Result(Ended("lost", reason=reason), "", 0) for number in task.key}
        )

    def judged(self) -> dict[int, float]:
        """Return the limits that those items had which deserve another one; settle the others."""
        doubtful = self._doubtful
        again = {n: had_s for n, (_, had_s) in doubtful.items() if self._deserves_more(had_s)}
        settled = {n: result for n, (result, _) in doubtful.items() if n not in again}
        if settled:
            self._on_results(settled)
        return again

    def _deserves_more(self, had_s: float | None) -> bool:
        return self._limit is not None and self._limit.deserves_more(had_s)
