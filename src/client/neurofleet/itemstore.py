"""Results of items, on disk before they count: the same command again computes what is missing.

SQLite as in ``store.py``, and for the same reasons: one writer, no write-ahead log, a
checksum in every row. A batch of results is one transaction. What code and which versions of
packages a result is of is kept beside it (``itemcode.py``).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import quote

from neurofleet.errors import RunDirectoryError, WorkloadFailed
from neurofleet.itemcode import Code, Remedies, refusal
from neurofleet.rundir import RunDirectory
from neurofleet.runlock import RunLock
from neurofleet.store import connect

#: 1 had neither code nor failures.
FORMAT = 2
FILE = "items.sqlite"
#: Where the items come from, among what results do not depend on.
SOURCE = "items file"
_CODE = "CREATE TABLE code (number INTEGER PRIMARY KEY, since REAL, modules TEXT, packages TEXT);"
_FAILURE = """
CREATE TABLE failure (
    item BLOB PRIMARY KEY, status TEXT, reason TEXT, traceback TEXT, host TEXT, pid INTEGER,
    code INTEGER, files TEXT
);
"""
SCHEMA = f"""
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE result (
    item BLOB PRIMARY KEY, value BLOB, host TEXT, pid INTEGER, checksum BLOB,
    code INTEGER, took_s REAL, files TEXT, left_behind TEXT
);
{_CODE}
{_FAILURE}
PRAGMA user_version = {FORMAT};
"""
#: From 1 to 2: what is there is of code that nobody noted, which is number 1.
UPGRADE = f"""
ALTER TABLE result ADD COLUMN code INTEGER DEFAULT 1;
ALTER TABLE result ADD COLUMN took_s REAL DEFAULT 0;
ALTER TABLE result ADD COLUMN files TEXT DEFAULT '';
ALTER TABLE result ADD COLUMN left_behind TEXT DEFAULT '[]';
{_CODE}
INSERT INTO code VALUES (1, 0, 'null', 'null');
{_FAILURE}
PRAGMA user_version = {FORMAT};
"""


@dataclass(frozen=True)
class Kept:
    """A result.

    Attributes
    ----------
    value : bytes
        Pickled.
    host : str
    pid : int
        Of the engine that computed it.
    code : int
        Of which code it is, by the number in ``ItemStore.codes``.
    took_s : float
        At most so long [s].
    files : str
        Where what it wrote is, below ``files/``; empty if nowhere.
    left_behind : tuple of str
        What it wrote that was not brought back.
    """

    value: bytes
    host: str
    pid: int
    code: int = 0
    took_s: float = 0.0
    files: str = ""
    left_behind: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """How an item failed, as ``engine.job_content.Ended`` tells it."""

    status: str
    reason: str
    traceback: str
    host: str
    pid: int
    code: int = 0
    files: str = ""


class ItemStore:
    """The results in one run directory, of one function.

    Parameters
    ----------
    directory : Path
        The run directory; made if it is not there.
    about : mapping
        What the results depend on besides items and code; JSON values.
    code : Code
        Of the function, and the versions that it uses.
    keep : bool
        Whether to go on when the results that are there are of other code or versions.
    remedies : Remedies
        What a person can do, in the words of whoever calls.

    Raises
    ------
    RunDirectoryError
        The directory is in use, is not empty and holds no results, holds those of
        something else or of other code, or its file is damaged.
    """

    def __init__(
        self,
        directory: Path,
        about: Mapping[str, str],
        code: Code | None = None,
        *,
        keep: bool = False,
        remedies: Remedies | None = None,
    ) -> None:
        self.path = directory / FILE
        #: Which of ``codes`` new results are of.
        self.code = 1
        #: What has changed since the results that are there, if they were kept nevertheless.
        self.changed = ""
        self._remedies = remedies or Remedies()
        RunDirectory(directory).create(signs=(FILE,))
        self._lock = RunLock(directory)
        self._lock.acquire()
        try:
            fresh = not self.path.exists() or self.path.stat().st_size == 0
            with self._told():
                self._db = connect(self.path)
                if fresh:
                    self._db.executescript(f"BEGIN; {SCHEMA} COMMIT;")
                    with self._transaction():
                        self._note_about(about)
                self._check(about)
                self._check_code(about, code or Code(), keep)
        except BaseException:
            with contextlib.suppress(AttributeError, sqlite3.Error):
                self._db.close()
            self._lock.release()
            raise

    def _note_about(self, about: Mapping[str, str]) -> None:
        rows = [(name, json.dumps(value)) for name, value in about.items()]
        self._db.executemany("INSERT OR REPLACE INTO about VALUES (?,?)", rows)

    def _check(self, about: Mapping[str, str]) -> None:
        if self._db.execute("PRAGMA integrity_check").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("its pages are not sound")
        found = dict(self._db.execute("SELECT name, value FROM about"))
        old = self._format() == 1
        for name, value in about.items():
            if name not in found and old:
                continue  # it was not noted then
            if found.get(name) != json.dumps(value):
                theirs = json.loads(found.get(name, '"nothing"'))
                raise RunDirectoryError(
                    f"the run directory {str(self.path.parent)!r} has results of {name}"
                    f" {theirs}, this is {value}",
                    remedy=f"Name another with {self._remedies.directory}; nothing was changed",
                )

    def _format(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _check_code(self, about: Mapping[str, str], code: Code, keep: bool) -> None:
        """Go on with the code that is noted, note another one, or refuse it."""
        found = self._format()
        where = f"the run directory {str(self.path.parent)!r}"
        if found not in (1, FORMAT):
            raise RunDirectoryError(
                f"{where} is of another version of neurofleet (format {found}, this is {FORMAT})",
                remedy=f"Use the version that made it, or another {self._remedies.directory}",
            )
        results = self._db.execute("SELECT count(*) FROM result").fetchone()[0]
        if found == 1:
            if results and not keep:
                raise refusal(
                    where, "an earlier version of neurofleet, which did not note all of the code"
                    " and no versions of packages", self._remedies
                )  # fmt: skip
            with self._transaction():
                for statement in filter(str.strip, UPGRADE.split(";")):
                    self._db.execute(statement)
                self._note_about(about)
        last = self._db.execute(
            "SELECT number, modules, packages FROM code ORDER BY number DESC LIMIT 1"
        ).fetchone()
        noted = None if last is None else Code.loads(last[1], last[2])
        if noted == code:
            self.code = last[0]
            return
        if noted is not None and results:
            changed = code.changes_since(noted)
            if changed and not keep:
                raise refusal(where, changed, self._remedies)
            self.changed = changed
        used = (
            last is not None
            and self._db.execute(
                "SELECT count(*) FROM result WHERE code = ?", (last[0],)
            ).fetchone()[0]
        )
        self.code = 1 if last is None else last[0] + bool(used)
        with self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO code VALUES (?,?,?,?)",
                (self.code, time.time(), *code.dumps()),
            )

    def note(self, name: str, value: str) -> None:
        """Take note of something that results do not depend on."""
        with self._told(), self._transaction():
            self._note_about({name: value})

    def codes(self) -> list[tuple[int, float, Code, int]]:
        """Return number, time [s since 1970], code and number of results of every code."""
        with self._told():
            rows = self._db.execute(
                "SELECT number, since, modules, packages,"
                " (SELECT count(*) FROM result WHERE result.code = code.number)"
                " FROM code ORDER BY number"
            ).fetchall()
            return [(row[0], row[1], Code.loads(row[2], row[3]), row[4]) for row in rows]

    def get(self, items: Collection[bytes]) -> dict[bytes, Kept]:
        """Return the results of those items that have one."""
        found = {}
        with self._told():
            for item, value, host, pid, checksum, code, took_s, files, left in self._db.execute(
                "SELECT item, value, host, pid, checksum, code, took_s, files, left_behind"
                " FROM result"
            ):
                if item not in items:
                    continue
                if checksum != _checksum(item, value):
                    raise sqlite3.DatabaseError("a result does not match its checksum")
                left_behind = tuple(json.loads(left))
                found[item] = Kept(value, host, pid, code, took_s, files, left_behind)
        return found

    def failures(self, items: Collection[bytes]) -> dict[bytes, Failure]:
        """Return how those items failed that have failed, and have no result since."""
        with self._told():
            rows = self._db.execute(
                "SELECT item, status, reason, traceback, host, pid, code, files FROM failure"
            )
            return {item: Failure(*row) for item, *row in rows if item in items}

    def longest_s(self) -> float:
        """Return how long the longest took whose result is here [s]; 0 is not known."""
        with self._told():
            return float(self._db.execute("SELECT max(took_s) FROM result").fetchone()[0] or 0.0)

    def put(
        self,
        results: Iterable[tuple[bytes, Kept]],
        failures: Iterable[tuple[bytes, Failure]] = (),
        forget: Iterable[bytes] = (),
    ) -> None:
        """Keep what has come, by item; it is on disk when this returns.

        Parameters
        ----------
        results, failures : iterable of tuple
            The ``code`` in them is set here.
        forget : iterable of bytes
            Items that have failed before, and have not now.
        """
        with self._told(), self._transaction():
            self._db.executemany(
                "INSERT OR IGNORE INTO result (item, value, host, pid, checksum, code, took_s,"
                " files, left_behind) VALUES (?,?,?,?,?,?,?,?,?)",
                [
                    (
                        *(item, one.value, one.host, one.pid, _checksum(item, one.value)),
                        *(self.code, one.took_s, one.files, json.dumps(one.left_behind)),
                    )
                    for item, one in results
                ],
            )
            self._db.executemany(
                "INSERT OR REPLACE INTO failure VALUES (?,?,?,?,?,?,?,?)",
                [
                    (
                        *(item, one.status, one.reason, one.traceback, one.host, one.pid),
                        *(self.code, one.files),
                    )
                    for item, one in failures
                ],
            )
            self._db.executemany("DELETE FROM failure WHERE item = ?", [(i,) for i in forget])

    def close(self) -> None:
        """Close the file and let go of the directory; safe to call twice."""
        self._db.close()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Have all of what is inside on disk, or nothing; also if it is the end that fails."""
        self._db.execute("BEGIN")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise WorkloadFailed(
                f"the results {str(self.path)!r} cannot be used ({error})",
                remedy="Make room or mend the permissions and run the same command again;"
                " what was computed is kept",
            ) from error
        except (sqlite3.DatabaseError, TypeError, ValueError) as error:
            raise RunDirectoryError(
                f"the results {str(self.path)!r} are damaged ({error}); they were left as they are",
                remedy=f"Rename that file to {FILE}.damaged and run the same command again",
            ) from error


def source_of(directory: Path) -> str | None:
    """Return where the items of a run directory come from, without a change.

    Returns
    -------
    str or None
        Empty if that is not noted there, as by earlier versions; ``None`` if there are no
        results.
    """
    path = directory / FILE
    if not path.is_file():
        return None
    with contextlib.suppress(sqlite3.Error, ValueError):
        url = f"file:{quote(str(path))}?mode=ro"
        with contextlib.closing(sqlite3.connect(url, uri=True)) as db:
            row = db.execute("SELECT value FROM about WHERE name = ?", (SOURCE,)).fetchone()
        return "" if row is None else str(json.loads(row[0]))
    return None


def _checksum(item: bytes, value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=8, key=item[:64]).digest()
