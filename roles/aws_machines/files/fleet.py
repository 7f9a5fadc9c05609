"""The fleet on AWS, for the role: reads settings as JSON from stdin, prints JSON.

    fleet.py lock       take the lock for the playbook that runs this
    fleet.py start      start the head if it was stopped, without anything else
    fleet.py plan       what would change, what exists, what it costs
    fleet.py gateway    make the internet gateway
    fleet.py launch     make launch templates, launch what is missing
    fleet.py leave      end machines that are no longer wanted
    fleet.py wait       wait until machines let us in
    fleet.py list       everything that belongs to the fleet
    fleet.py destroy    end all of it, and look again

An error is one line on stderr.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fleet_on_aws import ending, launch, lock, plan, reaching, wanted
from fleet_on_aws.account import Account
from fleet_on_aws.errors import AwsError

Settings = Mapping[str, Any]


def do_lock(settings: Settings) -> dict[str, Any]:
    """Take the lock."""
    lock.take(Path(settings["state_dir"]))
    return {}


def do_plan(settings: Settings) -> dict[str, Any]:
    """Say what would change."""
    planned = _plan(settings)
    plan.require_affordable(planned)
    return {
        "lines": plan.lines(planned),
        "network": planned.network,
        "tags": planned.tags,
        "subnets": plan.subnets(planned),
        "leave": [machine.name for machine in planned.leave],
        "launch": [name for entry in planned.pools for name in entry.launch],
        "machines": _machines(planned),
    }


def do_gateway(settings: Settings) -> dict[str, Any]:
    """Make the gateway."""
    return {
        "changed": launch.gateway(Account(settings["region"]), _plan(settings), settings["vpc"])
    }


def do_launch(settings: Settings) -> dict[str, Any]:
    """Make templates and machines."""
    account, planned = Account(settings["region"]), _plan(settings)
    plan.require_affordable(planned)
    names, said = launch.templates(account, planned, settings["subnets"], settings["groups"])
    changed, short = launch.machines(account, planned, names)
    after = _plan(settings)
    if not any(entry.stay for entry in after.pools[1:]) and short:
        raise AwsError(
            f"{'; '.join(short)}. The fleet has no worker: use another type or zone, or buy on"
            " demand (leave spot out)."
        )
    return {"changed": [*said, *changed], "short": short, "machines": _machines(after)}


def do_leave(settings: Settings) -> dict[str, Any]:
    """End machines that are no longer wanted."""
    leaving = _plan(settings).leave
    launch.end(Account(settings["region"]), [machine.id for machine in leaving])
    return {"changed": [f"{machine.name} ended" for machine in leaving]}


def do_start(settings: Settings) -> dict[str, Any]:
    """Start the head if it was stopped."""
    return {"changed": launch.start_head(Account(settings["region"]), settings["fleet"])}


def do_wait(settings: Settings) -> dict[str, Any]:
    """Wait until machines let us in."""
    reaching.wait(settings["config"], settings["names"], float(settings["limit_s"]))
    return {}


def do_list(settings: Settings) -> dict[str, Any]:
    """List everything."""
    found = ending.everything(Account(settings["region"]), settings["fleet"])
    return {
        "resources": [str(resource) for resource in found],
        "machines": [resource.name for resource in found if resource.kind == "machine"],
    }


def do_destroy(settings: Settings) -> dict[str, Any]:
    """End everything."""
    return {"changed": ending.end(Account(settings["region"]), settings["fleet"])}


COMMANDS: dict[str, Callable[[Settings], dict[str, Any]]] = {
    "lock": do_lock,
    "plan": do_plan,
    "gateway": do_gateway,
    "launch": do_launch,
    "leave": do_leave,
    "start": do_start,
    "wait": do_wait,
    "list": do_list,
    "destroy": do_destroy,
}


def _plan(settings: Settings) -> plan.Plan:
    asked = wanted.read(settings)
    return plan.make(Account(asked.region), asked)


def _machines(planned: plan.Plan) -> list[dict[str, Any]]:
    """Return the machines that stay, for the account of what they cost."""
    return [
        {
            "id": machine.id,
            "name": machine.name,
            "pool": machine.pool,
            "type": machine.type,
            "spot": machine.spot,
            "launched": machine.launched.timestamp(),
            "hourly_usd": entry.price.hourly_usd,
            "price_of": entry.price.of,
            "disk_hourly_usd": entry.price.disk_hourly_usd,
        }
        for entry in planned.pools
        for machine in entry.stay
    ]


def main() -> None:
    """Read, call, print."""
    if len(sys.argv) != 2 or sys.argv[1] not in COMMANDS:
        sys.exit(__doc__)
    try:
        json.dump(COMMANDS[sys.argv[1]](json.load(sys.stdin)), sys.stdout)
    except AwsError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
