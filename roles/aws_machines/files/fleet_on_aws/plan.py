"""What a run would create and end, and what the fleet then costs an hour."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import botocore.exceptions

from . import existing
from .account import Account
from .errors import AwsError, code_of, one_line
from .existing import Machine
from .prices import MONTH_H, Price, Prices, usd
from .wanted import EXPIRES, HEAD, OWNER, Pool, Wanted


@dataclass(frozen=True)
class Planned:
    """A pool with what is decided about it.

    Attributes
    ----------
    pool : Pool
    zone : str
        Full name of its availability zone.
    stay, leave : tuple of Machine
        That exist.
    launch : tuple of str
        Names of those that are missing.
    price : Price
        Of one machine.
    """

    pool: Pool
    zone: str
    stay: tuple[Machine, ...]
    leave: tuple[Machine, ...]
    launch: tuple[str, ...]
    price: Price


@dataclass(frozen=True)
class Plan:
    """Everything that a run starts from."""

    wanted: Wanted
    owner: str
    expires: str
    network: dict[str, Any] | None
    image: dict[str, Any]
    pools: tuple[Planned, ...]
    gone: tuple[Machine, ...]  # of pools that are no longer wanted

    @property
    def leave(self) -> list[Machine]:
        """Machines that are to end."""
        return [*self.gone, *(machine for planned in self.pools for machine in planned.leave)]

    @property
    def hourly_usd(self) -> float | None:
        """What the fleet costs an hour after this run; ``None`` is unknown."""
        total = 0.0
        for planned in self.pools:
            count = len(planned.stay) + len(planned.launch)
            if count and planned.price.hourly_usd is None:
                return None
            total += count * (planned.price.hourly_usd or 0.0)
        return total

    @property
    def tags(self) -> dict[str, str]:
        """Tags of what all machines share."""
        return existing.fleet_tags(self.wanted.fleet, "network", "all", self.owner, self.expires)


def make(account: Account, wanted: Wanted) -> Plan:
    """Look at what exists, and decide."""
    caller = account.caller()
    network = existing.network(account, wanted.fleet)
    # Owner and expiry of the network stay what they were when it was made.
    before = network["tags"] if network else {}
    image = _image(account, wanted)
    found = existing.machines(account, wanted.fleet)
    zones = _zones(account, wanted)
    prices = Prices(account)
    lost = _to_refill(account, wanted, found)
    planned = []
    for pool in wanted.pools:
        mine = [machine for machine in found if machine.pool == pool.name]
        stay, leave = _sorted_out(pool, zones[pool.name], mine)
        taken = {machine.name for machine in mine}
        free = (pool.machine(number) for number in range(1, 100_000))
        missing = max(0, pool.count - len(stay))
        candidates: Iterable[str] = (name for name in free if name not in taken)
        if wanted.refill:
            leave, candidates = (
                [],
                sorted(name for name in lost - taken if name.rpartition("-")[0] == pool.name),
            )
        names = itertools.islice(candidates, missing)
        price = prices.of(pool, zones[pool.name])
        planned.append(
            Planned(pool, zones[pool.name], tuple(stay), tuple(leave), tuple(names), price)
        )
    ours = {pool.name for pool in wanted.pools}
    return Plan(
        wanted=wanted,
        owner=before.get(OWNER) or wanted.owner or caller,
        expires=before.get(EXPIRES) or expiry(wanted.ttl_hours),
        network=network,
        image=image,
        pools=tuple(planned),
        gone=tuple(machine for machine in found if machine.pool not in ours and not wanted.refill),
    )


def _to_refill(account: Account, wanted: Wanted, found: list[Machine]) -> set[str]:
    """Return the names of machines that a refill may make again: none without a head that runs."""
    lives = any(machine.pool == HEAD and machine.state == "running" for machine in found)
    return existing.taken_back(account, wanted.fleet) if wanted.refill and lives else set()


def subnets(plan: Plan) -> dict[str, str]:
    """Return each used zone's part of the network: a zone's letter always has the same."""
    parts = [*plan.wanted.network.subnets(new_prefix=plan.wanted.zone_bits)]
    zones = sorted({planned.zone for planned in plan.pools})
    return {zone: str(parts[ord(zone[-1]) - ord("a")]) for zone in zones}


def expiry(hours: float) -> str:
    """Return when a machine that is launched now ends, in UTC."""
    return (datetime.now(UTC) + timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _sorted_out(pool: Pool, zone: str, mine: list[Machine]) -> tuple[list[Machine], list[Machine]]:
    """Return who stays and who leaves: the highest numbers, and what is of another kind."""
    right: list[Machine] = []
    wrong: list[Machine] = []
    for machine in sorted(mine, key=lambda machine: machine.number):
        same = machine.type == pool.type and machine.spot == pool.spot
        same = same and (not pool.zone or machine.zone == zone)
        (right if same else wrong).append(machine)
    if pool.name == HEAD and wrong:
        raise AwsError(
            f"the head is a {wrong[0].type} in {wrong[0].zone}, and a {pool.type} in {zone} is"
            " wanted. A head is not replaced while its results may be on it: set it back, or run"
            " playbooks/destroy.yml, which fetches them, and then site.yml."
        )
    return right[: pool.count], [*right[pool.count :], *wrong]


def _image(account: Account, wanted: Wanted) -> dict[str, Any]:
    """Return the newest image of this owner and name, or the one with this id."""
    asked = wanted.image
    if asked.get("id"):
        try:
            found = account.ec2.describe_images(ImageIds=[asked["id"]])["Images"]
        except botocore.exceptions.ClientError as error:
            if not code_of(error).startswith("InvalidAMIID"):
                with one_line("looking for the image"):
                    raise
            found = []
        except botocore.exceptions.BotoCoreError:
            with one_line("looking for the image"):
                raise
        what = f"an image {asked['id']!r}"
    else:
        found = account.every(
            "describe_images",
            "Images",
            Owners=[asked["owner"]],
            Filters=[
                {"Name": "name", "Values": [asked["name"]]},
                {"Name": "state", "Values": ["available"]},
            ],
        )
        what = f"an image {asked['name']!r} of the owner {asked['owner']}"
    if not found:
        raise AwsError(
            f"there is not {what} in {wanted.region}. Correct aws_machines_image; docs/aws.md says"
            " how to find one."
        )
    image = max(found, key=lambda image: image.get("CreationDate", ""))
    return {
        "id": image["ImageId"],
        "name": image.get("Name", ""),
        "device": image.get("RootDeviceName") or "/dev/xvda",
        "architecture": image.get("Architecture", "x86_64"),
    }


def _zones(account: Account, wanted: Wanted) -> dict[str, str]:
    """Return each pool's availability zone, by name."""
    types = sorted({pool.type for pool in wanted.pools})
    offered = account.every(
        "describe_instance_type_offerings",
        "InstanceTypeOfferings",
        LocationType="availability-zone",
        Filters=[{"Name": "instance-type", "Values": types}],
    )
    where: dict[str, list[str]] = {kind: [] for kind in types}
    for offer in offered:
        if offer["InstanceType"] in where:
            where[offer["InstanceType"]].append(offer["Location"])
    for kind, zones in where.items():
        if not zones:
            raise AwsError(
                f"{wanted.region} has no machines of the type {kind!r}. Correct the type in"
                " aws_machines_head or aws_machines_pools, or use another region."
            )
    chosen: dict[str, str] = {}
    for pool in wanted.pools:
        zones = sorted(where[pool.type])
        zone = f"{wanted.region}{pool.zone}"
        if pool.zone and zone not in zones:
            raise AwsError(
                f"pool {pool.name!r} wants {pool.type} in {zone}, where there are none. There are"
                f" in {', '.join(zones)}."
            )
        # With the head where possible: traffic between zones costs money.
        near = chosen.get(HEAD, "")
        chosen[pool.name] = zone if pool.zone else near if near in zones else zones[0]
    return chosen


