"""What is wanted, checked: the settings that the role passes on."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import AwsError

#: Of every resource; nothing without the first is ever touched.
FLEET, ROLE, POOL, OWNER, EXPIRES, NAME, HOST_KEY = (
    f"neurofleet:{word}"
    for word in ("fleet", "role", "pool", "owner", "expires", "name", "host-key")
)
HEAD = "head"
POOL_KEYS = {"name", "type", "count", "spot", "zone", "disk_gb", "public_address", "max_price"}


@dataclass(frozen=True)
class Pool:
    """Machines of one kind; the head is a pool of one.

    Attributes
    ----------
    name, type : str
        Instance type such as ``c7i.large``.
    count : int
    spot : bool
        Bought on the spot market, and taken back when AWS wants.
    zone : str
        The letter of the availability zone; empty for the first one that has the type.
    disk_gb : int
        [GB]
    public_address : bool
        Whether the machines get an address of the internet, to fetch packages.
    max_price : float or None
        Most that a spot machine may cost [USD/h]; the on-demand price unless given.
    """

    name: str
    type: str
    count: int
    spot: bool = False
    zone: str = ""
    disk_gb: int = 16
    public_address: bool = True
    max_price: float | None = None

    @property
    def role(self) -> str:
        """``head`` or ``worker``."""
        return HEAD if self.name == HEAD else "worker"

    def machine(self, number: int) -> str:
        """Return the name of one of its machines."""
        # Not "head": that is the name of the inventory's group.
        return "head1" if self.name == HEAD else f"{self.name}-{number}"


@dataclass(frozen=True)
class Wanted:
    """A fleet, as its inventory describes it."""

    fleet: str
    region: str
    pools: tuple[Pool, ...]  # the head's first
    image: Mapping[str, str]
    network: ipaddress.IPv4Network
    zone_bits: int
    key_file: Path
    owner: str
    ttl_hours: float
    max_hourly_usd: float | None
    refill: bool = False  # only what AWS has taken back of spot pools, beside a head that runs

    @property
    def workers(self) -> int:
        """Number of workers."""
        return sum(pool.count for pool in self.pools[1:])


def read(settings: Mapping[str, Any]) -> Wanted:
    """Return what is wanted; every value is checked here."""
    fleet = str(settings["fleet"])
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,39}", fleet):
        raise AwsError(
            f"fleet_name is {fleet!r}. On AWS use 1 to 40 small letters, digits and -: resources"
            " are named after it."
        )
    head = settings["head"]
    if not isinstance(head, Mapping):
        raise AwsError("aws_machines_head must be like {type: t3.medium}.")
    pools = [_pool({**head, "name": HEAD, "count": 1}, "aws_machines_head")]
    for number, entry in enumerate(settings["pools"], 1):
        where = f"entry {number} of aws_machines_pools"
        if not isinstance(entry, Mapping) or "name" not in entry:
            raise AwsError(f"{where} has no name. Write {{name: spot, type: c7i.large, count: 2}}.")
        pools.append(_pool(entry, f"pool {entry['name']!r}"))
        if pools[-1].name in [pool.name for pool in pools[:-1]]:
            raise AwsError(f"two pools are called {pools[-1].name!r}. Give each its own name.")
    ceiling = settings["max_hourly_usd"]
    try:
        ttl_hours = float(settings["ttl_hours"])
        most = None if ceiling in (None, "") else float(ceiling)
    except (TypeError, ValueError):
        raise AwsError(
            f"fleet_ttl_hours is {settings['ttl_hours']!r} and aws_max_hourly_usd is"
            f" {ceiling!r}; both are numbers."
        ) from None
    if not 0 < ttl_hours <= 24 * 365:
        raise AwsError(
            f"fleet_ttl_hours is {ttl_hours:g}; on AWS every machine has an end: use more than 0."
        )
    try:
        network = ipaddress.IPv4Network(str(settings["network"]))
        zone_bits = int(settings["zone_bits"])
    except ValueError as error:
        raise AwsError(
            f"aws_machines_network is {settings['network']!r} ({error}). Write it like"
            " 10.77.0.0/16."
        ) from None
    if not 16 <= network.prefixlen <= zone_bits - 4 <= 24 or not network.is_private:
        raise AwsError(
            "aws_machines_network must be a private network of 16 bits or more, and"
            " aws_machines_zone_bits at least 4 more and at most 28; such as 10.77.0.0/16 and 20."
        )
    wanted = Wanted(
        fleet=fleet,
        region=str(settings["region"]),
        pools=tuple(pools),
        image=settings["image"],
        network=network,
        zone_bits=zone_bits,
        key_file=Path(str(settings["public_key_file"])).expanduser(),
        owner=str(settings["owner"] or ""),
        ttl_hours=ttl_hours,
        max_hourly_usd=most,
        refill=_true(settings.get("refill", False)),
    )
    _check_key(wanted.key_file)
    return wanted


def _pool(entry: Mapping[str, Any], where: str) -> Pool:
    unknown = set(entry) - POOL_KEYS
    if unknown:
        raise AwsError(
            f"{where} has {', '.join(sorted(unknown))}, which is no setting of a pool. There are"
            f" {', '.join(sorted(POOL_KEYS))}."
        )
    lacking = {"name", "type", "count"} - set(entry)
    if lacking:
        raise AwsError(f"{where} lacks {', '.join(sorted(lacking))}.")
    name = str(entry["name"])
    if not re.fullmatch(r"[a-z][a-z0-9]{0,19}", name):
        raise AwsError(f"a pool is called {name!r}. Use 1 to 20 small letters and digits.")
    if name == HEAD and where != "aws_machines_head":
        raise AwsError("a pool is called 'head', which is the head's name. Call it otherwise.")
    if name == HEAD and _true(entry.get("spot", False)):
        raise AwsError(
            "aws_machines_head is spot: AWS would take it back with everybody's results. Use spot"
            " for pools of workers."
        )
    zone = str(entry.get("zone") or "")
    if not re.fullmatch(r"[a-z]?", zone):
        raise AwsError(f"{where} has the zone {zone!r}. Give the zone's letter only: a, b, c ...")
    try:
        count, disk = int(entry["count"]), int(entry.get("disk_gb", 16))
        price = entry.get("max_price")
        most = None if price in (None, "") else float(price)
    except (TypeError, ValueError):
        raise AwsError(f"{where}: count and disk_gb are whole numbers, max_price is one.") from None
    if count < 0 or not 8 <= disk <= 16384:
        raise AwsError(f"{where}: count is at least 0, disk_gb is 8 to 16384.")
    return Pool(
        name=name,
        type=str(entry["type"]),
        count=count,
        spot=_true(entry.get("spot", False)),
        zone=zone,
        disk_gb=disk,
        public_address=_true(entry.get("public_address", True)),
        max_price=most,
    )


def _true(value: Any) -> bool:
    return str(value).lower() in ("true", "yes", "1")


def _check_key(path: Path) -> None:
    """Refuse a key that is missing, or that is the private one."""
    try:
        text = path.read_text()
    except OSError as error:
        raise AwsError(
            f"your SSH public key {str(path)!r} cannot be read ({error.strerror}). Make one with"
            " `ssh-keygen -t ed25519`, or name another with aws_machines_public_key_file."
        ) from None
    if "PRIVATE KEY" in text:
        raise AwsError(
            f"{str(path)!r} is a private key, which must not leave this computer. Set"
            " aws_machines_public_key_file to the one that ends in .pub."
        )
    if not text.startswith(("ssh-ed25519 ", "ssh-rsa ")):
        raise AwsError(
            f"{str(path)!r} is no public key that EC2 takes. Use ssh-ed25519 or ssh-rsa."
        )
