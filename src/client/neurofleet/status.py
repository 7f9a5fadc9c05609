"""How far a run is, in ``status.json`` of its run directory, for people and their scripts.

The file is replaced whole, at most twice a second, and at least every few seconds while
engines are tended. It is a convenience: a full disk does not end a run because of it.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from neurofleet.atomic import write_whole
from neurofleet.errors import Interrupted, RunDirectoryError, one_line
from neurofleet.farm import FarmState
from neurofleet.files import (
    as_object,
    count,
    dump_json,
    entries,
    number,
    read_object,
    real,
    text,
    words,
)
from neurofleet.processes import is_running, start_of
from neurofleet.rundir import RunDirectory

SCHEMA_VERSION = 1
#: What is told as a whole number, once it is known.
COUNTS = (
    *("max_ngen", "generation", "generations_done", "simulated", "failed"),
    *("units_done", "units_total", "items_done", "items_total", "engines", "busy", "registered"),
)
#: Sums of scores: best so far, and of the last population; null where none is finite.
FITNESS = ("best", "population_min", "mean")
#: States of a run that is over.
ENDED = ("finished", "interrupted", "failed")
#: A change is written so soon, and no change is confirmed so often [s].
SOON_S, CONFIRM_S = 0.5, 5.0
#: So many units or items that run are named, the longest first [count].
MOST_RUNNING = 100
#: Engines that are missing for so long are worth a line [s].
WORTH_A_LINE_S = 10.0


class Status:
    """``status.json`` of a run that is under way; as a context manager, until it has ended.

    Parameters
    ----------
    directory : Path
        The run directory, which this process holds.
    what : str
        What is run.
    """

    def __init__(self, directory: Path, what: str) -> None:
        self._file = RunDirectory(directory).status
        self._told: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "what": what,
            "state": "preparing",
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "pid_start": start_of(os.getpid()),
            "started": time.time(),
        }
        self._written = 0.0
        self._changed = False
        self._writing = threading.Lock()
        self._later: threading.Timer | None = None

    def __enter__(self) -> Self:
        self._write()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._told.pop("waiting_since", None)
        if error is None:
            self._told["state"] = "finished"
        elif isinstance(error, KeyboardInterrupt | Interrupted):
            self._told["state"] = "interrupted"
        else:
            self._told |= {"state": "failed", "why": str(error)}
        self._told |= {"engines": 0, "busy": 0, "running": []}
        if self._later is not None:
            self._later.cancel()
        self._write()

    def tell(self, **facts: Any) -> None:
        """Take note of facts; they are in the file within half a second."""
        self._changed |= any(self._told.get(name) != value for name, value in facts.items())
        self._told |= facts
        age = time.monotonic() - self._written
        if age > CONFIRM_S or (self._changed and age > SOON_S):
            self._write()
        elif self._changed and (self._later is None or not self._later.is_alive()):
            # Whoever works in this process may say nothing more for an hour.
            self._later = threading.Timer(SOON_S, self._write)
            self._later.daemon = True
            self._later.start()

    def farm(self, state: FarmState) -> None:
        """Take note of the engines."""
        waiting = None
        if state.waiting_since is not None:
            waiting = round(time.time() - time.monotonic() + state.waiting_since, 1)
        before = self._told.get("waiting_since")
        if waiting is not None and before is not None and abs(waiting - before) < 1:
            waiting = before  # the same moment, by a clock that was set a little
        self.tell(
            state="running" if waiting is None else "waiting for engines",
            engines=state.engines,
            busy=state.busy,
            registered=state.registered,
            waiting_since=waiting,
            running=[
                {**_named(one.key), "host": one.host, "since": round(one.since, 1)}
                for one in state.running[:MOST_RUNNING]
            ],
        )

    def _write(self) -> None:
        with self._writing, contextlib.suppress(OSError):
            self._written, self._changed = time.monotonic(), False
            content = {**self._told, "updated": time.time()}
            write_whole(self._file, (dump_json(content, indent=2) + "\n").encode(), lasting=False)


def _named(key: Any) -> dict[str, Any]:
    """Return what a task is, a unit by its name or items by their numbers from 1."""
    match key:
        case (int() as first, *rest):
            return {"item": first + 1, **({"last": rest[-1] + 1} if rest else {})}
        case (str() as unit, *_):
            return {"unit": unit}
    return {"unit": str(key)}


class Patience:
    """Says that a run waits for engines, when it has done so for a while, and again."""

    def __init__(self, again_s: float) -> None:
        self._again_s = again_s
        self._told_at = 0.0

    def line(self, state: FarmState) -> str | None:
        """Return what a person should be told now."""
        if state.waiting_since is None:
            self._told_at = 0.0
            return None
        now = time.monotonic()
        waited = now - state.waiting_since
        if waited < WORTH_A_LINE_S or now - self._told_at < self._again_s:
            return None
        self._told_at = now
        doing = f"{state.registered} registered, being prepared" if state.registered else "none"
        limit = f"; giving up after {state.limit_s:.0f} s" if state.limit_s else ""
        return f"waiting for engines since {waited:.0f} s ({doing}){limit}"


def read(directory: Path) -> dict[str, Any]:
    """Return how far a run is, or was when it ended.

    Raises
    ------
    RunDirectoryError
        Nothing was run in the directory, or the file is damaged.
    """
    file = RunDirectory(directory).status
    try:
        told = read_object(file)
        version = told.get("schema_version")
        if version != SCHEMA_VERSION:
            if isinstance(version, int) and "state" in told:
                raise RunDirectoryError(
                    f"{str(file)!r} has schema_version {version}, this program knows"
                    f" {SCHEMA_VERSION}",
                    remedy="Use the version of neurofleet that ran there",
                )
            raise ValueError("it has no schema_version that this program knows")
        state, host = text(told, "state"), text(told, "host")
        pid = count(told, "pid")
        start = None if told.get("pid_start") is None else count(told, "pid_start")
        for name in ("started", "updated"):
            number(told, name)
        for name in COUNTS:
            if told.get(name) is not None:
                count(told, name)
        for name in FITNESS:
            value = told.get(name)
            if isinstance(value, float) and not math.isfinite(value):
                told[name] = None  # as an earlier version wrote it
            elif value is not None:
                real(told, name)
        not_finite = as_object(told.get("not_finite") or {})
        for name in not_finite:
            count(not_finite, name)
        told["running"] = [_checked(one) for one in entries({"running": [], **told}, "running")]
        if host == socket.gethostname() and state not in ENDED and not is_running(pid, start):
            told["state"] = "killed"
    except OSError as error:
        raise RunDirectoryError(
            f"{str(file)!r} cannot be read ({error.strerror or error})",
            remedy="Name a run directory in which a command of this version has run",
        ) from error
    except ValueError as error:
        raise RunDirectoryError(
            f"{str(file)!r} is damaged ({error})",
            remedy="Remove it; the next run in this directory writes it anew",
        ) from error
    return told


def line(told: Mapping[str, Any]) -> str:
    """Return what ``read`` found, for a person."""
    parts = [f"{told.get('what')}: {told['state']}"]
    if told.get("max_ngen"):
        doing = "comparing units" if told.get("generation") == 0 else f"{told.get('generation')}"
        parts.append(f"generation {doing} of {told['max_ngen']}")
    for kind in ("units", "items"):
        if told.get(f"{kind}_total"):
            parts.append(f"{told.get(f'{kind}_done')}/{told[f'{kind}_total']} {kind}")
    if told.get("failed"):
        parts.append(f"{told['failed']} item{'s' * (told['failed'] != 1)} failed")
    if told["state"] not in (*ENDED, "killed"):
        if told.get("waiting_since") is not None:
            parts[0] += f" for {plain_time(time.time() - told['waiting_since'])}"
        parts.append(f"{told.get('busy', 0)}/{told.get('engines', 0)} engines busy")
        parts.append(f"process {told['pid']} on {told['host']}")
    if told.get("best") is not None:
        parts.append(f"best {told['best']:.6g}")
        if told.get("population_min") not in (None, told["best"]):
            parts[-1] += f" (population minimum {told['population_min']:.6g})"
    if told.get("not_finite"):
        names = ", ".join(f"{name} ({times})" for name, times in told["not_finite"].items())
        parts.append(f"NaN or infinite scores: {names}")
    parts.append(f"updated {plain_time(time.time() - told['updated'])} ago")
    if told["state"] == "failed" and told.get("why"):
        parts.append(f"because: {one_line(str(told['why']))}")
    return ", ".join(parts)


def plain_time(seconds: float) -> str:
    """Return a length of time as people say it."""
    whole = max(0, round(seconds))
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min"
    if whole < 2 * 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} days"


def _checked(one: Any) -> dict[str, Any]:
    """Return a task that runs, which a person can be told."""
    running = as_object(one)
    number(running, "since")
    for name in ("unit", "host"):
        if name in running:
            words(running, name)
    for name in ("item", "last"):
        if name in running:
            count(running, name)
    return running
