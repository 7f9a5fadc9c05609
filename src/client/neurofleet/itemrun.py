"""A run over items: what was computed before is taken from the store, the rest from engines."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from neurofleet.backends.choice import EngineChoice
from neurofleet.batches import Result, open_farm, run_items
from neurofleet.engine.job_content import Ended
from neurofleet.errors import UsageError
from neurofleet.farm import FarmState
from neurofleet.itemstore import ItemStore
from neurofleet.jobs import Job
from neurofleet.status import Status


class View(Protocol):
    """Somebody who watches a run over items."""

    def says(self, text: str) -> None:
        """A line for a person."""

    def farm(self, state: FarmState) -> None:
        """Engines came, went, or changed what they do."""

    def items(self, done: int, total: int, failed: int) -> None:
        """Items ended."""


@dataclass(frozen=True)
class ItemRun:
    """What is computed, where, and where it is kept.

    Attributes
    ----------
    job : Job
    about : mapping
        What results depend on besides the items.
    items : sequence of bytes
        Pickled.
    directory : Path
        The run directory.
    engines : EngineChoice
    limit_s : float or None
        Limit of one item [s].
    """

    job: Job
    about: Mapping[str, str]
    items: Sequence[bytes]
    directory: Path
    engines: EngineChoice
    limit_s: float | None = None

    def __post_init__(self) -> None:
        if self.limit_s is not None and not 0 < self.limit_s < float("inf"):
            raise UsageError(
                f"a limit of {self.limit_s:g} s is none",
                remedy="Give --item-timeout above 0, in seconds",
            )


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes
    ----------
    results : tuple of Result
        In the order of the items.
    computed, from_store : int
    """

    results: tuple[Result, ...]
    computed: int
    from_store: int

    @property
    def failed(self) -> list[int]:
        """Numbers of the items that have no value, from 0."""
        return [number for number, result in enumerate(self.results) if not result.ok]


def run(wanted: ItemRun, view: View) -> Outcome:
    """Compute every item that has no result yet.

    Raises
    ------
    FleetError
        See its subclasses; what was computed is kept whatever is raised.
    """
    keys = _keys(wanted.items)
    total = len(keys)
    results: dict[int, Result] = {}
    with (
        ItemStore(wanted.directory, wanted.about) as store,
        Status(wanted.directory, wanted.job.name) as status,
    ):
        kept = store.get(keys)
        for number, key in enumerate(keys):
            if key in kept:
                value, host, pid = kept[key]
                results[number] = Result(Ended("ok", value), host, pid)
        from_store = len(results)

        def tell_items(failed: int) -> None:
            status.tell(items_done=len(results), items_total=total, failed=failed)
            view.items(len(results), total, failed)

        def tell_farm(state: FarmState) -> None:
            status.farm(state)
            view.farm(state)

        tell_items(0)
        missing = {n: item for n, item in enumerate(wanted.items) if n not in results}
        if missing:
            failed = 0

            def keep(new: Mapping[int, Result]) -> None:
                nonlocal failed
                good = {number: result for number, result in new.items() if result.ok}
                store.put([(keys[n], r.ended.value, r.host, r.pid) for n, r in good.items()])
                results.update(new)
                failed += len(new) - len(good)
                tell_items(failed)

            farm, backend = open_farm(
                wanted.engines, wanted.job, wanted.directory / "engines", tell_farm
            )
            with contextlib.closing(farm):
                farm.open()
                view.says(f"engines ready: {farm.size} ({backend})")
                run_items(farm, wanted.job, missing, keep, wanted.limit_s)
    return Outcome(tuple(results[n] for n in range(total)), total - from_store, from_store)


def _keys(items: Sequence[bytes]) -> list[bytes]:
    """Return a name for each item: its content, and which of several equal ones it is."""
    seen: Counter[bytes] = Counter()
    keys = []
    for item in items:
        digest = hashlib.blake2b(item, digest_size=16).digest()
        keys.append(digest + seen[digest].to_bytes(4, "little"))
        seen[digest] += 1
    return keys
