"""Gateway, launch templates and machines: made with their tags in one call each."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import botocore.exceptions

from . import existing
from .account import Account
from .errors import NO_CAPACITY, AwsError, code_of, one_line
from .existing import fleet_tags, tag_list, tagged
from .plan import Plan, Planned, expiry
from .wanted import HEAD, HOST_KEY, NAME

#: RunInstances is allowed two calls a second, with a reserve of a thousand machines.
AT_ONCE = 4
#: How long a new machine may take to run, and what it uses to be known everywhere [s].
SEEN_WITHIN_S = 180.0
SETTLE_S = 30.0
LOOK_EVERY_S = 2.0


def gateway(account: Account, plan: Plan, vpc: str) -> list[str]:
    """Make the way to the internet unless it is there; return a line if something changed."""
    found = account.every(
        "describe_internet_gateways", "InternetGateways", Filters=tagged(plan.wanted.fleet)
    )
    with one_line("making the internet gateway"):
        if found:
            # A call whose answer was lost may have made a second one.
            made = next((entry for entry in found if entry.get("Attachments")), found[0])
            attached = made.get("Attachments", [])
        else:
            tags = {**plan.tags, "Name": plan.wanted.fleet}
            made = account.ec2.create_internet_gateway(
                TagSpecifications=[{"ResourceType": "internet-gateway", "Tags": tag_list(tags)}]
            )["InternetGateway"]
            attached = []
        if not attached:
            try:
                account.ec2.attach_internet_gateway(
                    InternetGatewayId=made["InternetGatewayId"], VpcId=vpc
                )
            except botocore.exceptions.ClientError as error:
                # What a run that was killed had begun has come to its end meanwhile.
                if code_of(error) != "Resource.AlreadyAssociated":
                    raise
    return [] if attached else ["internet gateway"]


def templates(
    account: Account, plan: Plan, subnets: Mapping[str, str], groups: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Make each pool's launch template as wanted.

    Parameters
    ----------
    account, plan
    subnets : mapping
        Subnet by zone.
    groups : mapping
        Security group by role.

    Returns
    -------
    tuple
        The templates' names by pool, and a line for each that changed.
    """
    found = {
        entry["LaunchTemplateName"]: entry
        for entry in account.every(
            "describe_launch_templates", "LaunchTemplates", Filters=tagged(plan.wanted.fleet)
        )
    }
    names, said = {}, []
    for planned in plan.pools:
        pool = planned.pool
        name = names[pool.name] = f"{plan.wanted.fleet}-{pool.name}"
        data = _template(plan, planned, subnets[planned.zone], groups[pool.role])
        digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:32]
        with one_line(f"making the launch template {name}"):
            if name not in found:
                tags = {**plan.tags, "Name": name, "neurofleet:pool": pool.name}
                account.ec2.create_launch_template(
                    LaunchTemplateName=name,
                    VersionDescription=digest,
                    LaunchTemplateData=data,
                    TagSpecifications=[{"ResourceType": "launch-template", "Tags": tag_list(tags)}],
                )
            elif _digest(account, name) != digest:
                account.ec2.create_launch_template_version(
                    LaunchTemplateName=name, VersionDescription=digest, LaunchTemplateData=data
                )
            else:
                continue
        said.append(f"launch template {name}")
    return names, said


def _digest(account: Account, name: str) -> str:
    answer = account.ec2.describe_launch_template_versions(
        LaunchTemplateName=name, Versions=["$Latest"]
    )
    return str(answer["LaunchTemplateVersions"][0].get("VersionDescription", ""))


