"""Everything that belongs to a fleet, and its end, in the order that AWS needs.

What belongs to it carries its tag, or is inside a network that does. Nothing else is touched.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import botocore.exceptions

from . import launch
from .account import Account
from .errors import AwsError, code_of, one_line
from .existing import ALIVE, tagged, tags_of
from .wanted import FLEET, NAME

#: What was ended may be listed for a while, and may hold on to what it used [s].
SETTLE_S = 120.0
LOOK_EVERY_S = 2.0


@dataclass(frozen=True)
class Resource:
    """Something that belongs to the fleet."""

    kind: str
    id: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.id}{f' ({self.name})' if self.name else ''}"


@dataclass(frozen=True)
class Kind:
    """How a kind of resource is found and ended.

    Attributes
    ----------
    name, operation, key, id : str
        For people; the operation that lists it; its answer's list; the identifier's name there.
    inside : str
        Name of the filter for those inside a network; empty if they are in none.
    end : callable
    keep : callable
        Tells what AWS ends by itself.
    """

    name: str
    operation: str
    key: str
    id: str
    inside: str
    end: Callable[[Account, dict[str, Any]], None]
    keep: Callable[[dict[str, Any]], bool] = lambda _item: False


def _end_gateway(account: Account, item: dict[str, Any]) -> None:
    for attachment in item.get("Attachments", []):
        account.ec2.detach_internet_gateway(
            InternetGatewayId=item["InternetGatewayId"], VpcId=attachment["VpcId"]
        )
    account.ec2.delete_internet_gateway(InternetGatewayId=item["InternetGatewayId"])


def _end_group(account: Account, item: dict[str, Any]) -> None:
    """Delete a security group; groups that name each other must lose their rules first."""
    group = item["GroupId"]
    rules = account.every(
        "describe_security_group_rules",
        "SecurityGroupRules",
        Filters=[{"Name": "group-id", "Values": [group]}],
    )
    inward = [rule["SecurityGroupRuleId"] for rule in rules if not rule["IsEgress"]]
    if inward:
        account.ec2.revoke_security_group_ingress(GroupId=group, SecurityGroupRuleIds=inward)
    account.ec2.delete_security_group(GroupId=group)


def _end_table(account: Account, item: dict[str, Any]) -> None:
    for association in item.get("Associations", []):
        account.ec2.disassociate_route_table(AssociationId=association["RouteTableAssociationId"])
    account.ec2.delete_route_table(RouteTableId=item["RouteTableId"])


def _by(operation: str, argument: str) -> Callable[[Account, dict[str, Any]], None]:
    return lambda account, item: getattr(account.ec2, operation)(**{argument: item[argument]})


def _end_spot(account: Account, item: dict[str, Any]) -> None:
    account.ec2.cancel_spot_instance_requests(
        SpotInstanceRequestIds=[item["SpotInstanceRequestId"]]
    )


#: In the order in which they end.
KINDS = (
    Kind(
        "spot request", "describe_spot_instance_requests", "SpotInstanceRequests",
        "SpotInstanceRequestId", "", _end_spot,
        lambda item: item["State"] not in ("open", "active"),
    ),
    Kind(
        "launch template", "describe_launch_templates", "LaunchTemplates", "LaunchTemplateId", "",
        _by("delete_launch_template", "LaunchTemplateId"),
    ),
    Kind(
        "key pair", "describe_key_pairs", "KeyPairs", "KeyPairId", "",
        _by("delete_key_pair", "KeyName"),
    ),
    Kind(
        "volume", "describe_volumes", "Volumes", "VolumeId", "",
        _by("delete_volume", "VolumeId"), lambda item: item["State"] == "deleting",
    ),
    Kind(
        "network interface", "describe_network_interfaces", "NetworkInterfaces",
        "NetworkInterfaceId", "vpc-id", _by("delete_network_interface", "NetworkInterfaceId"),
    ),
    Kind(
        "security group", "describe_security_groups", "SecurityGroups", "GroupId", "vpc-id",
        _end_group, lambda item: item["GroupName"] == "default",
    ),
    Kind(
        "subnet", "describe_subnets", "Subnets", "SubnetId", "vpc-id",
        _by("delete_subnet", "SubnetId"),
    ),
    Kind(
        "route table", "describe_route_tables", "RouteTables", "RouteTableId", "vpc-id",
        _end_table, lambda item: any(a.get("Main") for a in item.get("Associations", [])),
    ),
    Kind(
        "internet gateway", "describe_internet_gateways", "InternetGateways", "InternetGatewayId",
        "attachment.vpc-id", _end_gateway,
    ),
    Kind("network", "describe_vpcs", "Vpcs", "VpcId", "", _by("delete_vpc", "VpcId")),
)  # fmt: skip


def everything(account: Account, fleet: str) -> list[Resource]:
    """Return all that belongs to the fleet, machines first, in the order in which it ends."""
    networks = _networks(account, fleet)
    found = [
        Resource("machine", item["InstanceId"], tags_of(item).get(NAME, ""))
        for item in _instances(account, fleet, networks)
    ]
    for kind in KINDS:
        found += [
            Resource(kind.name, item[kind.id], tags_of(item).get("Name", ""))
            for item in _items(account, kind, fleet, networks)
        ]
    return found


def end(account: Account, fleet: str) -> list[str]:
    """End all that belongs to the fleet.

    Returns
    -------
    list of str
        A line for everything that ended.

    Raises
    ------
    AwsError
        Something is left; it is named.
    """
    before = everything(account, fleet)
    networks = _networks(account, fleet)
    launch.end(account, [item["InstanceId"] for item in _instances(account, fleet, networks)])
    until = time.monotonic() + SETTLE_S
    while True:
        refused = _end_once(account, fleet, networks)
        left = everything(account, fleet)
        if not left:
            return [f"{resource} ended" for resource in before]
        if time.monotonic() > until:
            names = ", ".join(map(str, left))
            why = f" AWS says: {'; '.join(sorted(set(refused)))}." if refused else ""
            raise AwsError(
                f"still there of the fleet {fleet!r}: {names}.{why} Run playbooks/destroy.yml"
                " again; what is left then, end it in AWS's console."
            )
        time.sleep(LOOK_EVERY_S)


def _end_once(account: Account, fleet: str, networks: list[str]) -> list[str]:
    """Try to end everything once; return why AWS refused what it refused."""
    refused = []
    for kind in KINDS:
        for item in _items(account, kind, fleet, networks):
            try:
                kind.end(account, item)
            except botocore.exceptions.ClientError as error:
                code = code_of(error)
                # Gone meanwhile, or in use by something that is just ending.
                if code.endswith(("NotFound", "InUse")) or code == "DependencyViolation":
                    refused.append(f"{kind.name} {item[kind.id]}: {code}")
                    continue
                with one_line(f"ending {kind.name} {item[kind.id]}"):
                    raise
            except botocore.exceptions.BotoCoreError:
                with one_line(f"ending {kind.name} {item[kind.id]}"):
                    raise
    return refused


def _networks(account: Account, fleet: str) -> list[str]:
    found = account.every("describe_vpcs", "Vpcs", Filters=tagged(fleet))
    return [vpc["VpcId"] for vpc in found]


def _items(account: Account, kind: Kind, fleet: str, networks: list[str]) -> list[dict[str, Any]]:
    """Return a kind's resources that carry the fleet's tag or are inside its network."""
    asked = [tagged(fleet)]
    if kind.inside and networks:
        asked.append([{"Name": kind.inside, "Values": networks}])
    found: dict[str, dict[str, Any]] = {}
    for filters in asked:
        for item in account.every(kind.operation, kind.key, Filters=filters):
            if not kind.keep(item):
                found[item[kind.id]] = item
    return [*found.values()]


def _instances(account: Account, fleet: str, networks: list[str]) -> list[dict[str, Any]]:
    """Return the fleet's instances.

    Raises
    ------
    AwsError
        Somebody else's instance is inside the fleet's network.
    """
    states = {"Name": "instance-state-name", "Values": [*ALIVE, "shutting-down"]}
    asked = [tagged(fleet)]
    if networks:
        asked.append([{"Name": "vpc-id", "Values": networks}])
    found: dict[str, dict[str, Any]] = {}
    for filters in asked:
        for entry in account.every(
            "describe_instances", "Reservations", Filters=[*filters, states]
        ):
            found |= {item["InstanceId"]: item for item in entry["Instances"]}
    strangers = [name for name, item in found.items() if tags_of(item).get(FLEET) != fleet]
    if strangers:
        raise AwsError(
            f"{', '.join(sorted(strangers))} is inside the network of the fleet {fleet!r} and not"
            " the fleet's. End or move it, then run playbooks/destroy.yml again; nothing was ended."
        )
    return [*found.values()]
