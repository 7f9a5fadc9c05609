"""Processes that somebody noted: whether they still run, and not another one with their number."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil


def start_of(pid: int) -> int | None:
    """Return when a process started, by a clock that nobody sets [ticks since the boot].

    ``None`` if there is no such process, or no Linux to ask.
    """
    if sys.platform != "linux":
        return None
    try:
        told = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        # The second field, a name, may have spaces and brackets.
        return int(told.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def is_running(pid: int, start: int | None) -> bool:
    """Tell whether the process that was noted still runs.

    Parameters
    ----------
    pid : int
    start : int or None
        What ``start_of`` said of it; ``None`` if that was not noted.
    """
    if not psutil.pid_exists(pid):
        return False
    now = start_of(pid)
    return start is None or now is None or now == start
