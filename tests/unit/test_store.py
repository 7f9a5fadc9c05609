"""The evaluation store: bit for bit, durable, one writer, and honest when it is damaged."""

from __future__ import annotations

import math
import multiprocessing
import multiprocessing.connection
import os
import random
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from neurofleet.engine.outcome import Outcome
from neurofleet.errors import FleetError, RunDirectoryError, WorkloadFailed
from neurofleet.repair import repair
from neurofleet.store import FILE, PAGE_SIZE, Phase, Store, connect, pack_floats, unpack_floats
from unit.support import an_outcome, snapshot

VERSIONS = {"neuron": "9.0.2", "bluepyopt": "1.14.26", "efel": "5.7.34"}
#: Any 64 bits, so also every NaN there is.
BITS = st.integers(0, 2**64 - 1).map(lambda n: struct.unpack("<d", struct.pack("<Q", n))[0])
FLOATS = st.lists(BITS, max_size=40).map(tuple)
SPECIAL = (-0.0, 0.0, math.nan, -math.nan, math.inf, -math.inf, 5e-324, 2.2250738585072009e-308)
#: A row of these tests takes 310 bytes.
ROWS_A_PAGE = 13
Rows = dict[tuple[str, tuple[float, ...]], Outcome]


def opened(directory: Path, model: str = "m1") -> Store:
    return Store(directory, model, VERSIONS)


def filled(directory: Path, count: int) -> Rows:
    """Fill a store and return what is in it."""
    chance = random.Random(count)
    rows: Rows = {}
    directory.mkdir(exist_ok=True)
    with opened(directory) as store:
        for index in range(count):
            key = ("Step1", "bAP")[index % 2], tuple(chance.random() for _ in range(20))
            rows[key] = an_outcome(tuple(chance.random() for _ in range(10)))
            store.put(*key, rows[key])
    return rows


# -- rows ---------------------------------------------------------------------------


@given(values=FLOATS)
@example(values=SPECIAL)
def test_floats_packed_and_unpacked_are_the_same_bits(values: tuple[float, ...]) -> None:
    packed = pack_floats(values)
    assert packed == b"".join(struct.pack("<d", value) for value in values)
    assert pack_floats(unpack_floats(packed)) == packed


@given(parameters=FLOATS, scores=FLOATS)
@example(parameters=SPECIAL, scores=SPECIAL)
def test_store_row_closed_and_opened_again_has_the_same_bits(
    tmp_path_factory: pytest.TempPathFactory,
    parameters: tuple[float, ...],
    scores: tuple[float, ...],
) -> None:
    directory = tmp_path_factory.mktemp("store")
    with opened(directory) as store:
        store.put("unit", parameters, an_outcome(scores))
    with opened(directory) as store:
        found = store.get("unit", parameters)
    assert found is not None
    assert pack_floats(found.scores) == pack_floats(scores)
    assert found._replace(scores=()) == an_outcome(())


