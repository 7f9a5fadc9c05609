"""The machines of `make fleet`, as the tests use them."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from e2e.processes import MARK, awaited
from e2e.running import Client, Finished

ROOT = Path(__file__).parents[2]
INVENTORY = ROOT / "inventories" / "local"
#: Where `make fleet` has its machines, see roles/local_machines/defaults/main.yml.
MACHINES = Path("/var/lib/neurofleet-machines")
BRIDGE = "neurofleet0"
#: Which fleets need the computer's forwarding, see roles/local_machines/files/machines.py.
FORWARDING_USERS = Path("/run/neurofleet-forwarding")
HEAD, WORKERS = "head1", ("worker1", "worker2")
ADDRESSES = {"head1": "10.231.77.10", "worker1": "10.231.77.11", "worker2": "10.231.77.12"}
CLIENTS = Path(__file__).with_name("fleet") / "clients"
ENGINE_PORTS = range(24100, 24109)
SSH = ("ssh", "-F", str(MACHINES / "ssh/config"), "-o", "BatchMode=yes")
PYTHON = "/opt/neurofleet/venv/bin/python"
SECURITY = "/var/lib/neurofleet/ipython/profile_neurofleet/security"

#: An installation from nothing, on a machine that does other things as well [s].
INSTALL_LIMIT_S = 1500.0
#: What the project promises: so long after any fault the fleet is whole again [s].
WHOLE_WITHIN_S = 60.0


def control_environment() -> dict[str, str]:
    """Return the environment for commands whose connections outlive them.

    They are ended with the machines, so they do not carry the test's mark.
    """
    return {name: value for name, value in os.environ.items() if name != MARK}


def start(words: list[str], log: Path) -> Client:
    """Start a command of the repository."""
    return Client(words, ROOT, control_environment(), log)


def make(target: str, log: Path, *settings: str) -> Finished:
    """Run ``make TARGET`` to its end."""
    return start(["make", target, *settings], log).ended(INSTALL_LIMIT_S)


def playbook(name: str, log: Path, *options: str, inventory: Path = INVENTORY) -> Finished:
    """Run a playbook of the repository to its end."""
    return start_playbook(name, log, *options, inventory=inventory).ended(INSTALL_LIMIT_S)


def start_playbook(name: str, log: Path, *options: str, inventory: Path = INVENTORY) -> Client:
    """Start a playbook of the repository."""
    program = str(ROOT / ".venv-control" / "bin" / "ansible-playbook")
    return start([program, name, "--inventory", str(inventory), *options], log)


def changed(done: Finished) -> int:
    """Return how many tasks of a playbook changed something."""
    recap = done.out.split("PLAY RECAP")[1].splitlines()
    counts = [word for line in recap for word in line.split() if word.startswith("changed=")]
    assert counts, done.out
    return sum(int(word.removeprefix("changed=")) for word in counts)


@dataclass(frozen=True)
class Fleet:
    """A head and two workers that are booted."""

    log: Path

    def ssh(
        self,
        host: str,
        command: str,
        user: str = "root",
        limit_s: float = 120,
        stdin: str = "",
    ) -> Finished:
        """Run a shell command on a machine."""
        done = subprocess.run(
            [*SSH, f"{user}@{host}", command],
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
            input=stdin,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    def done(self, host: str, command: str, user: str = "root", limit_s: float = 120) -> str:
        """Run a shell command that must succeed; return what it printed."""
        finished = self.ssh(host, command, user, limit_s)
        assert finished.code == 0, f"{command}: {finished.out}{finished.err}"
        return finished.out.strip()

    def client(
        self, host: str, name: str, *arguments: str, user: str = "root", python: str = PYTHON
    ) -> Finished:
        """Run a script of tests/e2e/fleet/clients on a machine."""
        script = (CLIENTS / name).read_text()
        command = shlex.join([python, "-", *arguments])
        return self.ssh(host, f"cd && {command}", user, stdin=script)

    def begin(self, host: str, command: str, log: Path, user: str = "root") -> Client:
        """Start a shell command on a machine."""
        return start([*SSH, f"{user}@{host}", command], log)

    def copy(self, source: Path, host: str, target: str, user: str = "root") -> None:
        """Copy a file or directory to a machine."""
        words = ["scp", "-q", "-r", *SSH[1:], str(source), f"{user}@{host}:{target}"]
        subprocess.run(words, check=True, timeout=120)

    def verification(self, wait_s: float = 10) -> Finished:
        """Ask on the head whether every engine is there and scores like the head."""
        limited = f"timeout {wait_s + 10:.0f} runuser -u neurofleet --"
        return self.ssh(
            HEAD,
            f"cd /var/lib/neurofleet/work && exec {limited}"
            f" env NEUROFLEET_CACHE=/var/lib/neurofleet/cache {PYTHON} -m neurofleet.verification"
            f" --timeout {wait_s:.0f}",
        )

    def whole_again(self, since: float) -> float:
        """Wait until the fleet computes; return how long that took since a fault [s]."""
        last = Finished(1, "", "not asked")
        while (left := since + WHOLE_WITHIN_S - time.monotonic()) > 0:
            last = self.verification(left)
            if last.code == 0:
                return time.monotonic() - since
        journal = self.ssh(HEAD, "journalctl --unit ipcontroller --no-pager --lines 40").out
        raise AssertionError(f"not whole within {WHOLE_WITHIN_S:g} s: {last.err}\n{journal}")

    def restarts(self, host: str, unit: str) -> int:
        """Return how often systemd has started a unit anew."""
        return int(self.done(host, f"systemctl show --property=NRestarts --value {unit}"))

    def journal(self, host: str, unit: str, since: str) -> str:
        """Return what a unit, and systemd of it, said since a time of ``now``."""
        return self.done(
            host, f"journalctl --unit '{unit}' --since '@{since}' --no-pager --output cat"
        )

    def now(self, host: str) -> str:
        """Return a machine's clock, for ``journal`` [s]."""
        return self.done(host, "date +%s.%N")

    def boot(self, host: str) -> str:
        """Return what identifies a machine's present boot; nothing while it is down."""
        return self.ssh(host, "cat /proc/sys/kernel/random/boot_id", limit_s=20).out.strip()

    def engines(self) -> dict[str, int]:
        """Return the number of engines that compute, by worker."""
        seen = self.verification()
        assert seen.code == 0, seen.err
        return dict(json.loads(seen.out)["engines"])