def _template(plan: Plan, planned: Planned, subnet: str, group: str) -> dict[str, Any]:
    """Return what all machines of a pool share."""
    pool = planned.pool
    data: dict[str, Any] = {
        "ImageId": plan.image["id"],
        "InstanceType": pool.type,
        "KeyName": plan.wanted.fleet,
        # Whoever powers a worker off ends what it costs: no right on the machine is needed. The
        # head keeps its disk, with everybody's results, and can be started again.
        "InstanceInitiatedShutdownBehavior": "stop" if pool.name == HEAD else "terminate",
        "MetadataOptions": {
            "HttpTokens": "required",
            "HttpEndpoint": "enabled",
            "HttpPutResponseHopLimit": 1,
        },
        "BlockDeviceMappings": [
            {
                "DeviceName": plan.image["device"],
                "Ebs": {
                    "VolumeSize": pool.disk_gb,
                    "VolumeType": "gp3",
                    "Encrypted": True,
                    "DeleteOnTermination": True,
                },
            }
        ],
        "NetworkInterfaces": [
            {
                "DeviceIndex": 0,
                "SubnetId": subnet,
                "Groups": [group],
                "AssociatePublicIpAddress": pool.public_address,
                "DeleteOnTermination": True,
            }
        ],
    }
    if pool.spot:
        options: dict[str, Any] = {
            "SpotInstanceType": "one-time",
            "InstanceInterruptionBehavior": "terminate",
        }
        if pool.max_price is not None:
            options["MaxPrice"] = f"{pool.max_price:.6f}"
        data["InstanceMarketOptions"] = {"MarketType": "spot", "SpotOptions": options}
    return data


def machines(account: Account, plan: Plan, names: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Launch what is missing, and start what was stopped.

    Returns
    -------
    tuple
        A line for each change, and a line for each machine that AWS has none of.
    """
    stopped = [
        machine
        for planned in plan.pools
        for machine in planned.stay
        if machine.state in ("stopping", "stopped")
    ]
    start(account, stopped)
    wanted = [(planned, name) for planned in plan.pools for name in planned.launch]
    changed = [f"{machine.name} started" for machine in stopped]
    short: list[str] = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        runs = [
            pool.submit(_launch, account, plan, planned, name, names[planned.pool.name])
            for planned, name in wanted
        ]
        failures = []
        for run in runs:
            try:
                done, lacking = run.result()
                changed += done
                short += lacking
            except AwsError as error:
                failures.append(error)
    _wait_until_seen(account, plan.wanted.fleet, [line.split()[0] for line in changed])
    if failures:
        more = f" ({len(failures)} machines)" if len(failures) > 1 else ""
        raise AwsError(f"{failures[0]}{more}")
    return changed, short


def start(account: Account, stopped: list[existing.Machine]) -> None:
    """Start machines that were stopped, once those that are just stopping are."""
    if not stopped:
        return
    ids = [machine.id for machine in stopped]
    with one_line("starting stopped machines"):
        account.ec2.get_waiter("instance_stopped").wait(
            InstanceIds=ids, WaiterConfig={"Delay": 3, "MaxAttempts": 200}
        )
        account.ec2.start_instances(InstanceIds=ids)


def start_head(account: Account, fleet: str) -> list[str]:
    """Start the head if it was stopped; return a line if it was."""
    stopped = [
        machine
        for machine in existing.machines(account, fleet)
        if machine.pool == HEAD and machine.state in ("stopping", "stopped")
    ]
    start(account, stopped)
    _wait_until_seen(account, fleet, [machine.name for machine in stopped])
    return [f"{machine.name} started" for machine in stopped]


def _wait_until_seen(account: Account, fleet: str, names: list[str]) -> None:
    """Wait until AWS lists new machines as running, which also gives them their addresses."""
    until = time.monotonic() + SEEN_WITHIN_S
    waiting = set(names)
    while waiting and time.monotonic() < until:
        there = existing.machines(account, fleet)
        waiting = {name for name in waiting if (name, "running") not in _states(there)}
        if waiting:
            time.sleep(LOOK_EVERY_S)
    if waiting:
        raise AwsError(
            f"{', '.join(sorted(waiting))} did not run within {SEEN_WITHIN_S:.0f} s. See the"
            " instances in AWS's console, and run the same command again."
        )


def _states(there: list[existing.Machine]) -> set[tuple[str, str]]:
    return {(machine.name, machine.state) for machine in there}


def _launch(
    account: Account, plan: Plan, planned: Planned, name: str, template: str
) -> tuple[list[str], list[str]]:
    pool, fleet = planned.pool, plan.wanted.fleet
    private, public = new_host_key(name)
    expires = expiry(plan.wanted.ttl_hours)
    tags = {
        **fleet_tags(fleet, pool.role, pool.name, plan.owner, expires),
        NAME: name,
        HOST_KEY: public,
        "Name": f"{fleet}-{name}",
    }
    kinds = ["instance", "volume", "network-interface"]
    kinds += ["spot-instances-request"] if pool.spot else []
    # The key is new each time, and so is the token: boto3's own retries are covered by it.
    token = hashlib.sha256(f"{fleet} {name} {public}".encode()).hexdigest()[:64]
    try:
        with one_line(f"launching {name}"):
            _run_instances(
                account,
                LaunchTemplate={"LaunchTemplateName": template, "Version": "$Latest"},
                MinCount=1,
                MaxCount=1,
                ClientToken=token,
                UserData=user_data(name, private, public, expires, plan.wanted.ttl_hours),
                TagSpecifications=[
                    {"ResourceType": kind, "Tags": tag_list(tags)} for kind in kinds
                ],
            )
    except AwsError as error:
        cause = error.__cause__
        lacking = isinstance(cause, botocore.exceptions.ClientError) and code_of(cause).startswith(
            NO_CAPACITY
        )
        if lacking and pool.name != HEAD:
            kind = f"{pool.type}{' spot' if pool.spot else ''}"
            return [], [f"{name}: AWS has no {kind} machine in {planned.zone} now"]
        raise
    return [f"{name} launched"], []


def _run_instances(account: Account, **arguments: Any) -> None:
    """Launch; what was made a moment ago may not be known everywhere in AWS yet."""
    until = time.monotonic() + SETTLE_S
    while True:
        try:
            account.ec2.run_instances(**arguments)
            return
        except botocore.exceptions.ClientError as error:
            if ".NotFound" not in code_of(error) or time.monotonic() > until:
                raise
            time.sleep(LOOK_EVERY_S)


def new_host_key(name: str) -> tuple[str, str]:
    """Return a machine's own key pair: private text, public text without its comment."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "key"
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(path)], check=True
        )
        public = " ".join(path.with_suffix(".pub").read_text().split()[:2])
        return path.read_text(), public


