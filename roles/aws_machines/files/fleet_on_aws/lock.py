"""One run at a time changes a fleet, as far as this computer knows.

Ansible has nothing that is held while a playbook runs, so the lock is a file with the
process of ansible-playbook in it: it counts while that process lives, and needs no unlocking.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

from .errors import AwsError


def take(directory: Path) -> None:
    """Take the lock for the playbook that this process is part of.

    Raises
    ------
    AwsError
        Another playbook that still runs has it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    me = playbook()
    with (directory / "lock").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        holder = _read(file.read())
        if holder is not None and holder != me and _started(holder[0]) == holder[1]:
            raise AwsError(
                f"another run is at work on this fleet (process {holder[0]}). Wait for it, or end"
                f" it with `kill {holder[0]}`, and run the same command again."
            )
        file.seek(0)
        file.truncate()
        json.dump(me, file)


def playbook() -> tuple[int, str]:
    """Return the uppermost ansible process above this one, and when it was started."""
    found = pid = os.getpid()
    while pid > 1:
        if b"ansible-" in _cmdline(pid):
            found = pid
        pid = _parent(pid)
    return found, _started(found)


def _read(text: str) -> tuple[int, str] | None:
    try:
        pid, started = json.loads(text)
        return int(pid), str(started)
    except (TypeError, ValueError):  # empty, or of a run that was killed while writing
        return None


def _cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _parent(pid: int) -> int:
    return int(_stat(pid)[1]) if _stat(pid) else 0


def _started(pid: int) -> str:
    """Return the process's start time; a number is given to another process some day."""
    return _stat(pid)[19] if _stat(pid) else ""


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
