"""What is in a directory: a run of any kind, a folder of runs, or neither; for ``status``.

A run says how far it is in ``status.json``. One that has none (it is being made, was refused
before it began, or is of a version that wrote none) is told from its other files.
"""

from __future__ import annotations

import contextlib
import re
import socket
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neurofleet import status
from neurofleet.errors import RunDirectoryError
from neurofleet.files import open_plain
from neurofleet.model import RUN_MARKER
from neurofleet.processes import is_running
from neurofleet.rundir import RunDirectory
from neurofleet.runlock import HOLDER, LOCK, LONGEST_HOLDER

#: Where commands make run directories, below the directory in which they are called.
RUNS = "neurofleet-runs"
#: The stores of an optimisation and of a run over items, and what a row of theirs is.
STORES = {"scores.sqlite": ("score", "scores"), "items.sqlite": ("result", "results")}
#: What only a run directory has.
SIGNS = ("status.json", RUN_MARKER, *STORES, LOCK, HOLDER)
#: What the run of a forest is called.
FOREST = "loo-forest"
#: So many of the tasks that run are printed.
SHOWN_RUNNING = 20


def look(directory: Path) -> dict[str, Any]:
    """Return what is known of the run in a directory, or of all runs in a folder.

    Returns
    -------
    dict
        Of one run what ``status.read`` returns, with ``kind`` (``optimisation``, ``map`` or
        ``forest``) and ``directory``; ``state`` is ``being made`` or ``not begun`` as well. Of a
        folder ``runs``, a list of the same, the newest first; a damaged one has a ``state`` of
        ``damaged`` and ``why``.

    Raises
    ------
    RunDirectoryError
        There is no such directory, no run in it, or its ``status.json`` is damaged.
    """
    try:
        names = {entry.name for entry in directory.iterdir()}
    except FileNotFoundError as error:
        raise RunDirectoryError(
            f"there is no directory {str(directory)!r}",
            remedy=f"Name a run directory, or a folder of them such as {RUNS}",
        ) from error
    except NotADirectoryError as error:
        raise RunDirectoryError(
            f"{str(directory)!r} is a file", remedy="Name the directory that it is in"
        ) from error
    except OSError as error:
        raise RunDirectoryError(
            f"{str(directory)!r} cannot be read ({error.strerror or error})",
            remedy="Mend its permissions, or name another directory",
        ) from error
    if _is_run(directory, names):
        return _run(directory, names)
    runs = [*_runs(directory), *(_runs(directory / RUNS) if RUNS in names else ())]
    if not runs:
        holds = "holds no run of neurofleet" if names else "is empty: nothing was run in it"
        raise RunDirectoryError(
            f"{str(directory)!r} {holds}",
            remedy=f"Name a run directory, or a folder of them such as {RUNS}",
        )
    runs.sort(key=lambda run: run["updated"], reverse=True)
    return {"schema_version": status.SCHEMA_VERSION, "directory": str(directory), "runs": runs}


def lines(told: Mapping[str, Any]) -> list[str]:
    """Return what ``look`` found, for a person."""
    if "runs" not in told:
        return [_line(told), *_running(told)]
    top = Path(told["directory"])
    return [f"{Path(run['directory']).relative_to(top)}: {_line(run)}" for run in told["runs"]]


def _runs(folder: Path) -> list[dict[str, Any]]:
    """Return the runs in a folder."""
    found = []
    with contextlib.suppress(OSError):
        for directory in folder.iterdir():
            with contextlib.suppress(OSError):
                names = {entry.name for entry in directory.iterdir()}
                if _is_run(directory, names):
                    found.append(_one_of_many(directory, names))
    return found


def _is_run(directory: Path, names: set[str]) -> bool:
    """Tell whether a directory is one of a run; other programs have a ``status.json`` too."""
    if names & set(SIGNS) == {"status.json"}:
        with contextlib.suppress(RunDirectoryError):
            return bool(status.read(directory))
        return False
    return bool(names & set(SIGNS))


def _one_of_many(directory: Path, names: set[str]) -> dict[str, Any]:
    """Return what is known of a run, damaged or not."""
    try:
        return _run(directory, names)
    except RunDirectoryError as error:
        return {
            **_told(directory, names),
            "state": "damaged",
            "why": error.what,
            "updated": directory.stat().st_mtime,
        }


def _run(directory: Path, names: set[str]) -> dict[str, Any]:
    """Return what is known of one run."""
    told = _told(directory, names)
    if "status.json" in names:
        told |= status.read(directory)
        if told["what"] == FOREST:
            told["kind"] = "forest"
        return told
    about = RunDirectory(directory).read_about() or {}
    holder = _holder(directory)
    if holder:
        state = "being made"
        told["holder"] = holder
    else:
        state = str(about.get("state") or "not begun")
        if state == "running":
            state = "killed"
    told |= {"what": about.get("name") or told["what"], "state": state}
    for store, (table, rows) in STORES.items():
        if store in names:
            told[rows] = _count(directory / store, table)
    return told


def _told(directory: Path, names: set[str]) -> dict[str, Any]:
    """Return what the names in a run directory tell."""
    kind = "optimisation"
    if "items.sqlite" in names:
        kind = "forest" if "predicted.svg" in names else "map"
    return {
        "schema_version": status.SCHEMA_VERSION,
        "kind": kind,
        "directory": str(directory),
        "what": directory.absolute().name,
        "updated": directory.stat().st_mtime,
    }


def _holder(directory: Path) -> str:
    """Return who works in a run directory, as it says itself; empty if nobody does."""
    try:
        with open_plain(directory / HOLDER) as file:
            text = file.read(LONGEST_HOLDER).decode(errors="replace").strip()
    except OSError:
        return ""
    found = re.match(r"process (\d+) of .* on (\S+), since ", text)
    if found and found[2] == socket.gethostname() and not is_running(int(found[1]), None):
        return ""
    return text


def _count(store: Path, table: str) -> int | None:
    """Return how many rows a store has, ``None`` if that cannot be told now."""
    try:
        where = f"{store.absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(where, uri=True)) as db:
            return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
    except sqlite3.Error:
        return None


def _line(told: Mapping[str, Any]) -> str:
    """Return one run in a line."""
    if "pid" in told:
        return status.line(told)
    parts = [f"{told['what']}: {told['state']}"]
    if told.get("why"):
        parts.append(told["why"])
    if told.get("holder"):
        parts.append(f"by {told['holder']}")
    for _, rows in STORES.values():
        if told.get(rows) is not None:
            parts.append(f"{told[rows]} {rows} in the store")
    return ", ".join(parts)


def _running(told: Mapping[str, Any]) -> list[str]:
    """Return what runs where, a line each, the longest first."""
    if told["state"] in (*status.ENDED, "killed"):
        return []
    now = time.time()
    running = sorted(told.get("running", ()), key=lambda one: float(one["since"]))
    shown = []
    for one in running[:SHOWN_RUNNING]:
        what = f"unit {one['unit']}" if "unit" in one else f"item {one.get('item')}"
        if "last" in one:
            what = f"items {one.get('item')} to {one['last']}"
        where = f" on {one['host']}" if one.get("host") else ""
        shown.append(f"  {what}{where} for {status.plain_time(now - one['since'])}")
    more = len(running) - len(shown)
    return [*shown, f"  and {more} more"] if more > 0 else shown
