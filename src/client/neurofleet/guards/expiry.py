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
from neurofleet.atomic import write_whole
from neurofleet.errors import FleetError, UsageError, WorkloadFailed, first_line
from neurofleet.files import as_object, json_value, number
from neurofleet.processes import start_of

#: Name of a wish in the directory of wishes.
WISH = "wish.json"
#: What is read of a wish [bytes].
LONGEST_WISH = 1000
#: How long the guard may take to do as it is asked [s].
TAKEN_WITHIN_S = 15.0
LOOK_EVERY_S = 0.1
#: How long systemd may take to answer: two answers come before the guard's watchdog does [s].
SYSTEMCTL_S = 25.0
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
        There is no room for the wish, or the guard does not answer.
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
        raise _cannot_ask(wish, error) from error
    deadline = time.monotonic() + limit_s
    while wish.exists():
        if time.monotonic() > deadline:
            raise WorkloadFailed(
                f"the guard did not take the wish within {limit_s:g} s",
                remedy="See journalctl -u neurofleet-guard there; the wish is kept and tried again",
            )
        time.sleep(LOOK_EVERY_S)
    return ends_at(settings.timer)


def _cannot_ask(wish: Path, error: OSError) -> FleetError:
    """Return what somebody is told whose wish cannot be written."""
    what = f"{str(wish)!r} cannot be written ({error.strerror or error})"
    if isinstance(error, PermissionError):
        remedy = "Have your account added to the fleet's group (fleet_members), and log in again"
    elif isinstance(error, FileNotFoundError):
        remedy = "Run the playbook again: site.yml --tags guards"
    else:
        return WorkloadFailed(what, remedy="Make room on that machine, and run this again")
    return UsageError(what, remedy=remedy)


def take_wish(settings: guards.Settings, now: float) -> str:
    """Do what was asked for, if something was; return a line for the journal.

    Raises
    ------
    WorkloadFailed
        It cannot be done now; the wish is left, to be tried again.
    """
    wish = settings.wishes / WISH
    if not os.path.lexists(wish):
        return ""
    try:
        until = min(_wanted(wish), now + settings.most_h * 3600)
    except OSError as error:
        _remove(wish)
        return f"a wish could not be read: {error.strerror or error}"
    except ValueError:
        _remove(wish)
        return "a wish could not be understood: not done"
    if not until > now:
        _remove(wish)
        return "an end in the past was asked for: not done"
    put_off(settings.timer, until)
    _remove(wish)  # who asked waits for this
    return f"this machine ends at {shown(until)}, as was asked for"


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
    """Give the timer another time, which holds over a reboot too.

    Raises
    ------
    WorkloadFailed
        The file cannot be written, or systemd does not take it.
    """
    drop_in = DROP_IN / f"{timer}.d" / "until.conf"
    when = datetime.fromtimestamp(until, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    try:
        drop_in.parent.mkdir(mode=0o755, exist_ok=True)
        # After the next start it has as long again; the empty line forgets the unit's own ends.
        lasts = f"OnActiveSec={max(1.0, until - time.time()):.0f}s"
        write_whole(drop_in, f"[Timer]\nOnCalendar=\nOnCalendar={when}\n{lasts}\n".encode())
        drop_in.chmod(0o644)
    except OSError as error:
        raise WorkloadFailed(
            f"the end of this machine cannot be put off: {str(drop_in)!r} cannot be written"
            f" ({error.strerror or error})",
            remedy="Make room on this machine; it is tried again until then",
        ) from error
    systemctl("daemon-reload")
    systemctl("restart", timer)


def started_at() -> float:
    """Return when this machine was started, in seconds since 1970 [s].

    A booted container has its host's uptime, so it is the first process that is asked.
    """
    ticks = start_of(1)
    if ticks is None:
        return 0.0
    since = ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since


def ends_at(timer: str) -> float:
    """Return when the machine ends, in seconds since 1970 [s]; infinity if never.

    Raises
    ------
    WorkloadFailed
        systemd does not say so, or says it in another form.
    """
    said = systemctl("show", "--property=TimersCalendar", "--value", timer)
    # { OnCalendar=2026-11-21 20:00:00 UTC ; next_elapse=... }
    _, found, rest = said.partition("OnCalendar=")
    if not found:
        return float("inf")
    text = rest.partition(" ;")[0].strip()
    try:
        return datetime.strptime(text, "%Y-%m-%d %H:%M:%S UTC").replace(tzinfo=UTC).timestamp()
    except ValueError as error:
        raise WorkloadFailed(
            f"{timer} ends this machine at {text!r}, which somebody has set by hand",
            remedy=f"See systemctl cat {timer}, and remove what is not neurofleet's",
        ) from error


def shown(moment: float) -> str:
    """Return a moment as people read it."""
    if moment == float("inf"):
        return "no time"
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def systemctl(*words: str, may_fail: bool = False) -> str:
    """Run systemctl and return what it said.

    Raises
    ------
    WorkloadFailed
        It cannot be run, does not answer, or says that it failed.
    """
    try:
        done = subprocess.run(
            ["systemctl", *words],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SYSTEMCTL_S,
            check=False,
        )
        why = "" if done.returncode == 0 or may_fail else done.stderr.strip() or "no reason given"
    except (OSError, subprocess.TimeoutExpired) as error:
        why = first_line(error)
    if why:
        raise WorkloadFailed(
            f"systemctl {' '.join(words)} failed ({why})",
            remedy="See journalctl -u neurofleet-guard",
        )
    return done.stdout
