"""How the machines are reached: keys, SSH's configuration, the wait for them."""

from __future__ import annotations

import subprocess
import time

from .machine import supervisors
from .system import fail, new_key, say, tail, write
from .wanted import ACCOUNT, Fleet

BOOT_TIMEOUT_S = 90.0


def make_key(fleet: Fleet) -> None:
    """Make the key that opens the machines."""
    keys = fleet.directory / "ssh"
    keys.mkdir(exist_ok=True, mode=0o700)
    (keys / "control").mkdir(exist_ok=True, mode=0o700)
    if not (keys / "id_ed25519").exists():
        new_key(keys / "id_ed25519", "neurofleet")
        say("SSH key made")


def write_client_files(fleet: Fleet) -> None:
    """Write down how to reach the machines, and their keys: none is trusted on first use."""
    keys = fleet.directory / "ssh"
    known, config = [], []
    for name, address in fleet.machines.items():
        upper = fleet.directory / "machines" / name / "upper"
        key = (upper / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
        known.append(f"{address},{name} {' '.join(key.split()[:2])}\n")
        config.append(f"Host {name}\n  HostName {address}\n")
    config.append(
        f"Host *\n  User {ACCOUNT}\n  IdentityFile {keys / 'id_ed25519'}\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {keys / 'known_hosts'}\n  StrictHostKeyChecking yes\n"
        "  ConnectTimeout 5\n  ServerAliveInterval 5\n"
    )
    write(keys / "known_hosts", "".join(known))
    write(keys / "config", "".join(config))


def wait_for(fleet: Fleet, name: str) -> None:
    """Wait until a machine has booted and lets us in."""
    command = ["ssh", "-F", str(fleet.directory / "ssh/config"), "-o", "BatchMode=yes"]
    command += [f"root@{name}", "systemctl", "is-system-running", "--wait"]
    log = fleet.root(name).parent / "console.log"
    until = time.monotonic() + BOOT_TIMEOUT_S
    while time.monotonic() < until:
        try:
            answer = subprocess.run(
                command, capture_output=True, text=True, timeout=BOOT_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            break
        if answer.stdout.strip() in ("running", "degraded"):
            return
        if not supervisors(fleet.root(name)):
            fail(f"machine {name} ended while booting:\n{tail(log)}")
        time.sleep(0.3)
    fail(f"machine {name} did not come up within {BOOT_TIMEOUT_S:.0f} s:\n{tail(log)}")
