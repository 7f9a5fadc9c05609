"""A booted machine behind every instance that moto says is running.

The machines are those of ``make fleet``: a Debian with systemd each, on a bridge that has the
fleet's network. What EC2 does around a machine is done here: user data are applied by cloud-init
at the first boot, a public address is translated to the private one, a machine that powers
itself off is terminated or stopped as its shutdown behaviour says, and one that is terminated
loses its power.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import ipaddress
import re
import shutil
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import machines
from metadata import ADDRESS
from moto.core import DEFAULT_ACCOUNT_ID
from moto.ec2.models import ec2_backends
from one_computer.image import install_packages, make_image
from one_computer.machine import boot, make_machine, remove_machine, supervisors
from one_computer.network import make_network
from one_computer.reaching import make_key
from one_computer.system import run, tail, write
from one_computer.wanted import Fleet

LOOK_EVERY_S = 0.3
#: What Debian's image for EC2 has besides what every machine of ours has; and, to save a minute
#: each time, what the role base would install (it finds that it is there).
PACKAGES = ("cloud-init", "openssh-client", "g++", "libpython3.11", "make", "nftables")
PACKAGES += ("python3-venv",)
#: cloud-init as in Debian's image for EC2; here it would not see by itself that this is EC2.
CLOUD_CONFIG = f"""\
datasource_list: [Ec2]
datasource:
  Ec2: {{metadata_urls: ["http://{ADDRESS}"], strict_id: false, max_wait: 30, timeout: 10}}
network: {{config: disabled}}
manage_etc_hosts: true
locale: false
package_update: false
system_info:
  default_user:
    name: admin
    lock_passwd: true
    shell: /bin/bash
    sudo: ["ALL=(ALL) NOPASSWD:ALL"]
"""


class Instances:
    """The machines of one region.

    Parameters
    ----------
    directory : Path
        Theirs; it is removed with them.
    region, network, bridge : str
        Of the fleet; the network is its VPC's.
    """

    def __init__(self, directory: Path, region: str, network: str, bridge: str) -> None:
        first = ipaddress.IPv4Network(network)
        self._fleet = Fleet(
            directory=directory,
            # Not the one of `make fleet`: the image is another, and only the newest is kept.
            cache=Path("/var/cache/neurofleet-machines-aws"),
            release="bookworm",
            bridge=bridge,
            network=ipaddress.IPv4Interface(f"{first[1]}/{first.prefixlen}"),
            machines={},
            packages=PACKAGES,
        )
        self._region = region
        self._stopping = threading.Event()
        self._there: dict[str, str] = {}  # what is done with an instance: booting, up, down
        self._addresses: dict[str, str] = {}
        self._prepared = False
        self._workers = concurrent.futures.ThreadPoolExecutor(4)
        self._watching = threading.Thread(target=self._watch, name="machines")
        self.trouble: list[str] = []

    def prepare(self) -> None:
        """Build the image, make the bridge with the metadata service's address on it."""
        fleet = self._fleet
        fleet.directory.mkdir(parents=True)
        fleet.cache.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the endpoint
            install_packages()
            write(fleet.directory / "bridge", fleet.bridge)
            self._image = make_image(fleet)
            make_network(fleet)
            make_key(fleet)
        run("ip", "address", "replace", f"{ADDRESS}/32", "dev", fleet.bridge)
        self._watching.start()

    def close(self) -> None:
        """End and remove everything."""
        self._stopping.set()
        if self._watching.is_alive():
            self._watching.join()
        self._workers.shutdown()
        self._nft(f"delete table inet {self._table}")
        with contextlib.redirect_stdout(sys.stderr):
            machines.down(self._fleet.directory)

    def by_address(self, address: str) -> Any:
        """Return the running instance with this private address; it is given out again."""
        running = (i for i in self._instances() if i.state == "running")
        return next((i for i in running if i.private_ip == address), None)

    def _instances(self) -> list[Any]:
        backend = ec2_backends[DEFAULT_ACCOUNT_ID][self._region]
        return [i for r in list(backend.reservations.values()) for i in list(r.instances)]

    def _watch(self) -> None:
        while not self._stopping.wait(LOOK_EVERY_S):
            try:
                for instance in self._instances():
                    self._follow(instance)
                self._translate()
            except Exception:
                self.trouble.append(traceback.format_exc())

    def _follow(self, instance: Any) -> None:
        """Take one step for an instance."""
        done = self._there.get(instance.id)
        name = _name(instance)
        if instance.state == "running" and done in (None, "down"):
            self._there[instance.id] = "booting"
            self._workers.submit(self._boot, instance, name)
        elif instance.state == "running" and done == "up":
            if not supervisors(self._fleet.root(name)):
                self._powered_off(instance)
        elif instance.state == "terminated" and done in ("up", "down"):
            self._there[instance.id] = "gone"
            remove_machine(self._fleet.directory, name)
            self._fleet.machines.pop(name, None)
        elif instance.state == "stopped" and done == "up":
            self._there[instance.id] = "down"

    def _boot(self, instance: Any, name: str) -> None:
        try:
            self._fleet.machines[name] = instance.private_ip
            machine = self._fleet.directory / "machines" / name
            if not machine.exists():
                self._make(name)
            boot(self._fleet, self._image, name)
            self._there[instance.id] = "up"
        except BaseException:  # `fail` of the machines is SystemExit
            self.trouble.append(traceback.format_exc())

    def _make(self, name: str) -> None:
        make_machine(self._fleet, self._image, name)
        upper = self._fleet.directory / "machines" / name / "upper"
        # Only cloud-init says who may log in, and which host key the machine has.
        shutil.rmtree(upper / "root/.ssh")
        for key in (upper / "etc/ssh").glob("ssh_host_*"):
            key.unlink()
        write(upper / "etc/cloud/cloud.cfg.d/95-ec2.cfg", CLOUD_CONFIG)

    def _powered_off(self, instance: Any) -> None:
        """Do what EC2 does with an instance that powered itself off."""
        if instance.instance_initiated_shutdown_behavior == "terminate":
            instance.terminate()
        else:
            instance.stop()

    def _translate(self) -> None:
        """Translate public addresses to private ones, as EC2's edge does."""
        wanted = {
            i.public_ip: i.private_ip
            for i in self._instances()
            if i.state == "running" and i.public_ip
        }
        if wanted == self._addresses:
            return
        self._addresses = wanted
        rules = "\n".join(f"ip daddr {a} dnat ip to {b}" for a, b in wanted.items())
        self._nft(
            f"table inet {self._table}\ndelete table inet {self._table}\n"
            f"table inet {self._table} {{\nchain output {{\n"
            f"type nat hook output priority -100\n{rules}\n}}\n}}\n"
        )

    @property
    def _table(self) -> str:
        return f"{self._fleet.bridge}_public"

    def _nft(self, rules: str) -> None:
        with contextlib.suppress(OSError):
            subprocess.run(["nft", "-f", "-"], input=rules, text=True, capture_output=True)

    def console(self, name: str) -> str:
        """Return the end of what a machine's console said."""
        found = [i for i in self._instances() if re.search(name, _name(i))]
        if not found:
            return ""
        path = self._fleet.directory / "machines" / _name(found[-1]) / "console.log"
        return tail(path)


def _name(instance: Any) -> str:
    return str(instance.id)
