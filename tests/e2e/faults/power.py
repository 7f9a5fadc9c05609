"""Power and cable of the fleet's machines, as their computer has them in hand."""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys
from pathlib import Path

from one_computer.machine import boot, end_cgroup, supervisors  # of the role local_machines
from one_computer.wanted import Fleet

from e2e.booted import BRIDGE, MACHINES


def off(name: str) -> None:
    """Cut a machine's power."""
    end_cgroup(Path(BRIDGE, name))
    for pid in supervisors(MACHINES / "machines" / name / "root"):
        subprocess.run(["kill", "-KILL", str(pid)], check=False)


def on(name: str) -> None:
    """Switch a machine on again; it boots by itself."""
    # In a process that ends: what runs the machine is nobody's child.
    path = os.pathsep.join(sys.path)
    words = [sys.executable, "-m", "e2e.faults.power", name]
    subprocess.run(words, check=True, env={**os.environ, "PYTHONPATH": path})


def _boot(name: str) -> None:
    made = (MACHINES / "machines" / name / "made").read_text().splitlines()
    image, address, network = made
    fleet = Fleet(
        directory=MACHINES,
        cache=Path(image).parent,
        release="",
        bridge=BRIDGE,
        network=ipaddress.IPv4Interface(network),
        machines={name: address},
    )
    boot(fleet, Path(image), name)


def cable(name: str, *, plugged: bool) -> None:
    """Cut a machine off from the network, or let it back; its own link stays up."""
    state = "3" if plugged else "0"  # forwarding, disabled
    port = f"vb-{BRIDGE}-{name}"
    subprocess.run(["bridge", "link", "set", "dev", port, "state", state], check=True)


def inside(name: str, path: str) -> Path:
    """Return where this computer has a file of a machine."""
    return MACHINES / "machines" / name / "root" / path.lstrip("/")


if __name__ == "__main__":
    _boot(sys.argv[1])
