"""Stores of scores and of results that were damaged, replaced or laid out."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from neurofleet.errors import FleetError, RunDirectoryError
from neurofleet.itemstore import FILE as ITEMS
from neurofleet.itemstore import ItemStore, Kept
from neurofleet.rundir import RunDirectory
from neurofleet.store import FILE
from unit.hostile.inputs import (
    DAMAGE,
    NO_FILES,
    Damage,
    assert_documented,
    assert_in_words,
    command,
    hostile,
    scratch,
)
from unit.support import snapshot
from unit.test_store import Rows, damage_is_survived, filled, opened, use

pytestmark = pytest.mark.timeout(180)

ABOUT = {"function": "m:f", "code": "0123"}
#: How a journal of SQLite begins.
JOURNAL = b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" * 9
RESULTS = {bytes([n]) * 20: Kept(b"value %d" % n, "node1", 4711) for n in range(60)}


class Sound:
    """A store's file and what is in it; too long to be shown."""

    def __init__(self, content: bytes, rows: Rows) -> None:
        self.content, self.rows = content, rows

    def __repr__(self) -> str:
        return f"Sound({len(self.rows)} rows)"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Sound:
    directory = tmp_path_factory.mktemp("store")
    rows = filled(directory, 40)
    return Sound((directory / FILE).read_bytes(), rows)


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("items")
    with ItemStore(directory, ABOUT) as found:
        found.put(RESULTS.items())
    return (directory / ITEMS).read_bytes()


def another_database(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE score (context, unit, parameters, scores)")
        db.execute("PRAGMA user_version = 1")
    db.close()


@given(damage=DAMAGE)
@hostile("store", 160)
def test_store_damaged_gives_right_scores_or_one_line_and_is_kept(
    store: Sound, damage: Damage
) -> None:
    content, rows = store.content, store.rows
    with scratch() as directory:
        (directory / FILE).write_bytes(damage(content))  # type: ignore[operator]
        if (directory / FILE).stat().st_size == 0:
            return  # as a run leaves it that was killed before its first score
        damage_is_survived(directory, rows, least=0)


@given(damage=DAMAGE, verb=st.sampled_from(["repair", "report"]))
@hostile("store, by command", 40)
def test_command_on_a_damaged_store_ends_as_documented(
    store: Sound, damage: Damage, verb: str
) -> None:
    with scratch() as directory:
        damaged = damage(store.content)
        (directory / FILE).write_bytes(damaged)
        assert_documented(command(verb, directory, cwd=directory))
        kept = [path.read_bytes() for path in directory.glob(f"{FILE}*")]
        assert damaged in kept


@given(journal=st.one_of(st.binary(max_size=600), DAMAGE.map(lambda d: d(JOURNAL))))
@hostile("journal", 40)
def test_store_with_rubbish_for_a_journal_is_right_or_told(store: Sound, journal: bytes) -> None:
    content, rows = store.content, store.rows
    with scratch() as directory:
        (directory / FILE).write_bytes(content)
        (directory / f"{FILE}-journal").write_bytes(journal)
        assert "\n" not in use(directory, rows)
        assert (directory / FILE).read_bytes() == content


@given(damage=DAMAGE)
@hostile("results", 100)
def test_results_damaged_are_right_or_told_and_kept(items: bytes, damage: Damage) -> None:
    with scratch() as directory:
        damaged = damage(items)
        (directory / ITEMS).write_bytes(damaged)
        if not damaged:
            return
        try:
            with ItemStore(directory, ABOUT) as found:
                got = found.get(RESULTS)
        except FleetError as error:
            assert_in_words(error)
        else:
            assert {item: one.value for item, one in got.items()} == {
                item: one.value for item, one in RESULTS.items()
            }
        assert (directory / ITEMS).read_bytes() == damaged


#: What may stand where a run's file is looked for.
PLACES: dict[str, Callable[[Path], object]] = {
    **NO_FILES,
    "link to a file": lambda path: path.symlink_to(path.parent.parent / "thesis"),
    "link to nothing": lambda path: path.symlink_to(path.parent.parent / "none"),
}


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize(
    "name",
    [FILE, ITEMS, f"{FILE}-journal", "scores.lock", "scores.holder", "neurofleet-run.json"],
)
def test_what_is_no_plain_file_is_refused_and_nothing_is_changed(
    tmp_path: Path, kind: str, name: str
) -> None:
    (tmp_path / "thesis").write_text("years of work")
    run = tmp_path / "run"
    run.mkdir()
    PLACES[kind](run / name)
    (run / ".mark").touch()
    before = snapshot_of_links(tmp_path)
    with pytest.raises(RunDirectoryError, match="is not a plain file"):
        RunDirectory(run).create()
    assert_documented(command("repair", run, cwd=tmp_path))
    assert_documented(command("report", run, cwd=tmp_path))
    assert snapshot_of_links(tmp_path) == before
    assert (tmp_path / "thesis").read_text() == "years of work"


def snapshot_of_links(directory: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mode for path in directory.rglob("*")}


def test_another_database_is_refused_and_kept(tmp_path: Path) -> None:
    another_database(tmp_path / FILE)
    before = snapshot(tmp_path)
    with pytest.raises(RunDirectoryError, match="its tables are not those of a store"):
        opened(tmp_path)
    assert snapshot(tmp_path) | before == snapshot(tmp_path)
    shutil.move(tmp_path / FILE, tmp_path / ITEMS)
    content = (tmp_path / ITEMS).read_bytes()
    with pytest.raises(FleetError):
        ItemStore(tmp_path, ABOUT)
    assert (tmp_path / ITEMS).read_bytes() == content


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away takes root")
@pytest.mark.parametrize("name", [FILE, ITEMS, "scores.lock", "neurofleet-run.json"])
def test_run_directory_of_another_user_is_refused_and_not_changed(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).touch()
    os.chown(tmp_path / name, 12345, 12345)
    before = snapshot(tmp_path)
    for refused in (RunDirectory(tmp_path).create, lambda: ItemStore(tmp_path, ABOUT)):
        with pytest.raises(RunDirectoryError, match=r"is another user's: its .* user 12345"):
            refused()
    done = assert_documented(command("repair", tmp_path, cwd=tmp_path))
    assert done.code == 2
    assert snapshot(tmp_path) == before


@given(content=st.binary(max_size=2000))
@example(content=b"\xff\xfe\n\n\x1b[2J")
@hostile("holder", 40)
def test_holder_that_is_rubbish_is_told_in_one_line(content: bytes) -> None:
    with scratch() as directory, opened(directory):
        (directory / "scores.holder").write_bytes(content)
        with pytest.raises(RunDirectoryError, match="is in use by") as caught:
            opened(directory)
        assert str(caught.value).isprintable()