def require_affordable(plan: Plan) -> None:
    """Refuse a fleet that costs more than the ceiling, or nobody knows what."""
    most, costs = plan.wanted.max_hourly_usd, plan.hourly_usd
    if most is None or not any(planned.launch for planned in plan.pools):
        return
    if costs is None:
        unknown = sorted(
            planned.pool.type
            for planned in plan.pools
            if planned.price.hourly_usd is None and (planned.stay or planned.launch)
        )
        raise AwsError(
            f"the price of {', '.join(unknown)} is unknown, so aws_max_hourly_usd cannot be kept."
            " Try again later, or leave aws_max_hourly_usd empty to create without a ceiling."
        )
    if costs > most:
        raise AwsError(
            f"the fleet would cost {usd(costs)}, more than aws_max_hourly_usd allows ({most:g})."
            " Take fewer or smaller machines, or raise aws_max_hourly_usd. Nothing was created."
        )


def lines(plan: Plan) -> list[str]:
    """Return the plan as people read it."""
    wanted = plan.wanted
    told = []
    if plan.network is None:
        told.append(f"create the network of fleet {wanted.fleet!r} in {wanted.region}")
    for planned in plan.pools:
        pool = planned.pool
        kind = f"{pool.type}{' (spot)' if pool.spot else ''} in {planned.zone}"
        if planned.launch:
            told.append(f"launch {', '.join(planned.launch)}: {kind}, {plan.image['name']}")
    told += [f"end {machine.name} ({machine.id})" for machine in plan.leave]
    told = told or ["no machine to launch or to end"]
    for planned in plan.pools:
        count = len(planned.stay) + len(planned.launch)
        if count:
            price = planned.price
            told.append(
                f"cost of {planned.pool.name}: {count} x {usd(price.hourly_usd)} ({price.of})"
            )
    ceiling = "" if wanted.max_hourly_usd is None else f"; ceiling {wanted.max_hourly_usd:g} USD/h"
    told.append(f"cost of the fleet: {usd(plan.hourly_usd)}{ceiling}; without traffic and tax")
    told += [
        f"stopped, the head goes on to cost its disk: {kept * MONTH_H:.2f} USD a month"
        for planned in plan.pools
        if planned.pool.name == HEAD and (kept := planned.price.disk_hourly_usd) is not None
    ]
    return told
