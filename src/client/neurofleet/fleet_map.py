"""``Fleet.map``: what it is asked for, how it is computed, and what its caller sees of failures."""

from __future__ import annotations

import contextlib
import logging
import math
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neurofleet import causes, here
from neurofleet.backends.choice import EngineChoice
from neurofleet.batches import JobPreparation, Result, run_items
from neurofleet.dispatch import EngineFarm
from neurofleet.engine.job_content import Calls, Place
from neurofleet.errors import Interrupted, UsageError, WorkloadFailed
from neurofleet.farm import Farm, FarmState
from neurofleet.files import is_whole
from neurofleet.itemcode import Remedies
from neurofleet.itemfiles import names
from neurofleet.itemlimit import ItemLimit
from neurofleet.itemoutput import ItemOutput
from neurofleet.itemrun import ItemRun, run
from neurofleet.items_wanted import PENDING
from neurofleet.jobs import Job, pickled

logger = logging.getLogger(__name__)
#: So many names of files that are lost are told [count].
NAMED = 5
REMEDIES = Remedies(
    "run_dir=",
    "keep_results=True keeps them and computes what is missing, retry_failed=True keeps them and"
    " computes only what failed",
)


class ItemFailed(WorkloadFailed):
    """A function raised for an item.

    Its ``__cause__`` shows the traceback on the engine, with everything that was behind the
    exception.

    Attributes
    ----------
    item : int
        The item's number, from 0.
    traceback : str
        The whole traceback on the engine; empty if nothing was raised.
    """

    item: int = -1
    traceback: str = ""


class RemoteTraceback(Exception):
    """What an engine raised, as its traceback; the cause of an ``ItemFailed``."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        """Return the traceback, set apart as ``concurrent.futures`` does it."""
        return f'\n"""\n{self.text.rstrip()}\n"""'


class Stopped(Interrupted, SystemExit):
    """A stop was asked for, by Slurm for example; a program that does not catch it ends with 130.

    It is an ``Exception`` too. ``neurofleet slurm script`` queues a job again whose program
    ends so.
    """

    code = Interrupted.exit_code


@dataclass(frozen=True)
class Wanted:
    """What ``Fleet.map`` is asked for; see there.

    Raises
    ------
    UsageError
        A number is out of its range, or options do not belong together.
    """

    function: Any
    shared: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    limit_s: float | str | None = None
    files_mb: float = 0
    verbose: bool = False
    mechanisms: Path | None = None
    run_dir: Path | None = None
    keep_results: bool = False
    retry_failed: bool = False

    @property
    def files_bytes(self) -> int:
        """The most that is brought back of what one item wrote [bytes]."""
        return int(self.files_mb * 1_000_000)

    def __post_init__(self) -> None:
        ItemLimit(self.limit_s)
        if not is_whole(self.seed, 0, 2**32 - 1):
            raise UsageError(
                f"the seed must be from 0 to {2**32 - 1}, not {self.seed!r}",
                remedy="Give another seed",
            )
        # Streams are named by it, and numpy's whole numbers are written otherwise.
        object.__setattr__(self, "seed", int(self.seed))
        if not 0 <= self.files_mb < math.inf:
            raise UsageError(
                f"files_limit_mb must be a number from 0, not {self.files_mb}",
                remedy="Give another number of megabytes, 0 to bring nothing back",
            )
        if self.run_dir is None and (self.keep_results or self.retry_failed):
            raise UsageError(
                "no results are kept without a run directory", remedy="Give run_dir= too"
            )


def map_on(
    farm: EngineFarm,
    choice: EngineChoice,
    wanted: Wanted,
    items: Iterable[Any],
    watched: Callable[[Callable[[FarmState], None]], contextlib.AbstractContextManager[None]],
) -> list[Any]:
    """Call a function for each item on a farm that is open.

    Parameters
    ----------
    farm : EngineFarm
    choice : EngineChoice
        Where its engines come from.
    wanted : Wanted
    items : iterable
    watched : callable
        Has somebody told the farm's state while a block lasts.

    Returns
    -------
    list
        What each call returned, or an ``ItemFailed``.

    Raises
    ------
    Stopped
        A stop was asked for.
    FleetError
        See its subclasses.
    """
    content = pickled(items)
    mechanisms = mechanism_files(wanted.mechanisms)
    job = Job.of(wanted.function, wanted.shared, content, mechanisms=mechanisms)
    show = (lambda n, line: print(f"items[{n}]: {line}")) if wanted.verbose else None
    try:
        if wanted.run_dir is None:
            output = ItemOutput(None, show)
            results, lost = _in_memory(farm, wanted, job, content, output, choice.scratch)
            if lost:
                _warn(f"files that calls wrote on other machines are lost: {_some(lost)}."
                      " With run_dir= they are brought back.")  # fmt: skip
            return _values(job, results)
        run_wanted = ItemRun(
            job=job,
            about={"function": job.name, "seed": str(wanted.seed), "shared data": job.data},
            items=content,
            directory=wanted.run_dir,
            engines=choice,
            limit_s=wanted.limit_s,
            seed=wanted.seed,
            files_bytes=wanted.files_bytes,
            keep_results=wanted.keep_results,
            retry_failed=wanted.retry_failed,
            remedies=REMEDIES,
            show=show,
        )

        @contextlib.contextmanager
        def opened(
            job: Job, place: Place, watch: Callable[[FarmState], None]
        ) -> Iterator[tuple[Farm, str]]:
            with watched(watch):
                _prepare(farm, job, place)
                yield farm, choice.backend

        outcome = run(run_wanted, _Logged(), farm=opened)
        left = [
            f"{name} (item {number})"
            for number, left_behind in outcome.left_behind.items()
            for name in left_behind
        ]
        if left:
            _warn(f"files that calls wrote on other machines are not brought back: {_some(left)}."
                  " files_limit_mb= sets how much is.")  # fmt: skip
        return _values(job, outcome.results)
    except Interrupted as error:
        if wanted.run_dir is None:
            # Whoever queued the program again would have it begin anew, and again.
            raise Interrupted(
                "stopped; no results are kept", remedy="Give Fleet.map a run_dir= to keep them"
            ) from error
        print(str(error), file=sys.stderr)
        raise Stopped(error.what, remedy=error.remedy) from error


def _values(job: Job, results: Sequence[Result]) -> list[Any]:
    return [value_of(job.name, number, result) for number, result in enumerate(results)]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"


def _warn(text: str) -> None:
    """Warn, at the line of the person's program that called ``Fleet.map``."""
    warnings.warn(text, RuntimeWarning, stacklevel=4)


