"""When this machine ends: a systemd timer, and the way in which people put it off.

Whoever may use the fleet leaves a wish in a directory; the guard, which is root, takes it.
On workers that is an engine, told by ``neurofleet extend`` on the head.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

from neurofleet import guards
from neurofleet.errors import UsageError, WorkloadFailed
from neurofleet.files import as_object, json_value, number
from neurofleet.rundir import write_whole

#: Name of a wish in the directory of wishes.
WISH = "wish.json"
#: What is read of a wish [bytes].
LONGEST_WISH = 1000
#: How long the guard may take to do as it is asked [s].
TAKEN_WITHIN_S = 15.0
LOOK_EVERY_S = 0.1
DROP_IN = Path("/etc/systemd/system")


def ask_for(until: float, limit_s: float = TAKEN_WITHIN_S) -> float:
    """Ask this machine's guard for another end, and wait until it has seen to it.

    Parameters
    ----------
    until : float
        The wanted end, in seconds since 1970 [s].
    limit_s : float
        How long the guard may take [s].

    Returns
    -------
    float
        The machine's end as it is now [s].

    Raises
    ------
    UsageError
        The machine is not guarded, or the account may not ask.
    WorkloadFailed
        The guard does not answer.
    """
    settings = guards.read()
    if settings is None:
        raise UsageError(
            f"there is no {guards.path()}: this machine has no end",
            remedy="Set fleet_ttl_hours in the inventory and run site.yml, if it should have one",
        )
    wish = settings.wishes / WISH
    try:
        wish.unlink(missing_ok=True)
        write_whole(wish, json.dumps({"until": until}).encode())
    except OSError as error:
        raise UsageError(
            f"{str(wish)!r} cannot be written ({error.strerror})",
            remedy="Have your account added to the fleet's group (fleet_members), and log in again",
        ) from error
    deadline = time.monotonic() + limit_s
    while wish.exists():
        if time.monotonic() > deadline:
            raise WorkloadFailed(
                f"the guard did not take the wish within {limit_s:g} s",
                remedy="See systemctl status neurofleet-guard there",
            )
        time.sleep(LOOK_EVERY_S)
    return ends_at(settings.timer)


def take_wish(settings: guards.Settings, now: float) -> str:
    """Do what was asked for, if something was; return a line for the journal."""
    wish = settings.wishes / WISH
    if not os.path.lexists(wish):
        return ""
    try:
        until = min(_wanted(wish), now + settings.most_h * 3600)
        if not until > now:
            return "an end in the past was asked for: not done"
        put_off(settings.timer, until)
        return f"this machine ends at {shown(until)}, as was asked for"
    except OSError as error:
        return f"a wish could not be read: {error.strerror}"
    except ValueError:
        return "a wish was no wish: not done"
    finally:
        _remove(wish)  # whatever it was; who asked waits for this


def _wanted(wish: Path) -> float:
    # The directory is others': a link in it could name any file.
    opened = os.open(wish, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return number(as_object(json_value(os.read(opened, LONGEST_WISH))), "until")
    finally:
        os.close(opened)


def _remove(wish: Path) -> None:
    with contextlib.suppress(OSError):
        if wish.is_dir() and not wish.is_symlink():
            shutil.rmtree(wish)
        else:
            wish.unlink(missing_ok=True)


def put_off(timer: str, until: float) -> None:
    """Give the timer another time, which holds over a reboot too."""
    folder = DROP_IN / f"{timer}.d"
    folder.mkdir(mode=0o755, exist_ok=True)
    when = datetime.fromtimestamp(until, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    write_whole(folder / "until.conf", f"[Timer]\nOnCalendar=\nOnCalendar={when}\n".encode())
    (folder / "until.conf").chmod(0o644)
    systemctl("daemon-reload")
    systemctl("restart", timer)


def ends_at(timer: str) -> float:
    """Return when the machine ends, in seconds since 1970 [s]; infinity if never."""
    said = systemctl("show", "--property=TimersCalendar", "--value", timer)
    # { OnCalendar=2026-11-21 20:00:00 UTC ; next_elapse=... }
    _, found, rest = said.partition("OnCalendar=")
    if not found:
        return float("inf")
    text = rest.partition(" ;")[0].strip()
    return datetime.strptime(text, "%Y-%m-%d %H:%M:%S UTC").replace(tzinfo=UTC).timestamp()


def shown(moment: float) -> str:
    """Return a moment as people read it."""
    if moment == float("inf"):
        return "no time"
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def systemctl(*words: str, may_fail: bool = False) -> str:
    """Run systemctl and return what it said."""
    done = subprocess.run(
        ["systemctl", *words], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode and not may_fail:
        raise WorkloadFailed(
            f"systemctl {' '.join(words)} failed ({done.stderr.strip()})",
            remedy="See journalctl -u neurofleet-guard",
        )
    return done.stdout
