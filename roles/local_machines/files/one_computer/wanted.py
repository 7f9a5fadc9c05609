"""What is wanted, checked."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .system import fail

#: A person's account on every machine, without any right.
ACCOUNT = "user"


@dataclass(frozen=True)
class Fleet:
    """What is wanted.

    Parameters
    ----------
    directory, cache : Path
        Of the machines, and of the images.
    release : str
        Debian's code name.
    bridge : str
        Name of the bridge, of the nftables table and of the cgroup.
    network : ipaddress.IPv4Interface
        The bridge's own address, with the network's prefix length.
    machines : dict
        Address by name.
    packages : tuple of str
        Debian packages in the image beyond the usual ones.
    binds : dict
        Directory in the machines by directory of this computer, shared by all.
    """

    directory: Path
    cache: Path
    release: str
    bridge: str
    network: ipaddress.IPv4Interface
    machines: dict[str, str]
    packages: tuple[str, ...] = ()
    binds: dict[str, str] = field(default_factory=dict)

    def root(self, name: str) -> Path:
        """Return where a machine's root directory is mounted."""
        return self.directory / "machines" / name / "root"


def fleet_of(data: dict[str, Any]) -> Fleet:
    """Return the wanted fleet; every value is checked here."""
    network = ipaddress.IPv4Interface(data["network"])
    machines = {str(name): str(address) for name, address in data["machines"].items()}
    for name, address in machines.items():
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,39}", name):
            fail(f"{name!r} cannot be a machine's name. Use small letters, digits and -.")
        try:
            fits = ipaddress.IPv4Address(address) in network.network
        except ValueError:
            fits = False
        if not fits or address == str(network.ip):
            fail(
                f"machine {name} has the address {address!r}, which is not one of"
                f" {network.network} beside {network.ip}. Give it another ansible_host."
            )
    if len(set(machines.values())) < len(machines):
        fail("two machines have the same address. Give each its own ansible_host.")
    if not re.fullmatch(r"[a-z][a-z0-9]{0,14}", data["bridge"]):
        fail(f"the bridge's name {data['bridge']!r} must be 1 to 15 small letters and digits.")
    return Fleet(
        directory=Path(data["directory"]),
        cache=Path(data["cache"]),
        release=str(data["release"]),
        bridge=str(data["bridge"]),
        network=network,
        machines=machines,
        packages=tuple(data.get("packages", ())),
        binds=dict(data.get("binds", {})),
    )
