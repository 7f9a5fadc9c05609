"""Results of items on disk: of which code they are, what failed, and what is refused."""

from __future__ import annotations

import json
import pickle
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from neurofleet.errors import RunDirectoryError, WorkloadFailed
from neurofleet.itemcode import Code, Remedies
from neurofleet.itemstore import Failure, ItemStore, Kept, source_of

ABOUT = {"function": "mine:noted", "seed": "0"}
CODE = Code({"mine": "aa", "helper": "bb"}, {"numpy": "2.1"})
ONE = (b"one", Kept(b"value", "host", 7))
REMEDIES = Remedies("--run-dir", "--keep-results keeps them")


def filled(directory: Path, code: Code = CODE) -> None:
    with ItemStore(directory, ABOUT, code) as store:
        store.put([ONE])


def old_store(directory: Path, rows: int) -> None:
    """Make a store as the first version made it."""
    directory.mkdir()
    db = sqlite3.connect(directory / "items.sqlite")
    db.executescript(
        "CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT);"
        "CREATE TABLE result (item BLOB PRIMARY KEY, value BLOB, host TEXT, pid INTEGER,"
        " checksum BLOB); PRAGMA user_version = 1;"
    )
    for name, value in {"function": "mine:noted", "code": "0123456789ab"}.items():
        db.execute("INSERT INTO about VALUES (?,?)", (name, json.dumps(value)))
    from neurofleet.itemstore import _checksum

    for number in range(rows):
        key, value = bytes([number]), pickle.dumps(str(number))
        db.execute(
            "INSERT INTO result VALUES (?,?,?,?,?)", (key, value, "host", 1, _checksum(key, value))
        )
    db.commit()
    db.close()


def test_store_with_the_same_code_goes_on(tmp_path: Path) -> None:
    filled(tmp_path / "run")
    with ItemStore(tmp_path / "run", ABOUT, CODE) as store:
        assert store.get({b"one", b"two"}) == {b"one": Kept(b"value", "host", 7, code=1)}
        assert (store.code, store.changed) == (1, "")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (Code({"mine": "aa", "helper": "cc"}, CODE.packages), "(helper has changed)"),
        (Code({"mine": "aa"}, CODE.packages), "(helper is gone)"),
        (Code({**(CODE.modules or {}), "late": "dd"}, CODE.packages), "(late is new)"),
        (Code(CODE.modules, {"numpy": "2.2"}), "other versions (numpy 2.1, this is 2.2)"),
        (Code(CODE.modules, {}), "other versions (numpy 2.1, this is none)"),
    ],
    ids=["changed", "gone", "new", "version", "without"],
)
def test_store_with_other_code_names_what_changed_and_the_remedy(
    tmp_path: Path, code: Code, says: str
) -> None:
    filled(tmp_path / "run")
    before = (tmp_path / "run/items.sqlite").read_bytes()
    with pytest.raises(RunDirectoryError) as caught:
        ItemStore(tmp_path / "run", ABOUT, code, remedies=REMEDIES)
    assert says in caught.value.what
    assert "--keep-results keeps them" in caught.value.remedy
    assert "--run-dir" in caught.value.remedy
    assert (tmp_path / "run/items.sqlite").read_bytes() == before
    with ItemStore(tmp_path / "run", ABOUT, CODE):
        pass  # the directory was let go of


def test_store_that_keeps_results_of_other_code_tells_which_are_of_which(tmp_path: Path) -> None:
    filled(tmp_path / "run")
    new = Code({"mine": "aa", "helper": "cc"}, CODE.packages)
    with ItemStore(tmp_path / "run", ABOUT, new, keep=True) as store:
        assert "helper has changed" in store.changed
        store.put([(b"two", Kept(b"other", "host", 7))])
        codes = {item: kept.code for item, kept in store.get({b"one", b"two"}).items()}
        assert codes == {b"one": 1, b"two": 2}
        assert [(n, code, count) for n, _, code, count in store.codes()] == [
            (1, CODE, 1),
            (2, new, 1),
        ]
    with ItemStore(tmp_path / "run", ABOUT, new) as store:
        assert store.changed == ""  # it was decided
    with pytest.raises(RunDirectoryError, match="helper has changed"):
        ItemStore(tmp_path / "run", ABOUT, CODE)


