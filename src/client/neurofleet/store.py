"""The evaluation store: every score that was ever paid for, in one SQLite file.

It is the checkpoint: the evolutionary algorithm is deterministic given its seed and
the scores, so running the same command again replays finished generations from here.

The file may lie on a shared file system, so no write-ahead log is used (it needs
shared memory). There is one writer, which holds ``scores.lock``; each score is on disk
before it counts. Each row carries a checksum, because SQLite does not notice a bit
that flips inside a value.
"""

from __future__ import annotations

import array
import contextlib
import hashlib
import json
import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from neurofleet.engine.outcome import Outcome
from neurofleet.errors import FleetError, RunDirectoryError, WorkloadFailed
from neurofleet.files import json_value
from neurofleet.runlock import RunLock

FORMAT = 1
FILE = "scores.sqlite"
#: Of the file's pages [bytes]; ``repair.py`` reads them one by one.
PAGE_SIZE = 4096
SCHEMA = f"""
CREATE TABLE context (id INTEGER PRIMARY KEY, model TEXT, versions TEXT, UNIQUE (model, versions));
CREATE TABLE score (
    context INTEGER, unit TEXT, parameters BLOB, scores BLOB, status TEXT, reason TEXT,
    started REAL, duration_s REAL, host TEXT, pid INTEGER, checksum BLOB,
    UNIQUE (context, unit, parameters)
);
CREATE TABLE phase (
    generation INTEGER, started REAL, ended REAL, engines INTEGER, simulated INTEGER, stored INTEGER
);
CREATE TABLE note (name TEXT PRIMARY KEY, value TEXT);
PRAGMA user_version = {FORMAT};
"""


@dataclass(frozen=True)
class Phase:
    """One stretch of evaluation.

    Attributes
    ----------
    generation : int
        Counted from 1; 0 is the comparison of units with whole individuals.
    started, ended : float
        By the client's clock [s since 1970].
    engines : int
        Engines that took part.
    simulated, stored : int
        Units that were simulated, and units found in the store.
    """

    generation: int
    started: float
    ended: float
    engines: int
    simulated: int
    stored: int


class Store:
    """The scores of one run directory, for one model and one set of versions.

    Parameters
    ----------
    directory : Path
        The run directory; it exists.
    model : str
        The model's hash.
    versions : mapping
        Versions that a score depends on.

    Raises
    ------
    RunDirectoryError
        Another process holds the store, or the file is damaged or of another format.
    """

    def __init__(self, directory: Path, model: str, versions: Mapping[str, str]) -> None:
        self.path = directory / FILE
        self._lock = RunLock(directory)
        self._lock.acquire()
        try:
            fresh = not self.path.exists() or self.path.stat().st_size == 0
            if not fresh:
                check_file(self.path)
            with told(self.path):
                self._db = connect(self.path)
                if fresh:
                    self._db.executescript(f"BEGIN; {SCHEMA} COMMIT;")
                self._context = _context_of(self._db, model, versions)
        except BaseException:
            self._end()
            raise

    def get(self, unit: str, parameters: Sequence[float]) -> Outcome | None:
        """Return what was scored, ``None`` if it was not.

        Raises
        ------
        RunDirectoryError
            The row does not match its checksum.
        """
        with told(self.path):
            row = self._db.execute(
                "SELECT unit, parameters, scores, status, reason, started, duration_s, host, pid,"
                " checksum FROM score"
                " WHERE context = ? AND unit = ? AND parameters = ?",
                (self._context, unit, pack_floats(parameters)),
            ).fetchone()
        if row is None:
            return None
        if not is_sound(row):
            raise damaged(self.path, f"the score of unit {unit!r} does not match its checksum")
        scores, status, reason, started, duration_s, host, pid = row[2:-1]
        return Outcome(status, unpack_floats(scores), reason, started, duration_s, host, pid)

    def put(self, unit: str, parameters: Sequence[float], outcome: Outcome) -> None:
        """Keep a score; it is on disk when this returns. The first one of a key stays."""
        key, scores = pack_floats(parameters), pack_floats(outcome.scores)
        with told(self.path):
            self._db.execute(
                "INSERT OR IGNORE INTO score VALUES (?,?,?,?,?,?,?,?,?,?,?)",
                (
                    self._context,
                    unit,
                    key,
                    scores,
                    outcome.status,
                    outcome.reason,
                    outcome.started,
                    outcome.duration_s,
                    outcome.host,
                    outcome.pid,
                    _checksum(unit, key, scores, outcome.status),
                ),
            )

    def durations(self) -> dict[str, tuple[float, float]]:
        """Return, for each unit that has been simulated, its mean and longest duration [s]."""
        with told(self.path):
            rows = self._db.execute(
                "SELECT unit, avg(duration_s), max(duration_s) FROM score"
                " WHERE context = ? AND status IN ('ok', 'raised')"
                " AND typeof(duration_s) = 'real' GROUP BY unit",
                (self._context,),
            ).fetchall()
        return {unit: (mean, longest) for unit, mean, longest in rows}

    def add_phase(self, phase: Phase) -> None:
        """Keep a record of a stretch of evaluation."""
        with told(self.path):
            self._db.execute(
                "INSERT INTO phase VALUES (?,?,?,?,?,?)",
                (
                    phase.generation,
                    phase.started,
                    phase.ended,
                    phase.engines,
                    phase.simulated,
                    phase.stored,
                ),
            )

    def note(self, name: str) -> str | None:
        """Return a remark of this model and these versions."""
        with told(self.path):
            row = self._db.execute(
                "SELECT value FROM note WHERE name = ?", (f"{self._context}:{name}",)
            ).fetchone()
        return None if row is None else str(row[0])

    def set_note(self, name: str, value: str) -> None:
        """Keep a remark of this model and these versions."""
        with told(self.path):
            self._db.execute(
                "INSERT OR REPLACE INTO note VALUES (?,?)", (f"{self._context}:{name}", value)
            )

    def close(self) -> None:
        """Close the file and let go of the lock; safe to call twice."""
        self._end()

    def _end(self) -> None:
        db: sqlite3.Connection | None = getattr(self, "_db", None)
        if db is not None:
            db.close()  # what a failed statement left open is rolled back
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _context_of(db: sqlite3.Connection, model: str, versions: Mapping[str, str]) -> int:
    """Return the number under which the scores of a model and versions are kept.

    An earlier version of this program recorded fewer versions: its scores go on, unless a
    version that it did record is another.
    """
    key = (model, json.dumps(dict(versions), sort_keys=True))
    exact = "SELECT id FROM context WHERE model = ? AND versions = ?"
    if db.execute(exact, key).fetchone() is None:
        older = db.execute("SELECT id, versions FROM context WHERE model = ?", key[:1])
        for number, text in older.fetchall():
            with contextlib.suppress(ValueError, AttributeError):
                recorded = json_value(text)
                if recorded and recorded.items() <= dict(versions).items():
                    return int(number)
    db.execute("INSERT OR IGNORE INTO context (model, versions) VALUES (?,?)", key)
    return int(db.execute(exact, key).fetchone()[0])


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn SQLite's and the file system's words about a store into ours."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise WorkloadFailed(
            f"the store {str(path)!r} cannot be used ({error})",
            remedy="Make room or mend the permissions and run the same command again;"
            " what was scored is kept",
        ) from error
    except sqlite3.DatabaseError as error:
        raise damaged(path, str(error)) from error


