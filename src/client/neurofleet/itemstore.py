"""Results of items, on disk before they count: the same command again computes what is missing.

SQLite as in ``store.py``, and for the same reasons: one writer, no write-ahead log, a
checksum in every row. A batch of results is one transaction.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from neurofleet.errors import RunDirectoryError, WorkloadFailed
from neurofleet.rundir import RunDirectory
from neurofleet.runlock import RunLock
from neurofleet.store import connect

FORMAT = 1
FILE = "items.sqlite"
SCHEMA = f"""
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE result (item BLOB PRIMARY KEY, value BLOB, host TEXT, pid INTEGER, checksum BLOB);
PRAGMA user_version = {FORMAT};
"""


class ItemStore:
    """The results in one run directory, of one function.

    Parameters
    ----------
    directory : Path
        The run directory; made if it is not there.
    about : mapping
        What the results depend on besides the items; JSON values.

    Raises
    ------
    RunDirectoryError
        The directory is in use, is not empty and holds no results, holds those of
        something else, or its file is damaged.
    """

    def __init__(self, directory: Path, about: Mapping[str, str]) -> None:
        self.path = directory / FILE
        RunDirectory(directory).create(signs=(FILE,))
        self._lock = RunLock(directory)
        self._lock.acquire()
        try:
            fresh = not self.path.exists() or self.path.stat().st_size == 0
            with self._told():
                self._db = connect(self.path)
                if fresh:
                    self._db.executescript(f"BEGIN; {SCHEMA} COMMIT;")
                    rows = [(name, json.dumps(value)) for name, value in about.items()]
                    self._db.executemany("INSERT INTO about VALUES (?,?)", rows)
                self._check(about)
        except BaseException:
            self._lock.release()
            raise

    def _check(self, about: Mapping[str, str]) -> None:
        if self._db.execute("PRAGMA integrity_check").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("its pages are not sound")
        found = dict(self._db.execute("SELECT name, value FROM about"))
        for name, value in about.items():
            if found.get(name) != json.dumps(value):
                theirs = json.loads(found.get(name, '"nothing"'))
                raise RunDirectoryError(
                    f"the run directory {str(self.path.parent)!r} has results of {name}"
                    f" {theirs}, this is {value}",
                    remedy="Name another with --run-dir; nothing was changed",
                )

    def get(self, items: Iterable[bytes]) -> dict[bytes, tuple[bytes, str, int]]:
        """Return value, host and process of the items that have a result, by item."""
        found = {}
        with self._told():
            for item in items:
                row = self._db.execute(
                    "SELECT value, host, pid, checksum FROM result WHERE item = ?", (item,)
                ).fetchone()
                if row is None:
                    continue
                if row[3] != _checksum(item, row[0]):
                    raise sqlite3.DatabaseError("a result does not match its checksum")
                found[item] = row[:3]
        return found

    def put(self, rows: Sequence[tuple[bytes, bytes, str, int]]) -> None:
        """Keep (item, value, host, process) rows; they are on disk when this returns."""
        with self._told():
            self._db.execute("BEGIN")
            self._db.executemany(
                "INSERT OR IGNORE INTO result VALUES (?,?,?,?,?)",
                [(*row, _checksum(row[0], row[1])) for row in rows],
            )
            self._db.execute("COMMIT")

    def close(self) -> None:
        """Close the file and let go of the directory; safe to call twice."""
        self._db.close()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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


def _checksum(item: bytes, value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=8, key=item[:64]).digest()