@dataclass
class Made:
    """The fleet, and what `make fleet` said when it made it."""

    fleet: Fleet
    #: What `--check` said while the machines were bare; nothing when the fleet was kept.
    checked: Finished | None
    said: Finished
    #: How many tests had failed when it was last seen whole; none while it has not been.
    seen_whole_after_failures: int | None = None


def host_state() -> dict[str, Any]:
    """Return what `make fleet` may change of this computer and `make fleet-down` must undo.

    Only what has the fleet's own names: other machines may come and go at the same time.
    """

    def said(*words: str) -> str:
        if not shutil.which(words[0]):
            return ""
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout

    links = json.loads(said("ip", "-json", "link"))
    ours = [link["ifname"] for link in links if BRIDGE in (link["ifname"], link.get("master"))]
    return {
        "links": ours,
        "routes": [line for line in said("ip", "route").splitlines() if BRIDGE in line],
        "tables": [line for line in said("nft", "list", "tables").splitlines() if BRIDGE in line],
        "forwarding": _forwarding_without_fleets(),
        "forwards": (FORWARDING_USERS / BRIDGE).exists(),
        "mounts": [m for m in said("cat", "/proc/mounts").splitlines() if f"{MACHINES}/" in m],
        "machines": MACHINES.exists(),
        "cgroups": [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/{BRIDGE}")],
        "supervisors": supervisors(),
    }  # fmt: skip


def _forwarding_without_fleets() -> str:
    """Return whether this computer forwards when no fleet needs it; others may need it now."""
    with contextlib.suppress(FileNotFoundError):
        return (FORWARDING_USERS / ".before").read_text()
    return Path("/proc/sys/net/ipv4/ip_forward").read_text()


def supervisors() -> list[str]:
    """Return the command lines of what keeps the machines of `make fleet` running."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = process.cmdline()
            if any(word.startswith(f"--directory={MACHINES}/") for word in line):
                found.append(" ".join(line))
    return found


@contextlib.contextmanager
def outsider() -> Iterator[list[str]]:
    """Make a machine on the fleet's network that is not of it; yield what runs a command there."""
    name = "neurofleet-out"
    commands = [
        f"ip netns add {name}",
        f"ip link add nfout0 type veth peer name eth0 netns {name}",
        f"ip link set nfout0 master {BRIDGE} up",
        f"ip -n {name} addr add 10.231.77.99/24 dev eth0",
        f"ip -n {name} link set eth0 up",
        f"ip -n {name} link set lo up",
    ]
    try:
        for command in commands:
            subprocess.run(command.split(), check=True, capture_output=True)
        inside = ["ip", "netns", "exec", name]
        reached = [*inside, "ping", "-c1", "-W1", ADDRESSES[HEAD]]
        if shutil.which("ping"):
            awaited(lambda: not subprocess.run(reached, capture_output=True).returncode, 10, "link")
        yield inside
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "delete", "nfout0"], check=False, capture_output=True)


def inventory(home: Path, hosts: str, variables: Mapping[str, Any] | None = None) -> Path:
    """Write an inventory like inventories/local, with other hosts and further variables."""
    shutil.copytree(INVENTORY, home, dirs_exist_ok=True)
    (home / "hosts.yml").write_text(hosts)
    (home / "group_vars/all/zz_of_the_test.yml").write_text(json.dumps(dict(variables or {})))
    return home
