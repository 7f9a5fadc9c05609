"""The network: a bridge, forwarding and masquerading."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from .system import fail, remove_tree, run, say, write
from .wanted import Fleet

FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
#: Which fleets on this computer need forwarding; forgotten with it at a reboot.
FORWARDING_USERS = Path("/run/neurofleet-forwarding")


def require_free_network(fleet: Fleet) -> None:
    """Fail if something else on this computer has the network."""
    for link in links():
        for address in link.get("addr_info", []):
            other = ipaddress.ip_network(f"{address['local']}/{address['prefixlen']}", strict=False)
            mine = link["ifname"] == fleet.bridge
            if not mine and other.version == 4 and other.overlaps(fleet.network.network):
                fail(
                    f"the network {fleet.network.network} is in use on {link['ifname']}."
                    " Set local_machines_network and the machines' ansible_host to another."
                )


def links() -> list[dict[str, Any]]:
    """Return this computer's network interfaces with their addresses."""
    return list(json.loads(run("ip", "-json", "addr", "show")))


def hardware_address(fleet: Fleet) -> str:
    """Return a hardware address of the bridge's own.

    Without one a bridge takes the lowest of its machines', and gets another when that machine
    ends: the others then send to an address that nobody has, for up to a minute.
    """
    digest = hashlib.sha256(f"{fleet.bridge} {fleet.network}".encode()).digest()
    return bytes([0x02, *digest[:5]]).hex(":")


def make_network(fleet: Fleet) -> None:
    """Make the bridge, forwarding and the masquerade rule."""
    mine = next((link for link in links() if link["ifname"] == fleet.bridge), None)
    if mine is None:
        run("ip", "link", "add", fleet.bridge, "address", hardware_address(fleet), "type", "bridge")
        say(f"bridge {fleet.bridge} made")
    local = [a["local"] for a in (mine or {}).get("addr_info", [])]
    if str(fleet.network.ip) not in local:
        run("ip", "addr", "replace", str(fleet.network), "dev", fleet.bridge)
    run("ip", "link", "set", fleet.bridge, "up")

    forward(fleet.bridge)

    table = f"inet {fleet.bridge}"
    if subprocess.run(["nft", "list", "table", *table.split()], capture_output=True).returncode:
        network = fleet.network.network
        rules = f"""
            table {table} {{
              chain postrouting {{
                type nat hook postrouting priority srcnat
                ip saddr {network} ip daddr != {network} masquerade
              }}
              chain forward {{
                type filter hook forward priority filter
                iifname "{fleet.bridge}" accept
                oifname "{fleet.bridge}" ct state established,related accept
              }}
            }}"""
        run("nft", "-f", "-", stdin=rules)
        say(f"nftables table {table} made")


def remove_network(bridge: str) -> None:
    """Remove bridge and rules; put forwarding back."""
    if shutil.which("nft"):
        subprocess.run(["nft", "delete", "table", "inet", bridge], capture_output=True, check=False)
    # The kernel removes the links of a machine that was killed, but takes its time.
    listed = subprocess.run(
        ["ip", "-json", "link", "show", "master", bridge], capture_output=True, check=False
    ).stdout
    for link in [*(port["ifname"] for port in json.loads(listed or "[]")), bridge]:
        subprocess.run(["ip", "link", "delete", link], capture_output=True, check=False)
    forward_no_longer(bridge)
    say(f"bridge {bridge} removed")


def forward(bridge: str) -> None:
    """Switch IPv4 forwarding on, and remember for whom and what it was."""
    FORWARDING_USERS.mkdir(parents=True, exist_ok=True)
    before = FORWARDING_USERS / ".before"
    if not before.exists():
        write(before, FORWARDING.read_text())
    (FORWARDING_USERS / bridge).touch()
    if FORWARDING.read_text().strip() != "1":
        FORWARDING.write_text("1")
        say("IPv4 forwarding switched on")


def forward_no_longer(bridge: str) -> None:
    """Put forwarding back to what it was, unless another fleet on this computer needs it."""
    (FORWARDING_USERS / bridge).unlink(missing_ok=True)
    before = FORWARDING_USERS / ".before"
    if before.exists() and [*FORWARDING_USERS.iterdir()] == [before]:
        FORWARDING.write_text(before.read_text())
        remove_tree(FORWARDING_USERS)
