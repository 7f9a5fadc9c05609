"""What runs on a head, asked to stop at a safe point before the head does."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

from neurofleet import status
from neurofleet.errors import FleetError
from neurofleet.guards.idle import run_directories
from neurofleet.rundir import RunDirectory


def stop(folders: Iterable[Path], unreadable: Callable[[Path, str], None]) -> list[Path]:
    """Send SIGTERM to the process of every run that is under way on this machine.

    What a run directory says is its owner's word, so only a process of the same owner counts.

    Parameters
    ----------
    folders : iterable of Path
        Run directories are looked for below these.
    unreadable : callable
        Takes a directory that cannot be looked into, and why.

    Returns
    -------
    list of Path
        Directories of the runs that were told.
    """
    told = []
    for run in run_directories(folders, unreadable):
        with contextlib.suppress(FleetError, OSError):
            found = status.read(run)
            if found["state"] in (*status.ENDED, "killed") or found["host"] != os.uname().nodename:
                continue
            owner = RunDirectory(run).status.lstat().st_uid
            if Path(f"/proc/{found['pid']}").stat().st_uid == owner:
                os.kill(found["pid"], signal.SIGTERM)
                told.append(run)
    return told
