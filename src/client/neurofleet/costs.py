"""What a fleet on AWS has cost, costs, and gets for it.

The playbook writes down machines when they are made and when they have ended, with the price
that AWS's price list or spot history gave that day (``roles/aws_machines``). Prices are those of
Linux machines with disk and public address, without traffic, tax, credits and reservations;
what AWS charges is on its bill.

    python -m neurofleet.costs update FILE      add what stdin says of machines to FILE
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from neurofleet.atomic import write_whole
from neurofleet.errors import FleetError, UsageError
from neurofleet.files import as_object, entries, flag, number, read_settings, words
from neurofleet.rundir import RunDirectory

#: Where the playbook writes machines down, on the head.
PATH = Path("/etc/neurofleet/costs.json")
SCHEMA_VERSION = 1
HOUR_S = 3600.0
#: A month of AWS's price list [h].
MONTH_H = 730.0


@dataclass(frozen=True)
class Machine:
    """One machine that the fleet has, or had.

    Attributes
    ----------
    id, name, pool, type : str
    spot : bool
    launched : float
        In seconds since 1970 [s].
    ended : float or None
        The same; the end is seen by the next run of the playbook, so it is at most this.
    hourly_usd : float or None
        [USD/h]; ``None`` is unknown.
    price_of : str
        Source and day of the price.
    disk_hourly_usd : float or None
        The part of the disk, which a stopped machine goes on to cost [USD/h].
    """

    id: str
    name: str
    pool: str
    type: str
    spot: bool
    launched: float
    hourly_usd: float | None
    price_of: str
    ended: float | None = None
    disk_hourly_usd: float | None = None

    def hours(self, begin: float, end: float) -> float:
        """Return how long it was there in a span of time [h]."""
        last = end if self.ended is None else min(end, self.ended)
        return max(0.0, last - max(begin, self.launched)) / HOUR_S


@dataclass(frozen=True)
class PoolCost:
    """What one pool costs.

    Attributes
    ----------
    pool, price_of : str
    machines : int
        That are there now.
    hourly_usd, so_far_usd : float or None
        ``None`` where a price is unknown.
    """

    pool: str
    machines: int
    hourly_usd: float | None
    so_far_usd: float | None
    price_of: str


def read(file: Path = PATH) -> tuple[str, list[Machine]]:
    """Return the fleet's name and its machines.

    Raises
    ------
    UsageError
        There is no such file, or it cannot be used.
    """
    remedy = "Remove it and run site.yml again; what ended machines have cost is then lost"
    found = read_settings(file, SCHEMA_VERSION, _parsed, "the record of costs", remedy)
    if found is None:
        raise UsageError(
            f"there is no {str(file)!r}: costs are known on the head of a fleet on AWS",
            remedy="Run it there, after site.yml",
        )
    return found


def _parsed(content: Mapping[str, Any]) -> tuple[str, list[Machine]]:
    return words(content, "fleet"), [_machine(entry) for entry in entries(content, "machines")]


def _machine(entry: Any) -> Machine:
    entry = as_object(entry)
    return Machine(
        **{name: words(entry, name) for name in ("id", "name", "pool", "type", "price_of")},
        spot=flag(entry, "spot"),
        launched=number(entry, "launched"),
        hourly_usd=_number_or_none(entry, "hourly_usd"),
        ended=_number_or_none(entry, "ended"),
        disk_hourly_usd=_number_or_none(entry, "disk_hourly_usd"),
    )


def _number_or_none(entry: Mapping[str, Any], name: str) -> float | None:
    return None if entry.get(name) is None else number(entry, name)


def update(known: list[Machine], there: Iterable[dict[str, Any]], now: float) -> list[Machine]:
    """Return what is known after another look.

    A machine keeps the price that it was launched at; one that is no longer there has ended.
    """
    seen = {entry["id"]: entry for entry in there}
    before = {machine.id for machine in known}
    kept = [
        Machine(**{**asdict(machine), "ended": now})
        if machine.ended is None and machine.id not in seen
        else machine
        for machine in known
    ]
    return [*kept, *(Machine(**entry) for name, entry in seen.items() if name not in before)]


def by_pool(machines: Iterable[Machine], now: float) -> list[PoolCost]:
    """Return what each pool costs, in the order in which pools first appear."""
    pools: dict[str, list[Machine]] = {}
    for machine in machines:
        pools.setdefault(machine.pool, []).append(machine)
    found = []
    for pool, members in pools.items():
        alive = [machine for machine in members if machine.ended is None]
        found.append(
            PoolCost(
                pool,
                len(alive),
                total((machine.hourly_usd, 1.0) for machine in alive),
                spent(members, 0.0, now),
                ", ".join(sorted({machine.price_of for machine in members})),
            )
        )
    return found


def spent(machines: Iterable[Machine], begin: float, end: float) -> float | None:
    """Return what machines cost in a span of time [USD]; ``None`` where a price is unknown."""
    return total((machine.hourly_usd, machine.hours(begin, end)) for machine in machines)


def total(parts: Iterable[tuple[float | None, float]]) -> float | None:
    """Return prices times amounts; ``None`` where a price that counts is unknown."""
    found = 0.0
    for price, amount in parts:
        if amount and price is None:
            return None
        found += (price or 0.0) * amount
    return found


def in_one_line(fleet: str, machines: list[Machine]) -> str:
    """Return what somebody might forget to end: what runs, since when, what it costs a day."""
    alive = [machine for machine in machines if machine.ended is None]
    if not alive:
        return f"fleet {fleet}: no machine runs"
    since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(min(m.launched for m in alive)))
    hourly = total((machine.hourly_usd, 1.0) for machine in alive)
    price = "an unknown price" if hourly is None else f"{24 * hourly:.2f} USD a day"
    line = f"fleet {fleet}: {len(alive)} machines since {since}, {price}"
    disk = next((m.disk_hourly_usd for m in alive if m.pool == "head"), None)
    if disk is not None:
        line += f"; stopped, the head costs {MONTH_H * disk:.2f} USD a month for its disk"
    return f"{line}. playbooks/destroy.yml ends it all"


def per_thousand(machines: list[Machine], run: Path) -> dict[str, Any]:
    """Return what a thousand evaluated individuals of a run cost, whole fleet, so far.

    Parameters
    ----------
    machines : list of Machine
    run : Path
        A run directory.

    Raises
    ------
    UsageError
        It is none, or has no score yet.
    """
    store = run / "scores.sqlite"
    if RunDirectory(run).read_about() is None or not store.exists():
        raise UsageError(f"{str(run)!r} is not a run directory", remedy="Name one with --run-dir")
    try:
        where = f"{store.absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(where, uri=True)) as db:
            count, begin, end = db.execute(
                "SELECT count(DISTINCT parameters), min(started), max(started + duration_s)"
                " FROM score"
            ).fetchone()
    except sqlite3.Error as error:
        raise UsageError(
            f"the store of {str(run)!r} cannot be read ({error})",
            remedy="Wait until the run has begun, or see neurofleet repair",
        ) from error
    if not all(isinstance(moment, float | int) for moment in (begin, end)):
        count = 0
    if not count:
        raise UsageError(f"{str(run)!r} has no score yet", remedy="Wait for the first")
    usd = spent(machines, begin, end)
    return {
        "run": str(run),
        "evaluations": count,
        "hours": (end - begin) / HOUR_S,
        "usd": usd,
        "usd_per_thousand": None if usd is None else 1000 * usd / count,
    }


def newest_run(folder: Path) -> Path | None:
    """Return the run directory below a folder that was changed last, if there is one."""
    stores = folder.glob("neurofleet-runs/*/scores.sqlite"), folder.glob("*/scores.sqlite")
    found = [path for paths in stores for path in paths]
    return max(found, key=lambda path: path.stat().st_mtime).parent if found else None


def main() -> None:
    """Add what stdin says to a file; print a line for each change."""
    words = [word for word in sys.argv[1:] if word != "--dry-run"]
    if len(words) != 2 or words[0] != "update":
        sys.exit(__doc__)
    file = Path(words[1])
    try:
        known = read(file)[1] if file.exists() else []
        asked = json.load(sys.stdin)
        after = update(known, asked["machines"], time.time())
        if after == known and file.exists():
            return
        content = {
            "schema_version": SCHEMA_VERSION,
            "fleet": asked["fleet"],
            "machines": [asdict(machine) for machine in after],
        }
        if "--dry-run" not in sys.argv:
            write_whole(file, (json.dumps(content, indent=2) + "\n").encode())
            file.chmod(0o644)
        for machine in after:
            if machine not in known:
                print(f"{machine.name}: {'there' if machine.ended is None else 'ended'}")
    except FleetError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(
            f"error: {str(file)!r} cannot be written ({error.strerror or error})."
            " Make room or mend its permissions on the head, and run the playbook again."
        )


if __name__ == "__main__":
    main()