def _in_memory(
    farm: EngineFarm,
    wanted: Wanted,
    job: Job,
    content: Sequence[bytes],
    output: ItemOutput,
    scratch: Path | None,
) -> tuple[list[Result], list[str]]:
    """Compute every item, and keep nothing on disk; return results and files that are lost."""
    results: dict[int, Result] = {}
    lost: list[str] = []

    def take(new: Mapping[int, Result]) -> None:
        output.take(new)
        for number, result in new.items():
            ended = result.ended
            lost.extend(f"{name} (item {number})" for name in names(ended.files))
            lost.extend(f"{name} (item {number})" for name in ended.left_behind)
            bare = ended._replace(output=b"", files=b"")
            results[number] = Result(bare, result.host, result.pid, result.took_s)

    if content:
        with here.place(scratch or Path.cwd()) as place:
            _prepare(farm, job, place)
            calls = Calls(wanted.seed, None, wanted.files_bytes, place)
            limit = ItemLimit(wanted.limit_s)
            run_items(farm, job, dict(enumerate(content)), take, calls, limit)
    return [results[number] for number in range(len(content))], lost


def _prepare(farm: EngineFarm, job: Job, place: Place) -> None:
    farm.prepare_for(JobPreparation(job, place))
    farm.open()


class _Logged:
    """A view of a run for whoever reads the program's log."""

    def says(self, text: str) -> None:
        logger.info("%s", text)

    def farm(self, state: FarmState) -> None:
        """Say nothing."""

    def items(self, done: int, total: int, failed: int) -> None:
        """Say nothing."""


def mechanism_files(directory: Path | None) -> dict[str, bytes]:
    """Return the ``.mod`` files of a directory, by name.

    Raises
    ------
    UsageError
        It cannot be read, or has none.
    """
    if directory is None:
        return {}
    try:
        found = {
            path.name: path.read_bytes()
            for path in sorted(directory.iterdir())
            if path.suffix == ".mod" and path.is_file()
        }
    except OSError as error:
        raise UsageError(
            f"the mechanisms {str(directory)!r} cannot be read ({error.strerror or error})",
            remedy="Name a directory with .mod files",
        ) from error
    if not found:
        raise UsageError(
            f"there are no .mod files in {str(directory)!r}",
            remedy="Name the directory that has them with mechanisms=",
        )
    return found


def value_of(name: str, number: int, result: Result) -> Any:
    """Return what a call returned, or the ``ItemFailed`` that says why it did not."""
    ended = result.ended
    reason = ended.reason
    if result.ok:
        try:
            return result.value()
        except Exception as error:  # an exception that takes other arguments than its own, for one
            reason = f"its result cannot be loaded here: {causes.line(error)}"
            ended = ended._replace(traceback=causes.traceback_text(error))
    where = f" on {result.host}" if result.host else ""
    if ended.status == PENDING:
        reason = "it has not failed before, and retry_failed=True computes nothing else"
    failure = ItemFailed(
        f"{name} failed for item {number} (the first is 0){where}: {reason}",
        remedy="Call it for that item here to see more",
    )
    failure.item, failure.traceback = number, ended.traceback
    if ended.traceback:
        failure.__cause__ = RemoteTraceback(ended.traceback)
    return failure


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Leave Python's and numpy's own generators as they were: libraries draw from them."""
    python, numpy = random.getstate(), sys.modules.get("numpy")
    legacy = numpy.random.get_state() if numpy is not None else None
    try:
        yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(legacy)
