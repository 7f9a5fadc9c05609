"""Get every sound score out of a damaged store.

SQLite reads a table from its root, so one damaged page can hide all that is below it.
Here each page is read by itself instead (file format: https://www.sqlite.org/fileformat2.html,
sections 1.5, 1.6 and 2.1), and the checksum in each row tells which ones are sound.
"""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import struct
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import filelock

from neurofleet.errors import RunDirectoryError, WorkloadFailed
from neurofleet.rundir import RunDirectory
from neurofleet.store import FILE, PAGE_SIZE, SCHEMA, connect, is_sound

#: Kinds of pages that hold records.
_TABLE_LEAF, _INDEX_LEAF = 0x0D, 0x0A
#: Sizes of SQLite's integers by their serial type [bytes].
_INTEGERS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
#: Our tables are told apart by their number of columns.
_CONTEXT, _SCORE, _PHASE, _NOTE = 3, 11, 6, 2
#: Where a score's row names the machine.
_HOST = 8


def repair(directory: Path, without_hosts: Collection[str] = ()) -> tuple[Path, int, int]:
    """Set a damaged store aside and keep every row that is sound.

    Parameters
    ----------
    directory : Path
        The run directory.
    without_hosts : collection of str
        Machines that scored wrongly; what they scored is not sound.

    Returns
    -------
    aside : Path
        The damaged file, as it was.
    kept, lost : int
        Scores carried over, and scores read but not sound; what cannot be read at all
        is not counted.

    Raises
    ------
    RunDirectoryError
        There is no store, it is another user's, or another process holds it.
    WorkloadFailed
        There is no room for the repaired one; nothing was changed.
    """
    path = directory / FILE
    RunDirectory(directory).refuse_foreign()
    if not path.exists():
        raise RunDirectoryError(
            f"there is no store in {str(directory)!r}", remedy="Name a run directory"
        )
    fresh = path.with_name(f".{FILE}.repaired")
    try:
        with filelock.FileLock(directory / "scores.lock", timeout=0):
            fresh.unlink(missing_ok=True)
            with contextlib.closing(connect(fresh)) as new:
                new.executescript(f"BEGIN; {SCHEMA} COMMIT; BEGIN;")
                kept, lost = _salvage(path.read_bytes(), new, without_hosts)
                new.execute("COMMIT")
            aside = _free_name(path)
            path.rename(aside)
            journal = path.with_name(f"{FILE}-journal")
            if journal.exists():  # it belongs to the damaged file
                journal.rename(aside.with_name(f"{aside.name}-journal"))
            fresh.rename(path)
    except filelock.Timeout as error:
        raise RunDirectoryError(
            f"the run directory {str(directory)!r} is in use by another process",
            remedy="Wait for it or end it",
        ) from error
    except (sqlite3.OperationalError, OSError) as error:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise WorkloadFailed(
            f"the store in {str(directory)!r} cannot be repaired there ({error})",
            remedy="Make room or mend the permissions, or repair a copy of the directory",
        ) from error
    return aside, kept, lost


def _free_name(path: Path) -> Path:
    stamp = f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (path.with_name(stamp + (f"-{n}" if n else "")) for n in itertools.count())
    return next(name for name in names if not name.exists())