def test_store_of_another_python_is_refused_unless_it_was_not_noted(tmp_path: Path) -> None:
    noted = Code(CODE.modules, {**(CODE.packages or {}), "Python": "3.11"})
    filled(tmp_path / "run")  # by a version that noted none
    with ItemStore(tmp_path / "run", ABOUT, noted) as store:
        assert store.changed == ""
        store.put([(b"two", Kept(b"value", "host", 7))])
    other = Code(CODE.modules, {**(CODE.packages or {}), "Python": "3.12"})
    with pytest.raises(RunDirectoryError, match=r"Python 3\.11, this is 3\.12"):
        ItemStore(tmp_path / "run", ABOUT, other)


def test_store_without_results_takes_any_code(tmp_path: Path) -> None:
    with ItemStore(tmp_path / "run", ABOUT, CODE) as store:
        store.put([], [(b"one", Failure("raised", "why", "", "host", 7))])
    new = Code({"mine": "zz"}, CODE.packages)
    with ItemStore(tmp_path / "run", ABOUT, new) as store:
        assert [code for _, _, code, _ in store.codes()] == [new]


def test_store_of_another_seed_is_refused_by_name_whatever_is_kept(tmp_path: Path) -> None:
    filled(tmp_path / "run")
    with pytest.raises(RunDirectoryError, match="results of seed 0, this is 7"):
        ItemStore(tmp_path / "run", {**ABOUT, "seed": "7"}, CODE, keep=True)


def test_store_of_an_earlier_version_is_refused_in_one_line_or_kept(tmp_path: Path) -> None:
    old_store(tmp_path / "run", rows=2)
    assert source_of(tmp_path / "run") == ""
    before = (tmp_path / "run/items.sqlite").read_bytes()
    with pytest.raises(RunDirectoryError, match="an earlier version of neurofleet"):
        ItemStore(tmp_path / "run", ABOUT, CODE, remedies=REMEDIES)
    assert (tmp_path / "run/items.sqlite").read_bytes() == before
    with ItemStore(tmp_path / "run", ABOUT, CODE, keep=True) as store:
        assert pickle.loads(store.get({b"\1"})[b"\1"].value) == "1"
        store.put([ONE])
        assert [(number, count) for number, _, _, count in store.codes()] == [(1, 2), (2, 1)]
    with ItemStore(tmp_path / "run", ABOUT, CODE) as store:
        assert len(store.get({b"\0", b"\1", b"one"})) == 3


def test_store_of_an_earlier_version_without_results_is_taken(tmp_path: Path) -> None:
    old_store(tmp_path / "run", rows=0)
    filled(tmp_path / "run")


def test_store_of_a_later_version_is_refused_by_name(tmp_path: Path) -> None:
    filled(tmp_path / "run")
    db = sqlite3.connect(tmp_path / "run/items.sqlite")
    db.execute("PRAGMA user_version = 9")
    db.close()
    with pytest.raises(RunDirectoryError, match=r"another version of neurofleet \(format 9"):
        ItemStore(tmp_path / "run", ABOUT, CODE)


def test_failure_is_kept_until_there_is_a_result(tmp_path: Path) -> None:
    failure = Failure("raised", "ValueError: no", "the traceback", "host", 7, code=1)
    with ItemStore(tmp_path / "run", ABOUT, CODE) as store:
        store.put([], [(b"one", failure)])
    with ItemStore(tmp_path / "run", ABOUT, CODE) as store:
        assert store.failures({b"one", b"two"}) == {b"one": failure}
        store.put([ONE], forget=[b"one"])
        assert store.failures({b"one"}) == {}


class FullAtCommit:
    """A connection that finds no room at the end of its first transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.full = True

    def execute(self, statement: str, *more: Any) -> Any:
        if statement == "COMMIT" and self.full:
            self.full = False
            raise sqlite3.OperationalError("database or disk is full")
        return self._db.execute(statement, *more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)


def test_store_whose_commit_fails_takes_results_when_there_is_room_again(tmp_path: Path) -> None:
    with ItemStore(tmp_path / "run", ABOUT, CODE) as store:
        store._db = FullAtCommit(store._db)  # type: ignore[assignment]
        with pytest.raises(WorkloadFailed, match="disk is full"):
            store.put([ONE])
        assert store.get({b"one"}) == {}
        store.put([ONE])
        assert store.get({b"one"})
