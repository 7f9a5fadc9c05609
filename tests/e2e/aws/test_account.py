"""What a run does to an account, without machines behind it: plan, faults, half-made fleets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from e2e.aws.account import (
    Cloud,
    Fleet,
    changed,
    kill,
    messages,
    new_key,
    require_control_node,
    running,
)
from e2e.processes import awaited

pytestmark = pytest.mark.timeout(1200)

PROVISION = "playbooks/provision.yml"
DESTROY = "playbooks/destroy.yml"


def fleet(cloud: Cloud, home: Path, name: str, **settings: Any) -> Fleet:
    new_key(home)
    usual = {
        "fleet_name": name,
        "aws_machines_head": {"type": "t3.small"},
        "aws_machines_pools": [
            {"name": "steady", "type": "c7i.large", "count": 1},
            {"name": "spot", "type": "c7i.large", "count": 1, "spot": True},
        ],
        "aws_machines_address_url": f"{cloud.endpoint}/_cloud/address",
        "aws_machines_boot_s": 0,
    }
    return Fleet(cloud, home, {**usual, **settings})


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory, calls: dict[str, set[str]]) -> Iterator[Cloud]:
    require_control_node()
    with running(tmp_path_factory.mktemp("cloud") / "cloud.log") as found:
        yield found
        calls["account"] = set(found.ask("calls"))


@pytest.fixture(autouse=True)
def _no_faults(cloud: Cloud) -> Iterator[None]:
    yield
    cloud.fail()


def shape(found: Fleet) -> dict[str, Any]:
    """Return what an account has of a fleet, without identifiers and times."""
    tagged = [{"Name": "tag:neurofleet:fleet", "Values": [found.name]}]
    groups = found.api("describe_security_groups", Filters=tagged)["SecurityGroups"]
    machines = found.instances().items()
    kinds = [line.split(" (")[0].rpartition(" ")[0] for line in found.resources()]
    return {
        "kinds": sorted(kinds),
        "machines": {n: (i["InstanceType"], i.get("InstanceLifecycle")) for n, i in machines},
        "rules": sorted(
            (group["GroupName"].replace(found.name, ""), rule["FromPort"], rule["ToPort"],
             len(rule["UserIdGroupPairs"]), [r["CidrIp"] for r in rule["IpRanges"]])
            for group in groups for rule in group["IpPermissions"]
        ),
    }  # fmt: skip


def test_check_says_plan_and_price_and_changes_nothing(cloud: Cloud, tmp_path: Path) -> None:
    mine = fleet(cloud, tmp_path, "checked")
    done = mine.run("site.yml", "--check")
    assert done.code == 0, done.out
    assert "launch head1: t3.small in eu-central-1a, debian-12-amd64-20250901-2222" in done.out
    assert "launch spot-1: c7i.large (spot) in eu-central-1a" in done.out
    # 0.0208 + 16 GB x 0.0952 / 730 h + 0.005, the same with 0.0892, and with moto's spot price
    assert "cost of head: 1 x 0.0279 USD/h (price list of " in done.out
    assert "cost of the fleet: 0.1313 USD/h; ceiling 2 USD/h" in done.out
    assert changed(done) == {"localhost": 0}
    assert mine.resources() == []


def test_creation_killed_is_finished_by_the_next_run_and_ended_by_destroy(
    cloud: Cloud, tmp_path: Path
) -> None:
    """Fleets killed while AWS's answer to one call is on its way, beside one that is not."""
    points = {
        "kgate": "CreateInternetGateway",
        "kgroup": "CreateSecurityGroup",
        "krun": "RunInstances",
        "gone": "RunInstances",
    }
    fleets = {name: fleet(cloud, tmp_path / name, name) for name in ("whole", *points)}
    cloud.fail(*({"action": a, "fleet": name, "hold": True} for name, a in points.items()))
    with ThreadPoolExecutor() as pool:
        undisturbed = pool.submit(fleets["whole"].run, PROVISION)
        begun = {name: fleets[name].start(PROVISION) for name in points}

        def all_are_killed() -> bool:
            # At once: the program asks again when an answer takes a minute.
            held = cloud.ask("held")
            for name in [n for n in begun if f"{n}:{points[n]}" in held]:
                kill(begun.pop(name))
            return not begun

        try:
            awaited(all_are_killed, 300, f"these calls are held: {points}")
        finally:
            for process in begun.values():
                kill(process)
        cloud.fail()
        _make_second_gateway(fleets["kgate"])
        again = {
            name: pool.submit(fleets[name].run, PROVISION) for name in points if name[0] == "k"
        }
        # Some of the machines are there, the call for the others was never made.
        assert 0 < len(fleets["gone"].instances()) <= 3
        ended = fleets["gone"].run(DESTROY, confirm="gone", fetch=False)
        assert ended.code == 0, ended.out
        assert fleets["gone"].resources() == []
        for run in (undisturbed, *again.values()):
            assert run.result().code == 0, run.result().out
    shapes = {name: shape(fleets[name]) for name in again}
    shapes["kgate"]["kinds"].remove("internet gateway")
    assert list(shapes.values()) == [shape(fleets["whole"])] * 3
    for name in again:
        done = fleets[name].run(DESTROY, confirm=name, fetch=False)
        assert done.code == 0, done.out
        assert fleets[name].resources() == []
    # Four fleets have ended in this account, and none of them took anything of the fifth.
    assert len(fleets["whole"].instances()) == 3
    assert fleets["whole"].program("destroy")["changed"]
    assert fleets["whole"].resources() == []