def test_store_zero_and_minus_zero_are_two_individuals(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.put("unit", (0.0,), an_outcome((1.0,)))
        assert store.get("unit", (-0.0,)) is None


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_store_any_words_of_a_reason_come_back(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    with opened(tmp_path_factory.mktemp("store")) as store:
        store.put("unit", (1.0,), an_outcome()._replace(status="raised", reason=text))
        found = store.get("unit", (1.0,))
    assert found is not None
    assert found.reason == text


def test_store_second_score_of_a_key_does_not_replace_the_first(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.put("unit", (1.0,), an_outcome((1.0,)))
        store.put("unit", (1.0,), an_outcome((2.0,)))
        assert store.get("unit", (1.0,)) == an_outcome((1.0,))


def test_store_other_unit_model_or_version_has_scores_of_its_own(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.put("unit", (1.0,), an_outcome())
        store.set_note("units", "split")
        assert store.get("other", (1.0,)) is None
    for model, versions in (("m2", VERSIONS), ("m1", {**VERSIONS, "neuron": "9.0.3"})):
        with Store(tmp_path, model, versions) as store:
            assert store.get("unit", (1.0,)) is None
            assert store.note("units") is None
            assert store.durations() == {}
    with opened(tmp_path) as store:
        assert store.get("unit", (1.0,)) == an_outcome()
        assert store.note("units") == "split"


def test_store_durations_are_of_what_ran_to_its_end(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        for index, (status, duration) in enumerate(
            [("ok", 2.0), ("ok", 4.0), ("raised", 9.0), ("timeout", 100.0), ("crashed", 0.1)]
        ):
            outcome = an_outcome(status=status)._replace(duration_s=duration)
            store.put("unit", (float(index),), outcome)
        assert store.durations() == {"unit": (5.0, 9.0)}


def test_store_score_is_on_disk_before_put_returns(tmp_path: Path) -> None:
    """A process that is killed right after ``put`` has lost nothing."""
    code = (
        "import sys, os, signal\n"
        "from pathlib import Path\n"
        "from unit.support import an_outcome\n"
        "from unit.test_store import opened\n"
        "store = opened(Path(sys.argv[1]))\n"
        "for index in range(5):\n"
        "    store.put('unit', (float(index),), an_outcome())\n"
        "    print(index, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout.split() == ["0", "1", "2", "3", "4"]
    with opened(tmp_path) as store:
        assert all(store.get("unit", (float(index),)) for index in range(5))


def test_store_killed_while_it_writes_loses_no_acknowledged_score(tmp_path: Path) -> None:
    chance = random.Random(7)
    for _ in range(6):
        context = multiprocessing.get_context("fork")
        acknowledged, told = context.Pipe(duplex=False)
        child = context.Process(target=write_for_ever, args=(tmp_path, told))
        child.start()
        told.close()
        try:
            assert acknowledged.poll(20)
            time.sleep(chance.uniform(0, 0.05))
        finally:
            child.kill()
            child.join()
        last = -1.0
        while True:
            try:
                last = acknowledged.recv()
            except EOFError:
                break
        with opened(tmp_path) as store:
            assert store.get("unit", (last,)) is not None
            assert store.durations()["unit"] == (3.5, 3.5)


def write_for_ever(directory: Path, told: multiprocessing.connection.Connection) -> None:
    with opened(directory) as store:
        value = time.monotonic()
        while True:
            value += 1e-6
            store.put("unit", (value,), an_outcome())
            told.send(value)


# -- one writer ---------------------------------------------------------------------


def test_store_held_by_another_process_is_refused_and_its_holder_named(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()

    def hold() -> None:
        with opened(tmp_path):
            ready.set()
            done.wait(30)

    child = context.Process(target=hold)
    child.start()
    try:
        assert ready.wait(20)
        with pytest.raises(RunDirectoryError, match=f"is in use by process {child.pid} of"):
            opened(tmp_path)
        with pytest.raises(FleetError, match="in use"):
            repair(tmp_path)
    finally:
        done.set()
        child.join()
    opened(tmp_path).close()


def test_store_closed_leaves_no_holder(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert (tmp_path / "scores.holder").exists()
    store.close()
    store.close()
    assert not (tmp_path / "scores.holder").exists()


# -- what is wrong with the file or its place -----------------------------------------


def test_store_of_a_later_format_is_refused_and_not_changed(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    with sqlite3.connect(tmp_path / FILE) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(RunDirectoryError, match="has format 99, this program writes 1"):
        opened(tmp_path)
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.skipif(os.getuid() != 0, reason="mounting takes root")
def test_store_on_a_full_disk_says_so_and_keeps_what_was_scored(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        kept: list[int] = []

        def fill(store: Store) -> None:
            for index in range(10_000):
                store.put("unit", tuple(index + i / 100 for i in range(20)), an_outcome())
                kept.append(index)

        with opened(place) as store, pytest.raises(WorkloadFailed, match=r"full.*Make room"):
            fill(store)
        assert kept
        (place / "scores.holder").unlink(missing_ok=True)
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        shutil.copy(place / FILE, elsewhere)
        with opened(elsewhere) as store:
            for index in kept:
                assert store.get("unit", tuple(index + i / 100 for i in range(20))) is not None
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def use(directory: Path, rows: Rows) -> str:
    """Use a store as a run does; return ``sound``, or what it complained of.

    A score that is found must have the right bits. One that is not found must not be
    taken for never scored without a word: it would be paid for twice.
    """
    try:
        with opened(directory) as store:
            store.durations()
            store.note("units")
            for (unit, parameters), outcome in rows.items():
                found = store.get(unit, parameters)
                assert found is not None, "a score has silently gone"
                assert pack_floats(found.scores) == pack_floats(outcome.scores)
                assert found.status == outcome.status
    except FleetError as error:
        return str(error)
    return "sound"


def damage_is_survived(directory: Path, rows: Rows, least: int) -> None:
    """Check the promises for a damaged store, of whose rows at least so many are sound."""
    before = (directory / FILE).read_bytes()
    verdict = use(directory, rows)
    assert (directory / FILE).read_bytes() == before
    assert "\n" not in verdict
    if verdict == "sound":
        return
    aside, kept, _lost = repair(directory)
    assert aside.read_bytes() == before
    assert kept >= least, verdict
    with opened(directory) as store:
        found = [store.get(unit, parameters) for unit, parameters in rows]
        assert sum(outcome is not None for outcome in found) == kept
        for outcome, expected in zip(found, rows.values(), strict=True):
            assert outcome is None or outcome.scores == expected.scores


@dataclass(frozen=True)
class Sound:
    """A store's file and what is in it."""

    content: bytes = field(repr=False)
    rows: Rows = field(repr=False)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Sound:
    directory = tmp_path_factory.mktemp("sound")
    rows = filled(directory, 60)
    return Sound((directory / FILE).read_bytes(), rows)


@given(at=st.integers(0, 10**6))
def test_store_truncated_anywhere_is_told_kept_and_repaired(
    tmp_path_factory: pytest.TempPathFactory,
    sound: Sound,
    at: int,
) -> None:
    content, rows = sound.content, sound.rows
    directory = tmp_path_factory.mktemp("truncated")
    at %= len(content)
    (directory / FILE).write_bytes(content[: max(at, 1)])
    whole = [
        outcome
        for outcome in rows.values()
        if (content.index(pack_floats(outcome.scores)) // PAGE_SIZE + 1) * PAGE_SIZE <= at
    ]
    damage_is_survived(directory, rows, len(whole))


@given(at=st.integers(0, 10**6), mask=st.integers(1, 255))
@example(at=0, mask=255)  # the magic word
@example(at=18, mask=3)  # "uses a write-ahead log", which opening it would act on
@example(at=16, mask=255)  # the page size
@example(at=59, mask=1)  # text encoding
@example(at=63, mask=8)  # our format
def test_store_any_flipped_byte_is_told_kept_and_repaired(
    tmp_path_factory: pytest.TempPathFactory,
    sound: Sound,
    at: int,
    mask: int,
) -> None:
    content, rows = sound.content, sound.rows
    directory = tmp_path_factory.mktemp("flipped")
    at %= len(content)
    (directory / FILE).write_bytes(
        content[:at] + bytes([content[at] ^ mask]) + content[at + 1 :]
    )  # fmt: skip
    damage_is_survived(directory, rows, len(rows) - ROWS_A_PAGE)


def test_store_one_flipped_bit_in_each_score_costs_that_score_only(tmp_path: Path) -> None:
    rows = filled(tmp_path / "run", 40)
    path = tmp_path / "run" / FILE
    content = path.read_bytes()
    for (unit, parameters), outcome in list(rows.items())[:8]:
        at = content.index(pack_floats(outcome.scores)) + 5
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        before = snapshot(tmp_path / "run")
        with (
            opened(tmp_path / "run") as store,
            pytest.raises(RunDirectoryError, match=r"does not match its checksum.*repair"),
        ):
            store.get(unit, parameters)
        assert snapshot(tmp_path / "run") == before
        aside, kept, lost = repair(tmp_path / "run")
        assert (kept, lost) == (len(rows) - 1, 1)
        aside.unlink()


@pytest.mark.parametrize("page", ["middle", "last"])
def test_repair_one_page_overwritten_keeps_the_rows_of_all_others(
    tmp_path: Path, page: str
) -> None:
    rows = filled(tmp_path / "run", 200)
    path = tmp_path / "run" / FILE
    content = bytearray(path.read_bytes())
    keys = list(rows)
    row = keys[100] if page == "middle" else keys[-1]
    start = bytes(content).index(pack_floats(rows[row].scores)) // PAGE_SIZE * PAGE_SIZE
    content[start : start + PAGE_SIZE] = b"\xff" * PAGE_SIZE
    path.write_bytes(content)
    assert "damaged" in use(tmp_path / "run", rows)
    _, kept, _ = repair(tmp_path / "run")
    assert kept >= len(rows) - ROWS_A_PAGE
    with opened(tmp_path / "run") as store:
        assert sum(store.get(*key) is not None for key in keys) == kept


def test_repair_keeps_notes_phases_and_every_model(tmp_path: Path) -> None:
    for model in ("m1", "m2"):
        with opened(tmp_path, model) as store:
            store.put("unit", (1.0,), an_outcome((float(ord(model[1])),)))
            store.set_note("units", model)
            store.add_phase(Phase(1, 1.0, 2.0, 2, 3, 4))
    aside, kept, lost = repair(tmp_path)
    assert (kept, lost, aside.exists()) == (2, 0, True)
    for model in ("m1", "m2"):
        with opened(tmp_path, model) as store:
            assert store.get("unit", (1.0,)) == an_outcome((float(ord(model[1])),))
            assert store.note("units") == model
    db = sqlite3.connect(tmp_path / FILE)
    assert db.execute("SELECT * FROM phase").fetchall() == [(1, 1.0, 2.0, 2, 3, 4)] * 2
    db.close()


def test_repair_twice_in_one_second_overwrites_nothing_that_was_set_aside(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    first, *_ = repair(tmp_path)
    second, *_ = repair(tmp_path)
    assert first != second
    assert first.exists()
    assert second.exists()


def test_repair_directory_without_a_store_is_refused_and_not_changed(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="there is no store"):
        repair(tmp_path)
    assert snapshot(tmp_path) == {}


# -- a full disk ----------------------------------------------------------------------


def put_all(store: Store, keys: list[tuple[str, tuple[float, ...]]]) -> None:
    for key in keys:
        store.put(*key, an_outcome())


def test_store_that_was_full_is_written_again_once_there_is_room(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages}")
        keys = [("Step1", (float(i),) * 20) for i in range(20 * ROWS_A_PAGE)]
        for _ in range(2):
            with pytest.raises(WorkloadFailed, match="database or disk is full"):
                put_all(store, keys)
        assert any(store.get(*key) for key in keys), "what there was room for is kept"
        store._db.execute("PRAGMA max_page_count = 1000")
        put_all(store, keys)
        store.add_phase(Phase(1, 0.0, 1.0, 2, len(keys), 0))
    with opened(tmp_path) as store:
        assert all(store.get(*key) == an_outcome() for key in keys)


def test_store_that_could_not_be_made_is_made_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> sqlite3.Connection:
        db = connect(path)
        db.execute("PRAGMA max_page_count = 2")
        return db

    with monkeypatch.context() as patched:
        patched.setattr("neurofleet.store.connect", full)
        with pytest.raises(WorkloadFailed, match="database or disk is full") as caught:
            opened(tmp_path)
    with opened(tmp_path) as store:
        store.put("Step1", (1.0,), an_outcome())
    assert caught.value.exit_code == 1
