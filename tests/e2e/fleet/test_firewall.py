"""The head's firewall locks nobody out, survives others' rules, and can be left off."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.booted import HEAD, Fleet, playbook
from e2e.processes import awaited
from e2e.running import Finished

# The fleet is made before the first of them, which has a limit of its own.
pytestmark = pytest.mark.timeout(600, func_only=True)

RULES = "/etc/neurofleet/firewall.nft"


def close(log: Path, **variables: Any) -> Finished:
    """Run the role with other settings."""
    options = ("--limit=head1", "--tags=firewall", "-e", json.dumps(variables))
    return playbook("playbooks/configure.yml", log, *options)


def rules(fleet: Fleet) -> str:
    """Return what is in force on the head; nothing without a firewall of ours."""
    return fleet.ssh(HEAD, "nft list table inet neurofleet").out


@pytest.fixture
def closed_again(fleet: Fleet, log: Path) -> Iterator[None]:
    """Leave the firewall as it was."""
    yield
    done = close(log)
    assert done.code == 0, done.out + done.err
    assert "policy drop" in rules(fleet)


def test_firewall_that_would_lock_people_out_opens_by_itself_and_can_be_left_off(
    fleet: Fleet, closed_again: None, log: Path
) -> None:
    before = fleet.done(HEAD, f"cat {RULES}")
    # As if the connection came in by another port than it does.
    elsewhere = {"__firewall_connection": {"stdout": "192.0.2.1 50000 192.0.2.2 2222"}}
    since = time.monotonic()
    done = close(log, firewall_undo_s=20, **elsewhere)
    assert done.code != 0, done.out
    said = " ".join(done.out.split())
    assert "could not be reached by a new connection after its firewall was closed" in said, said
    assert "port(s) 2222" in said
    awaited(lambda: fleet.ssh(HEAD, "true").code == 0, 60, "the head lets people in again")
    assert time.monotonic() - since < 120
    assert fleet.done(HEAD, f"cat {RULES}") == before
    assert "tcp dport 22 accept" in rules(fleet)
    assert fleet.done(HEAD, "ls -A /etc/neurofleet | grep -c firewall.nft") == "1"

    # A head that has a firewall of its own.
    done = close(log, firewall_enabled=False)
    assert done.code == 0, done.out + done.err
    assert rules(fleet) == ""

    opened = [8080, {"port": 5353, "protocol": "udp", "from": ["192.0.2.0/24", "2001:db8::/32"]}]
    done = close(log, firewall_open_ports=opened)
    assert done.code == 0, done.out + done.err
    found = rules(fleet)
    assert "tcp dport 8080 accept" in found
    assert "ip saddr 192.0.2.0/24 udp dport 5353 accept" in found
    assert "ip6 saddr 2001:db8::/32 udp dport 5353 accept" in found

    wrong = close(log, firewall_open_ports=[{"port": "ssh"}])
    assert wrong.code != 0
    assert "Write a TCP port as a number" in wrong.out


def test_firewall_stays_when_the_machines_own_rules_are_loaded(fleet: Fleet) -> None:
    """Debian's nftables.service flushes everything whenever it starts, stops or reloads."""
    try:
        for verb in ("start", "reload", "restart"):
            fleet.done(HEAD, f"systemctl {verb} nftables.service")
            awaited(lambda: "policy drop" in rules(fleet), 20, f"ours are there after {verb}")
    finally:
        fleet.done(HEAD, "systemctl stop nftables && systemctl start neurofleet-firewall")
    assert "policy drop" in rules(fleet)