def _make_second_gateway(mine: Fleet) -> None:
    """Make the one of a second try, after the first try's answer was lost."""
    tags = [{"Key": "neurofleet:fleet", "Value": mine.name}]
    made = mine.api(
        "create_internet_gateway",
        TagSpecifications=[{"ResourceType": "internet-gateway", "Tags": tags}],
    )["InternetGateway"]["InternetGatewayId"]
    (network,) = mine.api(
        "describe_vpcs", Filters=[{"Name": "tag:neurofleet:fleet", "Values": [mine.name]}]
    )["Vpcs"]
    mine.api("attach_internet_gateway", InternetGatewayId=made, VpcId=network["VpcId"])


def _wrong(**settings: Any) -> dict[str, Any]:
    return settings


POOL = {"name": "a", "type": "c7i.large", "count": -1}
HEAD = {"type": "t3.small", "sise": 3}


WRONG: list[tuple[dict[str, Any], dict[str, str], str]] = [
    (_wrong(aws_machines_region="eu-central-9"), {}, "no region of EC2. Use one of"),
    (_wrong(aws_machines_head={"type": "t9.huge"}), {}, "no machines of the type 't9.huge'"),
    (_wrong(aws_machines_image={"id": "ami-0123456789abcdef0"}), {}, "Correct aws_machines_i"),
    (_wrong(aws_machines_image={"owner": "1", "name": "x"}), {}, "Correct aws_machines_image"),
    (_wrong(aws_machines_public_key_file="/none.pub"), {}, "Make one with `ssh-keygen"),
    (_wrong(aws_max_hourly_usd=0.05), {}, "more than aws_max_hourly_usd allows (0.05)"),
    (_wrong(aws_machines_head=HEAD), {}, "sise, which is no setting"),
    (_wrong(aws_machines_pools=[POOL]), {}, "at least 0"),
    (_wrong(aws_machines_head={"type": "m7i.large"}), {}, "the price of m7i.large is unknown"),
    (_wrong(aws_machines_address_url="http://127.0.0.1:9/"), {}, "Set aws_machines_ssh_from"),
    (_wrong(fleet_ttl_hours=0), {}, "on AWS every machine has an end"),
    ({}, {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "you have credentials"),
    ({}, {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "the network"),
]


def test_wrong_input_is_one_message_with_the_remedy(cloud: Cloud, tmp_path: Path) -> None:
    def attempt(number: int) -> str:
        """Return what is not as it should be, nothing if all is."""
        settings, environment, said = WRONG[number]
        mine = fleet(cloud, tmp_path / str(number), f"wrong{number}", **settings)
        mine.environment = environment
        done = mine.run(PROVISION)
        found = messages(done)
        right = done.code != 0 and len(found) == 1 and said in found[0]
        mine.environment = {}
        right = right and "Traceback" not in done.out and mine.resources() == []
        return "" if right else f"{settings} {environment}: not {said!r}:\n{done.out}"

    with ThreadPoolExecutor(3) as pool:
        assert [text for text in pool.map(attempt, range(len(WRONG))) if text] == []


def test_faults_of_aws_are_retried_or_named_and_the_fleet_is_mended(
    cloud: Cloud, tmp_path: Path
) -> None:
    mine = fleet(cloud, tmp_path, "faulty")
    spot = {"LaunchTemplate.LaunchTemplateName": "faulty-spot"}
    cloud.fail(
        {"action": "DescribeInstances", "code": "RequestLimitExceeded", "times": 2, "status": 503},
        {"action": "CreateVpc", "code": "RequestLimitExceeded", "times": 1, "status": 503},
        {"action": "RunInstances", "code": "InsufficientInstanceCapacity", "where": spot},
    )
    done = mine.run(PROVISION)
    assert done.code == 0, done.out
    assert "spot-1: AWS has no c7i.large spot machine in eu-central-1a now" in done.out
    assert set(mine.instances()) == {"head1", "steady-1"}

    # A quota that is reached; then the pool is filled by the next run.
    cloud.fail({"action": "RunInstances", "code": "VcpuLimitExceeded", "times": -1})
    done = mine.run(PROVISION)
    assert done.code != 0
    assert len(messages(done)) == 1
    assert "VcpuLimitExceeded" in messages(done)[0]
    assert "Ask for more in AWS's Service Quotas" in messages(done)[0]
    cloud.fail()

    # By hand: the world let in, the engines' ports closed, a machine ended, one stopped.
    tagged = [{"Name": "tag:neurofleet:fleet", "Values": ["faulty"]}]
    groups = mine.api("describe_security_groups", Filters=tagged)["SecurityGroups"]
    head = next(group for group in groups if group["GroupName"] == "faulty-head")
    right = sorted(json.dumps(rule) for rule in head["IpPermissions"])
    engines = [rule for rule in head["IpPermissions"] if rule["FromPort"] == 24100]
    world = {
        "IpProtocol": "tcp",
        "FromPort": 1,
        "ToPort": 65535,
        "IpRanges": [{"CidrIp": "0.0.0.0/0"}],
    }
    mine.api("authorize_security_group_ingress", GroupId=head["GroupId"], IpPermissions=[world])
    mine.api("revoke_security_group_ingress", GroupId=head["GroupId"], IpPermissions=engines)
    before = mine.instances()
    mine.api("terminate_instances", InstanceIds=[before["steady-1"]["InstanceId"]])
    mine.api("stop_instances", InstanceIds=[before["head1"]["InstanceId"]])
    # And the pool that is to be filled gets larger disks: a new version of its template.
    mine.settings["aws_machines_pools"][1]["disk_gb"] = 20
    # A port that was opened in the settings instead.
    mine.settings["firewall_open_ports"] = [{"port": 8888, "from": ["192.0.2.0/24"]}]
    done = mine.run(PROVISION)
    assert done.code == 0, done.out
    assert "faulty-head: tcp 1-65535 from 0.0.0.0/0" in done.out, done.out
    volumes = mine.api("describe_volumes", Filters=tagged)["Volumes"]
    assert sorted(v["Size"] for v in volumes if v["State"] == "in-use") == [16, 16, 20]
    after = mine.instances()
    assert set(after) == {"head1", "steady-1", "spot-1"}
    assert after["head1"]["InstanceId"] == before["head1"]["InstanceId"]
    assert after["steady-1"]["InstanceId"] != before["steady-1"]["InstanceId"]
    groups = mine.api("describe_security_groups", GroupIds=[head["GroupId"]])["SecurityGroups"]
    opened = [rule for rule in groups[0]["IpPermissions"] if rule["FromPort"] == 8888]
    assert [rule["IpRanges"][0]["CidrIp"] for rule in opened] == ["192.0.2.0/24"]
    kept = [rule for rule in groups[0]["IpPermissions"] if rule["FromPort"] != 8888]
    assert sorted(json.dumps(rule) for rule in kept) == right

    # A refill makes again what AWS took back, and neither what ended by itself nor what is idle;
    # rules of somebody else's address stay.
    for machine, how in (("spot-1", "take"), ("steady-1", "terminate")):
        cloud.ask(how, id=after[machine]["InstanceId"])
    elsewhere = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22}
    elsewhere["IpRanges"] = [{"CidrIp": "198.51.100.7/32"}]
    mine.api("authorize_security_group_ingress", GroupId=head["GroupId"], IpPermissions=[elsewhere])
    done = mine.run(PROVISION, aws_machines_refill=True)
    assert done.code == 0, done.out
    assert set(mine.instances()) == {"head1", "spot-1"}
    assert "198.51.100.7/32" in json.dumps(
        mine.api("describe_security_groups", GroupIds=[head["GroupId"]])["SecurityGroups"]
    )
    # Without a head that runs there is nothing to refill.
    cloud.ask("take", id=mine.instances()["spot-1"]["InstanceId"])
    mine.api("stop_instances", InstanceIds=[after["head1"]["InstanceId"]])
    done = mine.run(PROVISION, aws_machines_refill=True)
    assert done.code == 0, done.out
    assert changed(done) == {"localhost": 0}
    assert mine.instances() == {}
    done = mine.run(PROVISION)
    assert done.code == 0, done.out
    after = mine.instances()
    assert set(after) == {"head1", "steady-1", "spot-1"}

    # A second run while the first is at work is refused, before it touches anything.
    cloud.fail({"action": "DescribeVpcs", "hold": True})
    first = mine.start(PROVISION)
    try:
        awaited(lambda: cloud.ask("held"), 60, "the first run is at work")
        second = mine.run(PROVISION)
    finally:
        kill(first)
        cloud.fail()
    assert second.code != 0
    assert f"another run is at work on this fleet (process {first.pid})" in messages(second)[0]

    # Somebody else's machine in our network stops destroy, which ends nothing then.
    subnets = mine.api("describe_subnets", Filters=tagged)["Subnets"]
    image = after["head1"]["ImageId"]
    stranger = mine.api(
        "run_instances", ImageId=image, InstanceType="t3.small", MinCount=1, MaxCount=1,
        KeyName="faulty", SubnetId=subnets[0]["SubnetId"],
    )["Instances"][0]["InstanceId"]  # fmt: skip
    done = mine.run(DESTROY, confirm="faulty", fetch=False)
    assert done.code != 0
    assert f"{stranger} is inside the network of the fleet 'faulty'" in messages(done)[0]
    assert set(mine.instances()) == {"head1", "steady-1", "spot-1"}
    mine.api("terminate_instances", InstanceIds=[stranger])

    # The wrong name ends nothing; what AWS does not let go of is named.
    done = mine.run(DESTROY, confirm="other", fetch=False)
    assert done.code != 0
    assert "That is not the fleet's name" in messages(done)[0]
    assert mine.run(DESTROY, confirm="faulty", fetch=False).code == 0
    assert mine.resources() == []
    again = mine.run(DESTROY, confirm="faulty", fetch=False)
    assert again.code == 0, again.out
    assert "nothing of the fleet faulty is left" in again.out


def test_an_inventory_without_machines_is_an_error_for_configure(
    cloud: Cloud, tmp_path: Path
) -> None:
    mine = fleet(cloud, tmp_path, "empty")
    done = mine.run("playbooks/configure.yml")
    assert done.code != 0
    assert "The inventory has no head" in messages(done)[0]