def pack_floats(values: Sequence[float]) -> bytes:
    """Return float64 values bit for bit, little-endian."""
    packed = array.array("d", values)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_floats(data: bytes) -> tuple[float, ...]:
    """Undo ``pack_floats``."""
    values = array.array("d", data)
    if sys.byteorder == "big":
        values.byteswap()
    return tuple(values)


def check_file(path: Path) -> None:
    """Raise ``RunDirectoryError`` unless the file is a sound store of this format."""
    try:
        db = connect(path)
        try:
            verdict = db.execute("PRAGMA integrity_check").fetchone()[0]
            version = db.execute("PRAGMA user_version").fetchone()[0]
            tables = _tables(db)
        finally:
            db.close()
    except sqlite3.OperationalError as error:
        raise RunDirectoryError(
            f"the store {str(path)!r} cannot be opened ({error})",
            remedy="Make room or mend the permissions and run the same command again",
        ) from error
    except sqlite3.DatabaseError as error:
        raise damaged(path, str(error)) from error
    except UnicodeDecodeError as error:  # of SQLite's own words about the damage
        raise damaged(path, "its schema is not text") from error
    if verdict != "ok":
        raise damaged(path, verdict)
    if version != FORMAT:
        raise RunDirectoryError(
            f"the store {str(path)!r} has format {version}, this program writes {FORMAT}",
            remedy="Use the version of neurofleet that wrote it, or another --run-dir",
        )
    with contextlib.closing(sqlite3.connect(":memory:")) as fresh:
        fresh.executescript(SCHEMA)
        if tables != _tables(fresh):
            raise damaged(path, "its tables are not those of a store")


def _tables(db: sqlite3.Connection) -> list[str]:
    rows = db.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name")
    return [row[0] for row in rows]


def connect(path: Path) -> sqlite3.Connection:
    """Open a store's file, without a look at what is in it."""
    db = sqlite3.connect(path, isolation_level=None, timeout=30)
    db.text_factory = lambda text: text.decode(errors="replace")
    db.execute(f"PRAGMA page_size = {PAGE_SIZE}")
    db.execute("PRAGMA journal_mode = DELETE")
    db.execute("PRAGMA synchronous = FULL")
    return db


def is_sound(row: Sequence[object]) -> bool:
    """Tell whether a row of scores, without its context, is what was once written."""
    kinds = (str, bytes, bytes, str, str, float, float, str, int, bytes)
    if not all(isinstance(value, kind) for value, kind in zip(row, kinds, strict=True)):
        return False
    unit, parameters, scores, status = row[:4]
    return row[-1] == _checksum(unit, parameters, scores, status)  # type: ignore[arg-type]


def _checksum(unit: str, parameters: bytes, scores: bytes, status: str) -> bytes:
    parts = (unit.encode(), parameters, scores, status.encode())
    text = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    return hashlib.blake2b(text, digest_size=8).digest()


def damaged(path: Path, why: str) -> FleetError:
    """Return the error of a store that cannot be read."""
    return RunDirectoryError(
        f"the store {str(path)!r} is damaged ({why}); it was left as it is",
        remedy=f"neurofleet repair {str(path.parent)!r} keeps every sound score and sets the"
        " damaged file aside",
    )
