#!/usr/bin/python3
"""Booted Linux machines on this computer: one image, one overlay and one systemd-nspawn each.

    machines.py up      reads the wanted fleet from stdin (JSON) and makes it so
    machines.py down    ends and removes what `up` made

Each line on stdout is one thing that changed; nothing on stdout means that nothing did.
It uses the standard library only, because `make fleet-down` must work without anything else.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from one_computer.image import install_packages, make_image
from one_computer.machine import (
    boot,
    end_cgroup,
    existing,
    is_as_wanted,
    make_machine,
    remove_machine,
)
from one_computer.network import make_network, remove_network, require_free_network
from one_computer.reaching import make_key, wait_for, write_client_files
from one_computer.system import fail, lock, read, remove_tree, say, write
from one_computer.wanted import Fleet, fleet_of

#: Disk space that each machine may take [bytes].
MACHINE_SPACE = 2_500_000_000


def main() -> None:
    """Parse, call, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up")
    down_parser = commands.add_parser("down")
    down_parser.add_argument("--directory", type=Path, default=Path("/var/lib/neurofleet-machines"))
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        fail("making machines on this computer needs root. Run the same command as root.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if arguments.command == "up":
        up(fleet_of(json.load(sys.stdin)))
    else:
        down(arguments.directory)


def up(fleet: Fleet) -> None:
    """Make machines, network and image as wanted; leave alone what is right already."""
    fleet.cache.mkdir(parents=True, exist_ok=True)
    with lock(fleet.cache):
        install_packages()
    require_free_network(fleet)
    fleet.directory.mkdir(parents=True, exist_ok=True, mode=0o755)
    with lock(fleet.directory):
        # Written first, so that `down` knows the names whatever happens next.
        write(fleet.directory / "bridge", fleet.bridge)
        with lock(fleet.cache):  # other fleets of this computer may build the same
            image = make_image(fleet)
        make_network(fleet)
        make_key(fleet)
        for name in existing(fleet.directory):
            if name not in fleet.machines:
                remove_machine(fleet.directory, name)
                say(f"machine {name} removed: it is not in the inventory")
        missing = [name for name in fleet.machines if not is_as_wanted(fleet, image, name)]
        free = shutil.disk_usage(fleet.directory).free
        if free < len(missing) * MACHINE_SPACE:
            fail(
                f"{str(fleet.directory)!r} has {free / 1e9:.1f} GB free; {len(missing)} machine(s)"
                f" need {len(missing) * MACHINE_SPACE / 1e9:.1f} GB. Make room or name another"
                " directory with local_machines_dir."
            )
        for name in missing:
            remove_machine(fleet.directory, name)
            make_machine(fleet, image, name)
        write_client_files(fleet)
        for name in fleet.machines:
            if boot(fleet, image, name) and name not in missing:
                say(f"machine {name} booted")
        with concurrent.futures.ThreadPoolExecutor() as pool:
            for _ in pool.map(lambda name: wait_for(fleet, name), fleet.machines):
                pass
        for name in missing:
            say(f"machine {name} made and booted at {fleet.machines[name]}")


def down(directory: Path) -> None:
    """Remove machines, network and files; put forwarding back."""
    if not directory.exists():
        return
    with lock(directory):
        for control in (directory / "ssh/control").glob("*"):
            subprocess.run(
                ["ssh", "-O", "exit", "-o", f"ControlPath={control}", "-"],
                capture_output=True,
                timeout=10,
                check=False,
            )
        bridge = read(directory / "bridge").strip()
        if bridge:
            end_cgroup(Path(bridge))
        for name in existing(directory):
            remove_machine(directory, name)
            say(f"machine {name} removed")
        if bridge:
            remove_network(bridge)
        remove_tree(directory)
        say(f"{directory} removed")


if __name__ == "__main__":
    main()
