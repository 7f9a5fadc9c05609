"""The guard of a machine, a systemd service: ``python -m neurofleet.guards.service``.

It is told of a wish for another end, asks AWS whether this spot machine will be taken, and asks
the hub whether there is anything to do; the end itself is the timer's. On the head it tells people
who are logged in of the end, and asks their runs to stop at a safe point.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from neurofleet import guards
from neurofleet.errors import FleetError
from neurofleet.guards import clients, expiry, idle
from neurofleet.guards.expiry import systemctl
from neurofleet.guards.spot import Metadata
from neurofleet.systemd import notify

#: How often wishes are looked for, AWS is asked, and the hub is asked [s].
WISH_EVERY_S = 1.0
SPOT_EVERY_S = 5.0
IDLE_EVERY_S = 10.0
#: How often the end is looked at, and so long before it people and their runs are told [s].
END_EVERY_S = 10.0
TOLD_BEFORE_S = (1800.0, 300.0)
SAFE_POINT_BEFORE_S = 120.0
#: So long before it is taken, a machine ends what has not ended [s].
RESERVE_S = 15.0
ENGINES = "ipengines.target"
#: How long writing to all terminals may take [s].
WALL_S = 10.0

logger = logging.getLogger("guard")


class Guard:
    """What one machine's guard knows."""

    def __init__(self, settings: guards.Settings) -> None:
        self._settings = settings
        self._metadata = Metadata(settings.metadata_url) if settings.metadata_url else None
        mine = None if settings.on_head else idle.engines_here
        self._idleness = idle.Idleness(idle.asker(settings.connection_file), mine, time.monotonic())
        self._next = {"spot": 0.0, "idle": 0.0, "end": 0.0}
        self._end = float("inf")
        self._told_before: set[float] = set()
        self._taken_at: float | None = None
        self._is_stopping = False
        self._is_told_idle = False
        self._told: dict[str, str] = {}
        # Often enough for the time that is waited for, and never more than the hub likes.
        self._idle_every_s = max(1.0, min(IDLE_EVERY_S, settings.idle_s / 5))

    def step(self) -> None:
        """Look at whatever is due."""
        self._attempt("wish", self._take_wish)
        now = time.monotonic()
        if now >= self._next["end"]:
            self._next["end"] = now + END_EVERY_S
            self._attempt("end", self._watch_end)
        metadata = self._metadata
        if metadata is not None and now >= self._next["spot"]:
            self._next["spot"] = now + SPOT_EVERY_S
            self._attempt("spot", lambda: self._watch_spot(metadata))
        if self._settings.idle_s and now >= self._next["idle"]:
            self._next["idle"] = now + self._idle_every_s
            self._attempt("idle", lambda: self._watch_idleness(now))

    def _attempt(self, what: str, watch: Callable[[], None]) -> None:
        """Do one of the watches; what hinders it ends none, is said once, and is tried again."""
        try:
            watch()
        except (FleetError, OSError) as error:
            self._say(f"{what} hindered", f"the watch of {what} is hindered: {error}")
        else:
            self._told.pop(f"{what} hindered", None)
        notify("WATCHDOG=1")

    def _say(self, about: str, line: str) -> None:
        """Write a line into the journal, unless it was the last about this."""
        if self._told.get(about) != line:
            self._told[about] = line
            logger.warning("%s", line)

    def _take_wish(self) -> None:
        said = expiry.take_wish(self._settings, time.time())
        if said:
            logger.warning("%s", said)
            self._next["end"] = 0.0
            self._idleness.begin_anew(time.monotonic())

    def _watch_end(self) -> None:
        """Give a machine that was started again as long again; on the head, tell of its end."""
        end = expiry.ends_at(self._settings.timer)
        if self._settings.ttl_s and end < expiry.started_at():
            end = time.time() + self._settings.ttl_s
            expiry.put_off(self._settings.timer, end)
            logger.warning("started again: this machine ends at %s", expiry.shown(end))
        if end != self._end:
            self._end = end
            self._told_before.clear()
        if not self._settings.on_head:
            return
        left_s = end - time.time()
        due = {before for before in TOLD_BEFORE_S if left_s <= before} - self._told_before
        if due:
            self._told_before |= due
            self._tell_everybody(f"This machine stops at {expiry.shown(end)}.")
        if left_s <= SAFE_POINT_BEFORE_S and SAFE_POINT_BEFORE_S not in self._told_before:
            self._told_before.add(SAFE_POINT_BEFORE_S)
            self._stop_clients()

    def _stop_clients(self) -> None:
        for run in clients.stop(self._settings.results_below, self._say_unreadable):
            logger.warning("%s was asked to stop at a safe point", run)

    def _tell_everybody(self, line: str) -> None:
        """Write to the terminals of whoever is logged in."""
        text = f"{line} Its disk stays. To put that off: neurofleet extend HOURS"
        logger.warning("%s", text)
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(["wall", text], capture_output=True, timeout=WALL_S, check=False)

    def _watch_spot(self, metadata: Metadata) -> None:
        """Stop taking units once AWS has said that it takes the machine; end what is too slow."""
        if self._taken_at is None:
            self._taken_at = metadata.taken_at()
            if self._taken_at is None:
                return
            logger.warning("AWS takes this machine at %s", expiry.shown(self._taken_at))
        if self._settings.on_head:
            return
        if not self._is_stopping:
            self._say("engines", "the engines finish their units and take no more")
            systemctl("stop", "--no-block", ENGINES)
            self._is_stopping = True
        elif time.time() > self._taken_at - RESERVE_S:
            # Ended now, the hub is told, and the units are given to others at once.
            systemctl("kill", "--signal=KILL", "ipengine@*.service", may_fail=True)

    def _watch_idleness(self, now: float) -> None:
        if self._settings.on_head and idle.results_are_copied():
            self._idleness.begin_anew(now)
        idle_s = self._idleness.seconds(now)
        if self._idleness.answered:
            self._told.pop("hub", None)
        else:
            self._say("hub", "the controller cannot be asked for tasks: this is not idleness")
        if self._settings.on_head:
            self._tell_of_idleness(self._settings.idle_s - idle_s)
        if idle_s < self._settings.idle_s:
            return
        self._say("end", f"nothing to do for {self._settings.idle_s:.0f} s: powering off")
        systemctl("poweroff")

    def _tell_of_idleness(self, left_s: float) -> None:
        if left_s > min(TOLD_BEFORE_S) or left_s >= self._settings.idle_s:
            self._is_told_idle = False
        elif left_s > 0 and not self._is_told_idle:
            self._is_told_idle = True
            self._tell_everybody(f"No worker is left: this machine stops in {left_s / 60:.0f} min.")

    def _say_unreadable(self, folder: Path, why: str) -> None:
        self._say(
            f"unreadable {folder}",
            f"{folder} cannot be read ({why}): runs below it are not asked to stop",
        )


def main() -> None:
    """Guard until told to stop."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        settings = guards.read()
        if settings is None:
            sys.exit(f"error: there is no {guards.path()}. Run site.yml --tags guards.")
        guard = Guard(settings)
        notify("READY=1")
        while True:
            guard.step()
            time.sleep(WISH_EVERY_S)
    except FleetError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
