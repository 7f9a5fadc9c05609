"""Run the playbooks of a fleet on AWS against the tests' cloud."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from e2e.processes import command as command_of
from e2e.processes import end, end_with_children
from e2e.running import Finished

ROOT = Path(__file__).parents[3]
CONTROL = ROOT / ".venv-control" / "bin"
#: Longest that a playbook may take [s].
PLAYBOOK_S = 900.0


def require_control_node() -> None:
    """Skip where the tests' cloud cannot run."""
    if not (CONTROL / "ansible-playbook").exists() or not (CONTROL / "moto_server").exists():
        pytest.skip("no moto here: scripts/environment .venv-control control, then cloud")


class Cloud:
    """The tests' AWS: a process that ends with this one."""

    def __init__(self, log: Path, *options: str) -> None:
        self._log = log
        with log.open("wb") as err:
            self.process = subprocess.Popen(
                [str(CONTROL / "python"), "-u", str(Path(__file__).parent / "cloud"), *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
            )
        assert self.process.stdout is not None
        self.endpoint = self.process.stdout.readline().strip()
        if not self.endpoint.startswith("http"):
            self.close()
            raise AssertionError(log.read_text())

    def close(self) -> None:
        """End it, and its machines."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(90)
        finally:
            self.process.kill()
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process.wait()

    def ask(self, path: str, **data: Any) -> Any:
        """Ask the cloud about itself, or tell it what to do."""
        body = json.dumps(data).encode()
        with urllib.request.urlopen(f"{self.endpoint}/_cloud/{path}", body, timeout=60) as answer:
            return json.loads(answer.read())

    def fail(self, *faults: Mapping[str, Any]) -> None:
        """Let calls fail, or be held, from now on; none without arguments."""
        self.ask("faults", faults=list(faults))


@dataclass
class Fleet:
    """One fleet's inventory and state directory, and what is run with them."""

    cloud: Cloud
    home: Path
    settings: dict[str, Any]
    inventory: Path = ROOT / "inventories" / "aws"
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.settings["fleet_name"])

    @property
    def ssh_config(self) -> Path:
        return self.home / "state" / "neurofleet" / self.name / "ssh" / "config"

    def start(self, playbook: str, *options: str, **settings: Any) -> subprocess.Popen[str]:
        """Start a playbook."""
        file = self.home / f"settings-{time.monotonic_ns()}.json"
        file.write_text(json.dumps({**self.settings, **settings}))
        command = [str(CONTROL / "ansible-playbook"), playbook, "-i", str(self.inventory)]
        return self.begin([*command, "-e", f"@{file}", *options])

    def begin(self, words: list[str]) -> subprocess.Popen[str]:
        """Start a command as somebody with credentials, whose output and errors are one text."""
        return subprocess.Popen(
            words,
            cwd=ROOT,
            env=self.env(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )

    def run(
        self, playbook: str, *options: str, limit_s: float = PLAYBOOK_S, **settings: Any
    ) -> Finished:
        """Run a playbook to its end."""
        process = self.start(playbook, *options, **settings)
        try:
            out, _ = process.communicate(timeout=limit_s)
        finally:
            kill(process)
            self.hang_up()
        with (self.home / "playbooks.log").open("a") as log:
            log.write(out)
        return Finished(process.returncode, out, out)

    def hang_up(self) -> None:
        """End the connections that Ansible keeps for the next playbook."""
        for socket in (self.home / "cp").glob("*"):
            command = ["ssh", "-O", "exit", "-o", f"ControlPath={socket}", "-"]
            subprocess.run(command, capture_output=True, timeout=10, check=False)
        # What ssh started to go through the head outlives it for a while.
        way = [str(self.ssh_config), "-W"]
        end(p for p in psutil.process_iter() if all(word in command_of(p) for word in way))

    def env(self) -> dict[str, str]:
        """Return the environment of somebody with credentials."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
        return {
            **kept,
            "HOME": str(self.home),
            "XDG_STATE_HOME": str(self.home / "state"),
            "XDG_CACHE_HOME": str(self.home / "cache"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.home / "cp"),
            "ANSIBLE_LOCALHOST_WARNING": "false",
            "ANSIBLE_DEPRECATION_WARNINGS": "false",
            "AWS_ENDPOINT_URL": self.cloud.endpoint,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
            **self.environment,
        }

    def resources(self) -> list[str]:
        """Return everything that belongs to the fleet, as destroy.yml would list it."""
        return [str(line) for line in self.program("list")["resources"]]

    def program(self, command: str, **settings: Any) -> dict[str, Any]:
        """Run the role's program as the role does."""
        asked = {"fleet": self.name, "region": "eu-central-1", **settings}
        done = subprocess.run(
            [CONTROL / "python", ROOT / "roles/aws_machines/files/fleet.py", command],
            input=json.dumps(asked),
            env=self.env(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def api(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """Call EC2 as somebody would by hand; times come as text."""
        code = (
            "import boto3, json, sys; from botocore.config import Config;"
            "ec2 = boto3.client('ec2', 'eu-central-1', config=Config(user_agent_extra='by-hand'));"
            f"print(json.dumps(ec2.{operation}(**json.load(sys.stdin)), default=str))"
        )
        done = subprocess.run(
            [CONTROL / "python", "-c", code],
            input=json.dumps(arguments),
            env=self.env(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def instances(self, *states: str) -> dict[str, dict[str, Any]]:
        """Return the fleet's instances in these states, or that run, by name."""
        filters = [
            {"Name": "tag:neurofleet:fleet", "Values": [self.name]},
            {"Name": "instance-state-name", "Values": states or ("pending", "running")},
        ]
        found = self.api("describe_instances", Filters=filters)["Reservations"]
        return {
            next(t["Value"] for t in item["Tags"] if t["Key"] == "neurofleet:name"): item
            for entry in found
            for item in entry["Instances"]
        }

    def ssh(
        self, machine: str, command: str, limit_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a machine as a person would."""
        return subprocess.run(
            ["ssh", "-F", str(self.ssh_config), "-o", "BatchMode=yes", machine, command],
            env=self.env(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )


def kill(process: subprocess.Popen[str]) -> None:
    """End a playbook with everything that it started."""
    if process.poll() is None:
        end_with_children(process.pid)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def messages(finished: Finished) -> list[str]:
    """Return the messages of what failed; Ansible says each as an error, and again as a result."""
    found = re.findall(r"^\[ERROR\]: (.*)$", finished.out, re.MULTILINE)
    return [re.sub(r"^Task failed: (Action failed: )?", "", text) for text in found]


def changed(finished: Finished) -> dict[str, int]:
    """Return the number of changes by host."""
    found = re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", finished.out, re.MULTILINE)
    return {host: int(count) for host, count in found}


def new_key(home: Path) -> None:
    """Make a person's SSH key."""
    (home / ".ssh").mkdir(parents=True)
    path = home / ".ssh" / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)


@contextmanager
def running(log: Path, *options: str) -> Iterator[Cloud]:
    """Run the tests' cloud."""
    cloud = Cloud(log, *options)
    try:
        yield cloud
    finally:
        cloud.close()
