"""A function over items, on a farm: what is sent, in which portions, what comes back."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import math
import os
import pickle
import platform
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cloudpickle

from neurofleet import __version__
from neurofleet.backends.choice import EngineChoice, engine_source
from neurofleet.dispatch import EngineFarm
from neurofleet.engine import job as on_engine
from neurofleet.engine import tasks
from neurofleet.engine.job import BatchEnded, Ended, Missing
from neurofleet.errors import FleetError, UsageError, WorkloadFailed, first_line
from neurofleet.farm import Farm, FarmState, SerialFarm, Task, check_engine

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
#: Largest job that is sent to a host [bytes].
LARGEST_JOB = 512 * 1024 * 1024


@dataclass(frozen=True)
class Job:
    """A function with its data, ready to be sent.

    Attributes
    ----------
    name : str
        The function's, for people.
    payload : bytes
        Pickled.
    digest : str
        The payload's hash.
    """

    name: str
    payload: bytes = field(repr=False)
    digest: str

    @classmethod
    def of(cls, function: Callable[..., Any], shared: Mapping[str, Any] | None = None) -> Job:
        """Make a job of a function.

        Parameters
        ----------
        function : callable
            Of one item, and of ``shared`` as keyword arguments. One that is defined in a
            person's own file travels with that file's code; one that is part of an
            installed package travels as its name.
        shared : mapping or None
            Sent once to each host.

        Raises
        ------
        UsageError
            Function or data cannot be pickled.
        """
        name = getattr(function, "__qualname__", type(function).__name__)
        if not callable(function):
            raise UsageError(f"{function!r} is not a function", remedy="Give one to be called")
        try:
            bound = _Bound(function, dict(shared)) if shared else function
            with _own_code_travels():
                payload = cloudpickle.dumps(bound)
        except Exception as error:
            raise UsageError(
                f"{name} or its data cannot be sent to engines ({first_line(error)})",
                remedy="Open files and connections inside the function; keep the rest plain data",
            ) from error
        if len(payload) > LARGEST_JOB:
            raise UsageError(
                f"{name} and its data are {len(payload) / 1e6:.0f} MB, more than the"
                f" {LARGEST_JOB / 1e6:.0f} MB that are sent",
                remedy="Put large data into files that engines can read, and send their names",
            )
        return cls(name, payload, hashlib.sha256(payload).hexdigest())


@dataclass(frozen=True)
class _Bound:
    """A function with keyword arguments."""

    function: Callable[..., Any]
    shared: dict[str, Any]

    def __call__(self, item: Any) -> Any:
        return self.function(item, **self.shared)


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
            return (on_engine.prepare, self._job.digest, None, wait_s)
        if isinstance(answer, Missing):
            if answer.host in self._sent and not answer.waited:
                return (on_engine.prepare, self._job.digest, None, RECEIVE_S)
            # The first of its host, or whoever was receiving it there was lost.
            self._sent.add(answer.host)
            return (on_engine.prepare, self._job.digest, self._job.payload)
        return None


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
    def most_losses(self) -> int:
        """Fewer than a task's: the item fails, the others and the run go on."""
        return MOST_LOSSES if len(self.key) == 1 else MOST_LOSSES + 1

    def parts(self) -> Sequence[Task]:
        """Return a task for each item, so that the one that ends engines is found."""
        digest, items, limit_s = self.args
        if len(items) == 1:
            return (self,)
        return [
            _Batch((number,), self.function, (digest, (item,), limit_s))
            for number, item in zip(self.key, items, strict=True)
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
            content.append(item)
            size += len(item)
            if size > BATCH_BYTES:
                break
        if not numbers:
            raise StopIteration
        self._undrawn -= len(numbers)
        args = (self._job.digest, tuple(content), self._limit_s)
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


def pickled(items: Iterable[Any]) -> list[bytes]:
    """Return each item as it is sent.

    Raises
    ------
    UsageError
        One cannot be sent; says which.
    """
    made = []
    with _own_code_travels():
        for number, item in enumerate(items):
            try:
                dumps = pickle.dumps if type(item) in _PLAIN else cloudpickle.dumps
                made.append(dumps(item))
            except Exception as error:
                raise UsageError(
                    f"item {number}, a {type(item).__name__}, cannot be sent to an engine"
                    f" ({first_line(error)})",
                    remedy="Give plain data, and open files and connections inside the function",
                ) from error
    return made


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
        return SerialFarm(lambda: _prepare_here(job), lambda: None), "serial"
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
    answer = on_engine.prepare(job.digest, job.payload)
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
        reason = failure.what.removeprefix("run_batch ")
        on_results({number: Result(Ended("lost", b"", reason), "", 0) for number in task.key})

    farm.run(batches, ended, failed)


@contextlib.contextmanager
def _own_code_travels() -> Iterator[None]:
    """Have functions of a person's own files pickled with their code: engines lack the files."""
    known = cloudpickle.list_registry_pickle_by_value()
    own = {m.__name__: m for m in own_modules() if m.__name__ not in known}.values()
    for module in own:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in own:
            cloudpickle.unregister_pickle_by_value(module)


def own_modules() -> list[Any]:
    """Return the loaded modules that are a person's own files."""
    return [module for module in list(sys.modules.values()) if _is_own(module)]


def _is_own(module: Any) -> bool:
    """Tell whether a module is a file that is part of no installed package."""
    file = getattr(module, "__file__", None)
    if not file or getattr(module, "__name__", "__main__") == "__main__":
        return False  # cloudpickle sends what __main__ has anyway
    return not _is_installed(file)


@functools.cache
def _is_installed(file: str) -> bool:
    # There are thousands, and most need no look at the file system.
    if file.startswith(_INSTALLED) or not file.endswith(".py"):
        return True
    return os.path.realpath(file).startswith(_INSTALLED)


def _places() -> tuple[str, ...]:
    """Return where installed packages are, this program among them."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    places = [*map(sysconfig.get_path, names), str(Path(__file__).parent)]
    return tuple(f"{name(place)}{os.sep}" for place in places for name in (str, os.path.realpath))


_INSTALLED = _places()
#: What needs no look at where its class comes from.
_PLAIN = frozenset({str, bytes, int, float, bool, type(None)})
