"""A run over items: what was computed before is taken from the store, the rest from engines."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from neurofleet import here, safe_point
from neurofleet.batches import Result, open_farm, run_items
from neurofleet.engine.job_content import Calls, Ended, Place
from neurofleet.errors import FleetError
from neurofleet.farm import Farm, FarmState
from neurofleet.itemcode import Code
from neurofleet.itemfiles import ItemFiles
from neurofleet.itemoutput import ItemOutput
from neurofleet.itemrecord import write_record
from neurofleet.items_wanted import PENDING, ItemRun, OpenFarm, Outcome, View
from neurofleet.itemstore import SOURCE, Failure, ItemStore, Kept
from neurofleet.jobs import Job
from neurofleet.status import Status


def run(
    wanted: ItemRun,
    view: View,
    on_end: Callable[[Outcome], None] = lambda _outcome: None,
    farm: OpenFarm | None = None,
) -> Outcome:
    """Compute every item that has no result yet.

    Parameters
    ----------
    wanted : ItemRun
    view : View
    on_end : callable
        Called with what there is when the run ends, in whatever way.
    farm : callable or None
        Where the engines come from; ``None`` opens those of ``wanted.engines``.

    Raises
    ------
    FleetError
        See its subclasses; what was computed is kept whatever is raised.
    """
    code = Code.of(wanted.job)
    keep = wanted.keep_results or wanted.retry_failed
    with (
        ItemStore(
            wanted.directory, wanted.about, code, keep=keep, remedies=wanted.remedies
        ) as store,
        Status(wanted.directory, wanted.job.name) as status,
    ):
        store.note(SOURCE, wanted.source)
        if store.changed:
            view.says(f"going on from results of {store.changed}")
        under_way = _Run(wanted, store, status, view)
        try:
            with safe_point.running():
                under_way.compute(farm or _own_farm(wanted))
        except BaseException:
            # What ended the run is what is told, also if the disk is full.
            with contextlib.suppress(FleetError):
                under_way.end(on_end)
            raise
        under_way.end(on_end)
        return under_way.outcome()


def _own_farm(wanted: ItemRun) -> OpenFarm:
    @contextlib.contextmanager
    def opened(
        job: Job, place: Place, watch: Callable[[FarmState], None]
    ) -> Iterator[tuple[Farm, str]]:
        logs = wanted.directory / "engines"
        farm, backend = open_farm(wanted.engines, job, logs, watch, place)
        with contextlib.closing(farm):
            farm.open()
            yield farm, backend

    return opened


class _Key(NamedTuple):
    """Under what an item's result is kept.

    Attributes
    ----------
    plain : bytes
        Its content, and which of several equal ones it is.
    drawn : bytes
        Its content and its number: for a result that depends on the number.
    """

    plain: bytes
    drawn: bytes


class _Run:
    """One run that is under way."""

    def __init__(self, wanted: ItemRun, store: ItemStore, status: Status, view: View) -> None:
        self._wanted = wanted
        self._store = store
        self._status = status
        self._view = view
        self._keys = _keys(wanted.items)
        self._files = ItemFiles(wanted.directory)
        output = wanted.directory / "engines" / "output"
        self._output = ItemOutput(output, wanted.show)
        self._results: dict[int, Result] = {}
        self._codes: dict[int, int] = {}
        self._places: dict[int, str] = {}
        self._left_behind: dict[int, tuple[str, ...]] = {}
        self._failed_before: dict[int, Result] = {}
        self._computed = 0
        self._failed = 0
        self._take_kept()
        self._from_store = len(self._results)

    def _take_kept(self) -> None:
        """Take what there is from the store."""
        kept = self._store.get({name for key in self._keys for name in key})
        failures = self._store.failures({key.plain for key in self._keys})
        for number, key in enumerate(self._keys):
            found = kept.get(key.plain) or kept.get(key.drawn)
            if found is not None:
                ended = Ended("ok", found.value, left_behind=found.left_behind)
                self._results[number] = Result(ended, found.host, found.pid, found.took_s)
                self._note(number, found.code, found.files, found.left_behind)
            elif key.plain in failures:
                failure = failures[key.plain]
                ended = Ended(failure.status, b"", failure.reason, failure.traceback)
                self._failed_before[number] = Result(ended, failure.host, failure.pid)
                self._note(number, failure.code, failure.files, ())

    def _note(self, number: int, code: int, files: str, left_behind: tuple[str, ...]) -> None:
        self._codes[number] = code
        if files:
            self._places[number] = files
        if left_behind:
            self._left_behind[number] = left_behind

    def compute(self, open_farm: OpenFarm) -> None:
        """Compute what is missing."""
        wanted, items = self._wanted, self._wanted.items
        numbers: Any = self._failed_before if wanted.retry_failed else range(len(items))
        missing = {n: items[n] for n in numbers if n not in self._results}
        self._files.link(self._places)
        self._tell_items()
        if not missing:
            return
        limit = wanted.limit
        if self._store.longest_s():
            limit.ended(self._store.longest_s())
        here.clear(wanted.directory)
        with here.place(wanted.directory) as place:
            calls = Calls(wanted.seed, None, wanted.files_bytes, place)
            with open_farm(wanted.job, place, self._tell_farm) as (farm, name):
                self._view.says(f"engines ready: {farm.size} ({name})")
                run_items(farm, wanted.job, missing, self._keep, calls, limit, self._tell_again)

    def _keep(self, new: Mapping[int, Result]) -> None:
        """Have results on disk, then count them."""
        results, failures, forget = [], [], []
        for number, result in new.items():
            key, ended = self._keys[number], result.ended
            files, left_behind = "", ended.left_behind
            if ended.files:
                name = key.drawn if ended.drew else key.plain
                files, left_out = self._files.unpack(name, ended.files, self._wanted.files_bytes)
                left_behind += left_out
            told = (result.host, result.pid, self._store.code)
            if result.ok:
                kept = Kept(ended.value, *told, result.took_s, files, left_behind)
                results.append((key.drawn if ended.drew else key.plain, kept))
                forget.append(key.plain)
            else:
                failure = Failure(ended.status, ended.reason, ended.traceback, *told, files)
                failures.append((key.plain, failure))
            self._note(number, self._store.code, files, left_behind)
        self._store.put(results, failures, forget)
        self._output.take(new)
        for number, result in new.items():
            # What is kept and shown already would fill the memory.
            bare = result.ended._replace(output=b"", files=b"")
            self._results[number] = Result(bare, result.host, result.pid, result.took_s)
            self._failed_before.pop(number, None)
        self._computed += len(new)
        self._failed += sum(not result.ok for result in new.values())
        self._tell_items()

    def _tell_items(self) -> None:
        done, total = len(self._results), len(self._keys)
        self._status.tell(items_done=done, items_total=total, failed=self._failed)
        self._view.items(done, total, self._failed)

    def _tell_farm(self, state: FarmState) -> None:
        self._status.farm(state)
        self._view.farm(state)

    def _tell_again(self, items: Sequence[int], had_s: float, gets_s: float) -> None:
        names = ", ".join(str(number + 1) for number in sorted(items)[:5])
        more = f" and {len(items) - 5} more" if len(items) > 5 else ""
        self._view.says(
            f"item{'s'[: len(items) > 1]} {names}{more} reached the first limit of {had_s:g} s and"
            f" will be tried again with {gets_s:g} s (--item-timeout sets a limit)"
        )

    def end(self, on_end: Callable[[Outcome], None]) -> None:
        """Leave a run directory that shows what there is."""
        if self._output.lost:
            self._view.says(f"what items printed could not be kept ({self._output.lost})")
        outcome = self.outcome()
        try:
            self._files.link(self._places)
            write_record(self._wanted.directory, self._wanted, self._store, outcome)
        finally:
            on_end(outcome)

    def outcome(self) -> Outcome:
        """Return what there is."""
        pending = Result(Ended(PENDING), "", 0)
        known = {**self._failed_before, **self._results}
        total = range(len(self._keys))
        codes = tuple(self._codes.get(n, 0) if n in known else 0 for n in total)
        return Outcome(
            tuple(known.get(n, pending) for n in total),
            self._computed,
            self._from_store,
            codes,
            len({code for code in codes if code}) > 1,
            {n: names for n, names in sorted(self._left_behind.items()) if n in known},
        )


def _keys(items: Sequence[bytes]) -> list[_Key]:
    """Return under what each item's result is kept."""
    seen: Counter[bytes] = Counter()
    keys = []
    for number, item in enumerate(items):
        digest = hashlib.blake2b(item, digest_size=16).digest()
        occurrence = seen[digest].to_bytes(4, "little")
        keys.append(_Key(digest + occurrence, digest + b"#" + number.to_bytes(4, "little")))
        seen[digest] += 1
    return keys


__all__ = ["ItemRun", "Outcome", "View", "run"]