def _salvage(
    content: bytes, new: sqlite3.Connection, without_hosts: Collection[str]
) -> tuple[int, int]:
    """Put the sound rows of a store's file into a new one; return how many, and how many not."""
    found: dict[int, list[tuple[int, list[Any]]]] = {}
    contexts: dict[int, set[tuple[str, str]]] = {}
    for kind, rowid, row in _records(content):
        if kind == _TABLE_LEAF:
            found.setdefault(len(row), []).append((rowid, row))
        elif len(row) == _CONTEXT and isinstance(row[2], int):
            contexts.setdefault(row[2], set()).add((row[0], row[1]))
    for rowid, (_, model, versions) in found.get(_CONTEXT, []):
        contexts.setdefault(rowid, set()).add((model, versions))

    # A context stands in the file twice. Where the two differ, the scores are kept
    # under both: nobody will ask for the one that does not exist.
    now: dict[int, list[int]] = {}
    for old, candidates in contexts.items():
        for model, versions in candidates:
            if isinstance(model, str) and isinstance(versions, str):
                new.execute("INSERT OR IGNORE INTO context VALUES (NULL,?,?)", (model, versions))
                where = "SELECT id FROM context WHERE model = ? AND versions = ?"
                now.setdefault(old, []).append(new.execute(where, (model, versions)).fetchone()[0])

    kept = lost = 0
    for _, row in found.get(_SCORE, []):
        row[6:8] = [float(value) if isinstance(value, int) else value for value in row[6:8]]
        if not is_sound(row[1:]) or row[0] not in now or row[_HOST] in without_hosts:
            lost += 1
            continue
        new_ones = [_insert(new, "score", [context, *row[1:]]) for context in now[row[0]]]
        kept += any(new_ones)  # one that is in the file twice is one score
    for _, row in found.get(_PHASE, []):
        if all(isinstance(value, int | float) for value in row):
            _insert(new, "phase", row)
    for _, (name, value) in found.get(_NOTE, []):
        number, _, rest = str(name).partition(":")
        for context in now.get(int(number), []) if number.isdecimal() else []:
            _insert(new, "note", [f"{context}:{rest}", value])
    return kept, lost


def _insert(new: sqlite3.Connection, table: str, row: list[Any]) -> bool:
    """Put a row there; tell whether it was not there already."""
    values = ",".join("?" * len(row))
    return new.execute(f"INSERT OR IGNORE INTO {table} VALUES ({values})", row).rowcount > 0


def _records(content: bytes) -> Iterator[tuple[int, int, list[Any]]]:
    """Yield the kind of page, row number and columns of each record that can be read."""
    for start in range(PAGE_SIZE, len(content), PAGE_SIZE):  # the first has the schema
        page = content[start : start + PAGE_SIZE]
        kind = page[0]
        if kind not in (_TABLE_LEAF, _INDEX_LEAF):
            continue
        for index in range(int.from_bytes(page[3:5])):
            try:
                at = int.from_bytes(page[8 + 2 * index : 10 + 2 * index])
                rowid, payload = _cell(content, page, at, kind)
                yield kind, rowid, _columns(payload)
            except (IndexError, ValueError, struct.error):
                continue


def _cell(content: bytes, page: bytes, at: int, kind: int) -> tuple[int, bytes]:
    size, at = _varint(page, at)
    rowid = 0
    if kind == _TABLE_LEAF:
        rowid, at = _varint(page, at)
        most = PAGE_SIZE - 35
    else:
        most = (PAGE_SIZE - 12) * 64 // 255 - 23
    if size <= most:
        return rowid, page[at : at + size]
    if size > len(content):
        raise ValueError("longer than the file")
    least = (PAGE_SIZE - 12) * 32 // 255 - 23
    local = least + (size - least) % (PAGE_SIZE - 4)
    local = local if local <= most else least
    payload = page[at : at + local]
    following = int.from_bytes(page[at + local : at + local + 4])
    while len(payload) < size and following:
        start = (following - 1) * PAGE_SIZE
        overflow = content[start : start + PAGE_SIZE]
        following = int.from_bytes(overflow[:4])
        payload += overflow[4:]
        if len(overflow) < PAGE_SIZE:
            break
    return rowid, payload[:size]


def _columns(payload: bytes) -> list[Any]:
    """Decode a record; raises ``ValueError`` unless it fills its payload exactly."""
    end, at = _varint(payload, 0)
    types = []
    while at < end:
        kind, at = _varint(payload, at)
        types.append(kind)
    values: list[Any] = []
    for kind in types:
        if kind in (0, 8, 9):
            values.append({0: None, 8: 0, 9: 1}[kind])
            continue
        size = _INTEGERS.get(kind, 8 if kind == 7 else (kind - 12) // 2)
        part = payload[at : at + size]
        if len(part) != size or size < 0:
            raise ValueError("shorter than it says")
        at += size
        if kind in _INTEGERS:
            values.append(int.from_bytes(part, signed=True))
        elif kind == 7:
            values.append(struct.unpack(">d", part)[0])
        else:
            values.append(part if kind % 2 == 0 else part.decode())
    if at != len(payload):
        raise ValueError("longer than it says")
    return values


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index in range(9):
        byte = data[at + index]
        if index == 8:
            return value << 8 | byte, at + 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + index + 1
    raise AssertionError("a varint has nine bytes at most")
