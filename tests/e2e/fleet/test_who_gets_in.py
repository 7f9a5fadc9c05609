"""What is open on the head, to whom; what services may do; who reads which key."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from e2e.booted import (
    ADDRESSES,
    CLIENTS,
    ENGINE_PORTS,
    HEAD,
    SECURITY,
    WORKERS,
    Fleet,
    outsider,
)

# The fleet is made before the first of them, which has a limit of its own.
pytestmark = pytest.mark.timeout(300, func_only=True)


@pytest.fixture
def refusals(fleet: Fleet) -> Iterator[Callable[[], list[str]]]:
    """What the head's firewall has logged in this test; a machine's kernel is this computer's."""
    switch = Path("/proc/sys/net/netfilter/nf_log_all_netns")

    def logged() -> list[str]:
        said = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
        return [line for line in said.splitlines() if "neurofleet refused: " in line]

    fleet.done(HEAD, "systemctl reload neurofleet-firewall")  # it forgets whom it has logged
    before, earlier = switch.read_text(), set(logged())
    switch.write_text("1")
    try:
        yield lambda: [line for line in logged() if line not in earlier]
    finally:
        switch.write_text(before)


def test_stranger_on_the_network_finds_ssh_and_is_logged_once(
    fleet: Fleet, refusals: Callable[[], list[str]]
) -> None:
    with outsider() as inside:
        command = [*inside, "/usr/bin/python3", str(CLIENTS / "scan.py"), ADDRESSES[HEAD]]
        seen = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    assert seen.stdout.split() == ["22"]
    assert ["SRC=10.231.77.99 " in line for line in refusals()] == [True]


def test_worker_finds_ssh_and_the_nine_engine_ports(fleet: Fleet) -> None:
    seen = fleet.client(WORKERS[0], "scan.py", ADDRESSES[HEAD], python="python3")
    assert seen.out.split() == ["22", *map(str, ENGINE_PORTS)], seen.err


def test_client_ports_listen_on_loopback_only(fleet: Fleet) -> None:
    sockets = fleet.done(HEAD, "ss --listening --tcp --numeric --no-header | awk '{print $4}'")
    ours = {}
    for socket in sockets.split():
        address, _, port = socket.rpartition(":")
        if 24100 <= int(port) < 24118:
            ours.setdefault(int(port), set()).add(address)
    # The controller's own children register on loopback.
    assert ours.pop(ENGINE_PORTS[0]) == {ADDRESSES[HEAD], "127.0.0.1"}
    for port in ENGINE_PORTS[1:]:
        assert ours.pop(port) == {ADDRESSES[HEAD]}
    assert len(ours) == 9
    assert set().union(*ours.values()) == {"127.0.0.1"}


@pytest.mark.parametrize(("host", "unit"), [(HEAD, "ipcontroller"), (WORKERS[0], "ipengine@1")])
def test_sandbox_is_rated_at_most_two(fleet: Fleet, host: str, unit: str) -> None:
    fleet.done(host, f"systemd-analyze security --no-pager --threshold=20 {unit}.service")


def test_secrets_are_where_they_must_be_and_nowhere_else(fleet: Fleet) -> None:
    found = "find / -xdev '(' -name '*client.json' -o -name keys.json ')' -path '*security*'"
    for worker in WORKERS:
        assert fleet.done(worker, found) == ""
        mode = f"stat --format '%a %U %G' {SECURITY}/ipcontroller-engine.json"
        assert fleet.done(worker, mode) == "640 root neurofleet"
    assert fleet.done(HEAD, f"stat --format '%a %U' {SECURITY}/keys.json") == "400 neurofleet"
    client = f"{SECURITY}/ipcontroller-client.json"
    assert fleet.ssh(HEAD, f"cat {client}", user="user").code == 0
    assert fleet.ssh(HEAD, f"runuser -u nobody -- cat {client}").code != 0
    secret = fleet.done(HEAD, f"cat {SECURITY}/keys.json")
    for key in set(secret.replace('"', " ").split()):
        if len(key) > 30:
            journals = fleet.ssh(HEAD, f"journalctl --no-pager | grep --count --fixed '{key}'")
            assert journals.out.strip() == "0"
