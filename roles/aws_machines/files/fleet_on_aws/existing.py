"""What exists of a fleet, found by its tag and, inside its network, by the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from .account import Account
from .errors import AwsError
from .wanted import EXPIRES, FLEET, HEAD, HOST_KEY, NAME, OWNER, POOL, ROLE

#: A machine in one of these states is there, or will be.
ALIVE = ("pending", "running", "stopping", "stopped")


@dataclass(frozen=True)
class Machine:
    """An instance of the fleet."""

    id: str
    name: str
    pool: str
    type: str
    state: str
    zone: str
    spot: bool
    launched: datetime
    public_address: str
    host_key: str
    expires: str

    @property
    def number(self) -> int:
        """The machine's number in its pool; 0 of the head."""
        tail = self.name.rpartition("-")[2]
        return int(tail) if tail.isdigit() else 0


#: What AWS says of a spot machine that it has taken back.
TAKEN_BACK = ("Server.SpotInstanceTermination", "Server.SpotInstanceShutdown")


def taken_back(account: Account, fleet: str) -> set[str]:
    """Return the names of spot machines that AWS has taken back, which it tells for an hour.

    Machines that powered themselves off, because they were idle or their time was over, are not
    among them.
    """
    reservations = account.every(
        "describe_instances",
        "Reservations",
        Filters=[
            {"Name": f"tag:{FLEET}", "Values": [fleet]},
            {"Name": "instance-state-name", "Values": ["shutting-down", "terminated"]},
        ],
    )
    return {
        tags_of(item).get(NAME, "")
        for entry in reservations
        for item in entry["Instances"]
        if item.get("StateReason", {}).get("Code") in TAKEN_BACK
    }


def machines(account: Account, fleet: str) -> list[Machine]:
    """Return the fleet's instances that are not ended or ending, in the order of their names.

    Raises
    ------
    AwsError
        Two are called the same.
    """
    reservations = account.every(
        "describe_instances",
        "Reservations",
        Filters=[
            {"Name": f"tag:{FLEET}", "Values": [fleet]},
            {"Name": "instance-state-name", "Values": list(ALIVE)},
        ],
    )
    found = [_machine(item) for entry in reservations for item in entry["Instances"]]
    found.sort(key=lambda machine: (machine.pool != HEAD, machine.pool, machine.number))
    names = [machine.name for machine in found]
    for name in names:
        if names.count(name) > 1:
            twins = ", ".join(machine.id for machine in found if machine.name == name)
            raise AwsError(
                f"the fleet {fleet!r} has two machines called {name!r} ({twins}). End one of them"
                " (aws ec2 terminate-instances --instance-ids ...) and run the same command again."
            )
    return found


def _machine(item: Mapping[str, Any]) -> Machine:
    tags = tags_of(item)
    return Machine(
        id=item["InstanceId"],
        name=tags.get(NAME, item["InstanceId"]),
        pool=tags.get(POOL, ""),
        type=item["InstanceType"],
        state=item["State"]["Name"],
        zone=item["Placement"]["AvailabilityZone"],
        spot=item.get("InstanceLifecycle") == "spot",
        launched=item["LaunchTime"],
        public_address=item.get("PublicIpAddress", ""),
        host_key=tags.get(HOST_KEY, ""),
        expires=tags.get(EXPIRES, ""),
    )


def network(account: Account, fleet: str) -> dict[str, Any] | None:
    """Return the fleet's VPC with its tags, ``None`` if there is none.

    Raises
    ------
    AwsError
        There are two.
    """
    found = account.every("describe_vpcs", "Vpcs", Filters=tagged(fleet))
    if len(found) > 1:
        raise AwsError(
            f"the fleet {fleet!r} has {len(found)} networks"
            f" ({', '.join(vpc['VpcId'] for vpc in found)}): two runs made it at once. Run"
            " playbooks/destroy.yml, which ends both, and then one of them again."
        )
    if not found:
        return None
    vpc = found[0]
    return {"id": vpc["VpcId"], "cidr": vpc["CidrBlock"], "tags": tags_of(vpc)}


def tagged(fleet: str) -> list[dict[str, Any]]:
    """Return the filter for what belongs to the fleet."""
    return [{"Name": f"tag:{FLEET}", "Values": [fleet]}]


def tags_of(item: Mapping[str, Any]) -> dict[str, str]:
    """Return an answer's tags as a dictionary."""
    return {tag["Key"]: tag["Value"] for tag in item.get("Tags", [])}


def tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Return tags as EC2 wants them."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def fleet_tags(fleet: str, role: str, pool: str, owner: str, expires: str) -> dict[str, str]:
    """Return the tags that every resource of a fleet has."""
    return {FLEET: fleet, ROLE: role, POOL: pool, OWNER: owner, EXPIRES: expires}