#: Made by cloud-init at the first boot, before anything else is there that could end the machine.
EXPIRY_UNIT = """\
[Unit]
Description=neurofleet: end of this machine, which costs money

[Service]
Type=oneshot
ExecStart=/usr/bin/systemctl poweroff
"""
EXPIRY_TIMER = """\
[Unit]
Description=neurofleet: when this machine ends

[Timer]
OnCalendar={when}
# A machine that was stopped over its end and is started again has as long again.
OnActiveSec={hours:g}h
AccuracySec=1s

[Install]
WantedBy=timers.target
"""


def user_data(name: str, private: str, public: str, expires: str, hours: float) -> str:
    """Return what cloud-init does at the first boot: name, host key, expiry.

    JSON is YAML, and needs no care with indentation.
    """
    when = expires.replace("T", " ").replace("Z", " UTC")
    units = "/etc/systemd/system/neurofleet-expiry"
    config = {
        "hostname": name,
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": private, "ed25519_public": f"{public} {name}"},
        "write_files": [
            {"path": f"{units}.service", "content": EXPIRY_UNIT, "permissions": "0644"},
            {
                "path": f"{units}.timer",
                "content": EXPIRY_TIMER.format(when=when, hours=hours),
                "permissions": "0644",
            },
        ],
        "runcmd": [
            ["systemctl", "daemon-reload"],
            ["systemctl", "enable", "--now", "neurofleet-expiry.timer"],
        ],
    }
    return f"#cloud-config\n{json.dumps(config, indent=1)}\n"


def end(account: Account, ids: list[str]) -> None:
    """Terminate machines, and wait until they are gone."""
    if not ids:
        return
    with one_line("ending machines"):
        account.ec2.terminate_instances(InstanceIds=ids)
        account.ec2.get_waiter("instance_terminated").wait(
            InstanceIds=ids, WaiterConfig={"Delay": 3, "MaxAttempts": 200}
        )
