"""Whatever breaks, the fleet is whole again within a minute, and the journal says what it was."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import pytest

from e2e.booted import ADDRESSES, CLIENTS, ENGINE_PORTS, HEAD, SECURITY, WORKERS, Fleet
from e2e.processes import awaited

# The fleet is made before the first of them, which has a limit of its own.
pytestmark = pytest.mark.timeout(300, func_only=True)

WORKER = WORKERS[0]
MAIN = "$(systemctl show --property=MainPID --value ipcontroller)"


class Fault(NamedTuple):
    """What breaks, and which words of whose journal tell it."""

    host: str
    command: str
    unit: str
    told: str


FAULTS = {
    "controller killed": Fault(
        HEAD, f"kill -9 {MAIN}", "ipcontroller", "Main process exited, code=killed"
    ),
    "child of the controller killed": Fault(
        HEAD, f"kill -9 $(pgrep --parent {MAIN} | sed -n 4p)", "ipcontroller",
        "a child of the controller, ended (code -9): leaving, to be started anew",
    ),
    "heart monitor killed": Fault(
        HEAD, f"kill -9 $(pgrep --parent {MAIN} | tail -n 1)", "ipcontroller",
        "ended (code -9): leaving, to be started anew",
    ),
    "engine killed": Fault(
        WORKER, "systemctl kill --signal=KILL --kill-who=main ipengine@1.service", "ipengine@1",
        "Main process exited, code=killed",
    ),
    "engine and nanny killed": Fault(
        WORKER, "systemctl kill --signal=KILL ipengine@1.service", "ipengine@1",
        "Main process exited, code=killed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_killed_process_comes_back_and_the_journal_tells(fleet: Fleet, name: str) -> None:
    fault = FAULTS[name]
    keys = fleet.done(HEAD, f"sha256sum {SECURITY}/*.json")
    restarts = fleet.restarts(fault.host, fault.unit)
    before, since = fleet.now(fault.host), time.monotonic()
    fleet.done(fault.host, fault.command)
    awaited(lambda: fleet.restarts(fault.host, fault.unit) > restarts, 30, "systemd starts it anew")
    took = fleet.whole_again(since)
    print(f"{name}: whole after {took:.0f} s")
    assert fault.told in fleet.journal(fault.host, fault.unit, before)
    assert fleet.done(HEAD, f"sha256sum {SECURITY}/*.json") == keys


@pytest.mark.parametrize("host", [HEAD, WORKER])
def test_rebooted_machine_is_back_without_a_hand(fleet: Fleet, host: str) -> None:
    boot = fleet.boot(host)
    since = time.monotonic()
    fleet.done(host, "systemctl reboot")
    awaited(lambda: fleet.boot(host) not in ("", boot), 60, f"{host} boots again")
    took = fleet.whole_again(since)
    print(f"{host} rebooted: whole after {took:.0f} s")
    unit = "ipcontroller" if host == HEAD else "ipengine@1"
    assert f"Started {unit}" in fleet.journal(host, unit, "0")
    if host == HEAD:
        for worker in WORKERS:  # their guards noticed that the new hub does not know them
            assert "status=75" in fleet.journal(worker, "ipengine@1", "0")


@pytest.mark.parametrize("secret", ["key", "curve_serverkey"])
def test_client_with_a_wrong_key_gets_nothing_and_harms_nothing(fleet: Fleet, secret: str) -> None:
    before, since = fleet.now(HEAD), time.monotonic()
    main = fleet.done(HEAD, f"echo {MAIN}")
    tried = fleet.client(HEAD, "wrong_key.py", f"{SECURITY}/ipcontroller-client.json", secret)
    assert (tried.code, tried.err) == (1, "refused: Hub connection request timed out\n")
    fleet.whole_again(since)
    assert fleet.done(HEAD, f"echo {MAIN}") == main
    if secret == "key":  # without the server's key nothing even arrives
        assert "Invalid Signature" in fleet.journal(HEAD, "ipcontroller", before)


def test_garbage_on_every_open_port_harms_nothing(fleet: Fleet) -> None:
    before, since = fleet.now(HEAD), time.monotonic()
    main = fleet.done(HEAD, f"echo {MAIN}")
    ports = ["22", *map(str, ENGINE_PORTS)]
    sent = fleet.client(WORKER, "garbage.py", ADDRESSES[HEAD], *ports, python="python3")
    assert sent.code == 0, sent.err
    fleet.whole_again(since)
    assert fleet.done(HEAD, f"echo {MAIN}") == main
    assert "Traceback" not in fleet.journal(HEAD, "ipcontroller", before)


def test_stopped_worker_lets_its_engine_finish_the_unit_at_hand(fleet: Fleet, log: Path) -> None:
    fleet.copy(CLIENTS / "two_naps.py", HEAD, "/home/user", user="user")
    marker = "/var/lib/neurofleet/work/napping"
    client = fleet.begin(HEAD, f"neurofleet-python two_naps.py 8 {marker}", log, user="user")
    awaited(
        lambda: not client.running() or fleet.ssh(WORKER, f"rm {marker}").code == 0,
        60,
        "the worker's engine works",
    )
    # As the roles do it: the target alone would not be waited for.
    fleet.done(WORKER, "systemctl stop ipengines.target ipengine@*.service")
    assert fleet.ssh(WORKER, "systemctl is-active ipengine@1").out == "inactive\n"
    try:
        naps = client.ended(60)
    finally:
        fleet.done(WORKER, "systemctl start ipengines.target")
    assert (naps.code, naps.out.split()) == (0, list(WORKERS)), naps.err
    fleet.whole_again(time.monotonic())
