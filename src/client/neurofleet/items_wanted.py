"""What a run over items is asked for, what it comes to, and who watches it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from neurofleet.backends.choice import EngineChoice
from neurofleet.batches import Result
from neurofleet.engine.job_content import Place
from neurofleet.farm import Farm, FarmState
from neurofleet.itemcode import Remedies
from neurofleet.itemlimit import ItemLimit
from neurofleet.jobs import Job

#: What became of an item that was not computed.
PENDING = "pending"
#: The most that is brought back of what one item wrote [bytes].
FILES_BYTES = 100_000_000


class View(Protocol):
    """Somebody who watches a run over items."""

    def says(self, text: str) -> None:
        """A line for a person."""

    def farm(self, state: FarmState) -> None:
        """Engines came, went, or changed what they do."""

    def items(self, done: int, total: int, failed: int) -> None:
        """Items ended."""


class OpenFarm(Protocol):
    """How a run gets engines that hold its job."""

    def __call__(
        self, job: Job, place: Place, watch: Callable[[FarmState], None]
    ) -> AbstractContextManager[tuple[Farm, str]]:
        """Return a farm that is open, and its name for people."""


@dataclass(frozen=True)
class ItemRun:
    """What is computed, where, and where it is kept.

    Attributes
    ----------
    job : Job
    about : mapping
        What results depend on besides the items and the job's code.
    items : sequence of bytes
        Pickled.
    directory : Path
        The run directory.
    engines : EngineChoice
    limit_s : float, "none" or None
        Limit of one item [s]; ``None`` derives it (``itemlimit.py``).
    seed : int
        With an item's number it seeds the generators of its call.
    files_bytes : int
        The most that is brought back of what one item wrote [bytes].
    keep_results : bool
        Whether to go on from results of other code or other versions of packages.
    retry_failed : bool
        Whether to compute only items that have failed; keeps all results too.
    remedies : Remedies
        What a person can do about results of other code, in the caller's words.
    source : str
        Where the items come from, for the record.
    show : callable or None
        Called with an item's number, from 0, and each line that it printed.
    """

    job: Job
    about: Mapping[str, str]
    items: Sequence[bytes] = field(repr=False)
    directory: Path
    engines: EngineChoice
    limit_s: float | str | None = None
    seed: int = 0
    files_bytes: int = FILES_BYTES
    keep_results: bool = False
    retry_failed: bool = False
    remedies: Remedies = field(default_factory=Remedies)
    source: str = ""
    show: Callable[[int, str], None] | None = None

    @property
    def limit(self) -> ItemLimit:
        """The limit, checked; a new one each time."""
        return ItemLimit(self.limit_s)

    def __post_init__(self) -> None:
        _ = self.limit


@dataclass(frozen=True)
class Outcome:
    """What a run came to, or has come to when it was ended.

    Attributes
    ----------
    results : tuple of Result
        In the order of the items.
    computed, from_store : int
        Items that were called in this run, and those that had a result before.
    codes : tuple of int
        Of which code each result is, by its number in the run's record; 0 is none.
    several_codes : bool
        Whether the results are of more than one code.
    left_behind : mapping of int to tuple of str
        Files that were not brought back, by the item's number from 0.
    """

    results: tuple[Result, ...]
    computed: int
    from_store: int
    codes: tuple[int, ...] = ()
    several_codes: bool = False
    left_behind: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    @property
    def failed(self) -> list[int]:
        """Numbers of the items that have failed, from 0."""
        return [
            number
            for number, result in enumerate(self.results)
            if not result.ok and result.ended.status != PENDING
        ]

    @property
    def pending(self) -> list[int]:
        """Numbers of the items that were not computed, from 0."""
        return [n for n, result in enumerate(self.results) if result.ended.status == PENDING]
