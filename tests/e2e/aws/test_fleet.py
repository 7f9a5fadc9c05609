"""A fleet on AWS from nothing to nothing: one after the other, on machines that boot.

The tests are steps and need each other's outcome, in this order. The machines behind the
instances are real ones on this computer; see cloud/instances.py for where AWS differs.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from e2e.aws.account import Fleet, changed, kill, new_key, require_control_node, running
from e2e.faults.disturbed import optimise
from e2e.processes import awaited
from e2e.running import MODELS, Evolution, Upstream, course, differences, quick

pytestmark = [
    pytest.mark.timeout(1200),
    pytest.mark.skipif(os.geteuid() != 0, reason="booting machines needs root"),
]

NETWORK = "10.231.92.0/22"
SITE = "site.yml"
DESTROY = "playbooks/destroy.yml"
STEADY = {"name": "steady", "type": "c7i.large", "count": 1}
SPOT = {"name": "spot", "type": "c7i.large", "count": 1, "spot": True, "public_address": False}
RUN, LATER_RUN = "neurofleet-runs/quick", "neurofleet-runs/later"
#: 72 units of 0.5, 1 and 2 s.
EVOLUTION = Evolution(quick(pause_s=2.0), offspring=8, generations=3)
#: 54 of them, on one engine.
LATER = Evolution(quick(pause_s=2.0), offspring=6, generations=3, seed=7)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, calls: dict[str, set[str]]) -> Iterator[Fleet]:
    require_control_node()
    if not shutil.which("apt-get"):
        pytest.skip("booting machines needs Debian's tools")
    home = tmp_path_factory.mktemp("aws")
    new_key(home)
    with running(home / "cloud.log", "--network", NETWORK) as cloud:
        settings = {
            "fleet_name": "circle",
            "aws_machines_head": {"type": "t3.small"},
            "aws_machines_pools": [STEADY, SPOT],
            "aws_machines_network": NETWORK,
            "aws_machines_zone_bits": 26,
            "aws_machines_address_url": f"{cloud.endpoint}/_cloud/address",
            "aws_machines_boot_s": 120,
            "fleet_ttl_hours": 2,
            "ipengine_count": 1,
            "ipengine_memory_mb": 200,
            "results_dir": str(home / "results"),
        }
        found = Fleet(cloud, home, settings)
        yield found
        calls["fleet"] = set(cloud.ask("calls"))
        assert cloud.ask("trouble") == []


@pytest.fixture(autouse=True)
def _what_was_said(request: pytest.FixtureRequest, fleet: Fleet) -> Iterator[None]:
    """Show the end of the playbooks' and the machines' output when a step fails."""
    failed = request.session.testsfailed
    yield
    if request.session.testsfailed > failed:
        log = fleet.home / "playbooks.log"
        print(log.read_text()[-6000:] if log.exists() else "")
        for name, machine in fleet.instances().items():
            print(f"--- {name}", fleet.cloud.ask("console", id=machine["InstanceId"]))


def boot_ids(fleet: Fleet) -> dict[str, tuple[str, str]]:
    """Return what changes when a machine or its engine is started anew."""
    ask = (
        "cat /proc/sys/kernel/random/boot_id;"
        " systemctl show --property=InvocationID --value ipengine@1.service"
    )
    return {
        name: tuple(fleet.ssh(name, ask).stdout.split())  # type: ignore[misc]
        for name in fleet.instances()
        if name != "head1"
    }


def started(fleet: Fleet, evolution: Evolution, run: str) -> subprocess.Popen[str]:
    """Start an optimisation on the head."""
    words = shlex.join(optimise(evolution, f"--run-dir={run}"))
    return fleet.begin(["ssh", "-F", str(fleet.ssh_config), "head", words])


def end_in(fleet: Fleet, machine: str, seconds: float) -> None:
    """Ask a machine's guard for another end, as the fleet's account may."""
    wish = json.dumps({"until": time.time() + seconds})
    folder = "/var/lib/neurofleet/work/guard"
    fleet.ssh(machine, f"echo '{wish}' | sudo -u neurofleet tee {folder}/wish.json")


def scored(fleet: Fleet, run: str, host: str = "%") -> int:
    """Return how many units hosts of this name have scored; none before there is a store."""
    count = (
        f"import sqlite3; print(sqlite3.connect('file:{run}/scores.sqlite?mode=ro', uri=True)"
        f".execute('SELECT count(*) FROM score WHERE host LIKE ?', ['{host}']).fetchone()[0])"
    )
    said = fleet.ssh("head", f'neurofleet-python -c "{count}"').stdout.strip()
    return int(said or 0)


def head_is_stopped(fleet: Fleet) -> bool:
    return "head1" in fleet.instances("stopped")


def test_site_makes_a_fleet_that_computes(fleet: Fleet) -> None:
    done = fleet.run(SITE)
    assert done.code == 0, done.out[-6000:]
    machines = fleet.instances()
    assert set(machines) == {"head1", "steady-1", "spot-1"}
    # A worker without a public address was reached through the head.
    assert "PublicIpAddress" not in machines["spot-1"]
    ids = [item["InstanceId"] for item in machines.values()]
    for item in machines.values():
        tags = {tag["Key"]: tag["Value"] for tag in item["Tags"]}
        assert {
            f"neurofleet:{word}" for word in ("fleet", "role", "pool", "owner", "expires")
        } <= set(tags)
        assert item["MetadataOptions"]["HttpTokens"] == "required"
    volumes = fleet.api("describe_volumes")["Volumes"]
    assert len(volumes) == 3
    assert all(volume["Encrypted"] for volume in volumes)
    attribute = "instanceInitiatedShutdownBehavior"
    shutdown = [
        fleet.api("describe_instance_attribute", InstanceId=i, Attribute=attribute) for i in ids
    ]
    ends = [s["InstanceInitiatedShutdownBehavior"]["Value"] for s in shutdown]
    # The head keeps its disk, with everybody's results.
    assert ends == ["stop" if name == "head1" else "terminate" for name in machines]
    # No account but root asks the metadata service, which has the machine's host key.
    url = "http://169.254.169.254/latest/user-data"
    python = f"python3 -c 'import urllib.request as u; u.urlopen(\"{url}\")'"
    assert "Connection refused" in fleet.ssh("spot-1", python).stderr
    # Root needs a token.
    assert "HTTP Error 401" in fleet.ssh("spot-1", f"sudo {python}").stderr
    told = fleet.ssh("head", "neurofleet cost --json")
    costs = json.loads(told.stdout)
    assert {pool["pool"]: pool["machines"] for pool in costs["pools"]} == {
        "head": 1, "steady": 1, "spot": 1,
    }  # fmt: skip
    assert costs["hourly_usd"] == pytest.approx(0.1263, abs=0.0002)


def test_second_run_makes_nothing(fleet: Fleet) -> None:
    done = fleet.run("playbooks/provision.yml")
    assert done.code == 0, done.out[-6000:]
    assert changed(done) == {"localhost": 0}


def test_scale_adds_a_worker_and_touches_no_other(fleet: Fleet) -> None:
    before = boot_ids(fleet)
    fleet.settings["aws_machines_pools"] = [{**STEADY, "count": 2}, SPOT]
    done = fleet.run("playbooks/scale.yml")
    assert done.code == 0, done.out[-6000:]
    assert set(fleet.instances()) == {"head1", "steady-1", "steady-2", "spot-1"}
    # For these it was the second run of all roles.
    told = changed(done)
    assert (told["steady-1"], told["spot-1"]) == (0, 0), done.out[-6000:]
    after = boot_ids(fleet)
    assert {name: after[name] for name in before} == before


def test_extend_puts_the_end_of_every_machine_off(fleet: Fleet) -> None:
    told = fleet.ssh("head", "neurofleet extend 3 --json")
    assert told.returncode == 0, told.stderr
    ends = json.loads(told.stdout)["ends"]
    assert set(ends) == {"head", "steady-1", "steady-2", "spot-1"}
    assert all(end == pytest.approx(time.time() + 3 * 3600, abs=60) for end in ends.values())
    timer = fleet.ssh(
        "steady-2", "systemctl show --property=TimersCalendar neurofleet-expiry.timer"
    )
    assert datetime.fromtimestamp(ends["steady-2"], UTC).strftime("%H:%M:%S UTC") in timer.stdout


def test_spot_notice_in_the_middle_of_a_generation_changes_no_number(
    fleet: Fleet, upstream: Upstream, tmp_path: Path
) -> None:
    copy = ["scp", "-q", "-r", "-F", str(fleet.ssh_config)]
    subprocess.run([*copy, MODELS / "quick", "head:"], env=fleet.env(), check=True, timeout=60)
    client = started(fleet, EVOLUTION, RUN)
    try:

        def some_are_scored() -> bool:
            assert client.poll() is None, client.communicate()[0]
            return scored(fleet, RUN) >= 4 and scored(fleet, RUN, "spot%") >= 1

        awaited(some_are_scored, 240, "units are scored, one of them by the spot machine")
        spot = fleet.instances()["spot-1"]["InstanceId"]
        taken = datetime.fromtimestamp(time.time() + 120, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        fleet.cloud.ask("notice", id=spot, time=taken)

        def stopped() -> bool:
            state = fleet.ssh("spot-1", "systemctl is-active ipengine@1.service").stdout
            return state.strip() in ("inactive", "failed")

        awaited(stopped, 120, "the engine has stopped")
        assert client.poll() is None, "the run was over before the notice"
        journal = fleet.ssh("spot-1", "sudo journalctl -u neurofleet-guard -o cat").stdout
        assert "AWS takes this machine at" in journal
        assert "the engines finish their units and take no more" in journal
        # The machine's own end, with a shortened clock: nobody may ask but the fleet's account.
        end_in(fleet, "spot-1", 3)
        awaited(lambda: "spot-1" not in fleet.instances(), 180, "the spot machine has ended itself")
        out, _ = client.communicate(timeout=400)
    finally:
        kill(client)
    assert client.returncode == 0, out
    brought = tmp_path / "checkpoint.pkl"
    subprocess.run([*copy, f"head:{RUN}/checkpoint.pkl", brought], env=fleet.env(), check=True)
    assert differences(course(brought), upstream.course(EVOLUTION)) == []
    cost = fleet.ssh("head", "neurofleet cost")
    assert "individuals evaluated in" in cost.stdout, cost.stderr


def test_scale_to_one_lets_the_worker_that_leaves_finish(fleet: Fleet) -> None:
    before = boot_ids(fleet)
    fleet.settings["aws_machines_pools"] = [STEADY, {**SPOT, "count": 0}]
    done = fleet.run("playbooks/scale.yml")
    assert done.code == 0, done.out[-6000:]
    assert set(fleet.instances()) == {"head1", "steady-1"}
    assert boot_ids(fleet) == {"steady-1": before["steady-1"]}
    costs = json.loads(fleet.ssh("head", "neurofleet cost --json").stdout)
    assert {pool["pool"]: pool["machines"] for pool in costs["pools"]} == {
        "head": 1, "steady": 1, "spot": 0,
    }  # fmt: skip


def test_head_at_its_end_stops_and_the_same_command_goes_on_when_it_is_started(
    fleet: Fleet, upstream: Upstream, tmp_path: Path
) -> None:
    head = fleet.instances()["head1"]["InstanceId"]
    client = started(fleet, LATER, LATER_RUN)
    try:

        def some_are_scored() -> bool:
            assert client.poll() is None, client.communicate()[0]
            return scored(fleet, LATER_RUN) >= 4

        awaited(some_are_scored, 240, "units are scored")
        end_in(fleet, "head", 25)
        out, _ = client.communicate(timeout=60)
    finally:
        kill(client)
    # The guard has asked the run to stop before the machine does.
    assert "stopped at a safe point" in out, out
    awaited(lambda: head_is_stopped(fleet), 180, "the head has stopped")

    done = fleet.run(SITE)
    assert done.code == 0, done.out[-6000:]
    assert fleet.instances()["head1"]["InstanceId"] == head
    journal = fleet.ssh("head", "sudo journalctl -u neurofleet-guard -o cat").stdout
    assert "This machine stops at" in journal
    assert f"/home/admin/{LATER_RUN} was asked to stop at a safe point" in journal
    timer = "systemctl show --property=TimersCalendar --value neurofleet-expiry.timer"
    told = re.search(r"OnCalendar=(\S+ \S+) UTC", fleet.ssh("head", timer).stdout)
    assert told
    end = datetime.strptime(told[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC).timestamp()
    assert time.time() + 3600 < end < time.time() + 2 * 3600

    before = scored(fleet, LATER_RUN)
    assert before >= 4
    client = started(fleet, LATER, LATER_RUN)
    try:
        out, _ = client.communicate(timeout=400)
    finally:
        kill(client)
    assert client.returncode == 0, out
    counts = re.search(r"(\d+) simulated, (\d+) from the store", out)
    assert counts
    assert int(counts[1]) + before == scored(fleet, LATER_RUN), out
    copy = ["scp", "-q", "-F", str(fleet.ssh_config)]
    brought = tmp_path / "checkpoint.pkl"
    subprocess.run(
        [*copy, f"head:{LATER_RUN}/checkpoint.pkl", brought], env=fleet.env(), check=True
    )
    assert differences(course(brought), upstream.course(LATER)) == []


def test_idle_worker_ends_first_and_then_the_head_stops(fleet: Fleet) -> None:
    fleet.settings["fleet_idle_minutes"] = 1
    done = fleet.run("playbooks/configure.yml", "--tags", "guards")
    assert done.code == 0, done.out[-6000:]
    awaited(lambda: "steady-1" not in fleet.instances(), 180, "the idle worker has ended")
    awaited(lambda: head_is_stopped(fleet), 240, "the head has stopped")


def test_destroy_fetches_results_of_a_stopped_head_and_leaves_nothing(fleet: Fleet) -> None:
    assert fleet.resources() != []
    done = fleet.run(DESTROY, confirm="circle")
    assert done.code == 0, done.out[-6000:]
    for run in (RUN, LATER_RUN):
        here = fleet.home / "results" / "circle" / "home/admin" / run
        assert (here / "report.html").stat().st_size > 10_000
        assert (here / "checkpoint.pkl").exists()
    assert "nothing of the fleet circle is left" in done.out
    assert fleet.resources() == []
    for operation, key in (
        ("describe_vpcs", "Vpcs"), ("describe_volumes", "Volumes"),
        ("describe_key_pairs", "KeyPairs"), ("describe_launch_templates", "LaunchTemplates"),
    ):  # fmt: skip
        left: list[Any] = fleet.api(operation)[key]
        assert [item for item in left if not item.get("IsDefault")] == []
