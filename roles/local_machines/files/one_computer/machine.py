"""One machine: a layer of its own over the image, a systemd-nspawn, a cgroup."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import subprocess
import time
from pathlib import Path

from .system import fail, new_key, read, remove_tree, run, unmount, write
from .wanted import ACCOUNT, Fleet

CGROUPS = Path("/sys/fs/cgroup")
#: Runs systemd-nspawn ("$@") in the cgroup "$0", and again when the machine reboots from inside,
#: which systemd-nspawn reports with this status. Itself beside it: a cgroup that has controllers
#: must not have both processes and children.
KEEPER = """
echo $$ > "$0/keeper/cgroup.procs"
while :; do
  (read -r pid rest < /proc/self/stat; echo "$pid" > "$0/cgroup.procs"; exec "$@")
  [ $? = 133 ] || exit
done
"""
#: A process in the kernel cannot be killed until it returns [s].
END_TIMEOUT_S = 30.0


def existing(directory: Path) -> list[str]:
    """Return the names of the machines in a directory."""
    machines = directory / "machines"
    return sorted(path.name for path in machines.iterdir()) if machines.is_dir() else []


def is_as_wanted(fleet: Fleet, image: Path, name: str) -> bool:
    """Tell whether a machine was made completely, from this image, with this address."""
    stamp = fleet.directory / "machines" / name / "made"
    return stamp.exists() and stamp.read_text() == made_from(fleet, image, name)


def made_from(fleet: Fleet, image: Path, name: str) -> str:
    """Return what a machine's stamp says."""
    return f"{image}\n{fleet.machines[name]}\n{fleet.network}\n"


def make_machine(fleet: Fleet, image: Path, name: str) -> None:
    """Make a machine's own layer: name, address, keys."""
    machine = fleet.directory / "machines" / name
    upper = machine / "upper"
    for directory in (upper, machine / "work", machine / "root"):
        directory.mkdir(parents=True)
    address = fleet.machines[name]
    write(upper / "etc/hostname", f"{name}\n")
    write(upper / "etc/hosts", f"127.0.0.1 localhost\n{address} {name}\n")
    write(upper / "etc/machine-id", f"{secrets.token_hex(16)}\n")
    write(upper / "etc/resolv.conf", nameservers())
    # Sorts before systemd's own 80-container-host0.network, which asks for DHCP.
    write(
        upper / "etc/systemd/network/10-host0.network",
        f"[Match]\nName=host0\n\n[Network]\nAddress={address}/{fleet.network.network.prefixlen}\n"
        f"Gateway={fleet.network.ip}\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
    )
    (upper / "etc/ssh").mkdir(parents=True, exist_ok=True)
    new_key(upper / "etc/ssh/ssh_host_ed25519_key", name)
    let_in(image, upper, Path("root"), fleet.directory / "ssh/id_ed25519.pub")
    let_in(image, upper, Path("home") / ACCOUNT, fleet.directory / "ssh/id_ed25519.pub")
    # Last: without it the machine is made anew.
    write(machine / "made", made_from(fleet, image, name))


def let_in(image: Path, upper: Path, home: Path, public_key: Path) -> None:
    """Let a key into the account with this home directory."""
    owner = (image / home).stat()
    for directory in (upper / home, upper / home / ".ssh"):
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)
        os.chown(directory, owner.st_uid, owner.st_gid)
    write(upper / home / ".ssh/authorized_keys", public_key.read_text())
    os.chown(upper / home / ".ssh/authorized_keys", owner.st_uid, owner.st_gid)


def nameservers() -> str:
    """Return a resolv.conf without servers that only this computer can reach."""
    for path in ("/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"):
        if Path(path).exists():
            lines = Path(path).read_text().splitlines()
            kept = [line for line in lines if re.match(r"(nameserver (?!127\.)|search )", line)]
            if any(line.startswith("nameserver") for line in kept):
                return "".join(f"{line}\n" for line in kept)
    return ""


def boot(fleet: Fleet, image: Path, name: str) -> bool:
    """Boot a machine unless it runs; tell whether it was booted."""
    root = fleet.root(name)
    if supervisors(root):
        return False
    machine = root.parent
    unmount(root)
    run(
        *("mount", "-t", "overlay", f"neurofleet-{name}", str(root), "-o"),
        f"lowerdir={image},upperdir={machine / 'upper'},workdir={machine / 'work'}",
    )
    # A cgroup of its own: machines that share one would share their services' too.
    end_cgroup(Path(fleet.bridge, name))
    cgroup = cgroup_of(Path(fleet.bridge, name))
    (cgroup / "keeper").mkdir(parents=True)
    nspawn = ["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit"]
    nspawn += [f"--directory={root}", f"--machine={fleet.bridge}-{name}", f"--hostname={name}"]
    nspawn += [f"--network-bridge={fleet.bridge}", "--resolv-conf=off", "--timezone=off"]
    nspawn += [f"--bind={here}:{there}" for here, there in fleet.binds.items()]
    nspawn += ["--console=pipe", "--link-journal=no", "--kill-signal=SIGRTMIN+3"]
    with (machine / "console.log").open("ab") as log:
        subprocess.Popen(
            ["sh", "-c", KEEPER, str(cgroup), *nspawn],
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )
    return True


def remove_machine(directory: Path, name: str) -> None:
    """End a machine at once, as if its power failed, and remove it."""
    machine = directory / "machines" / name
    bridge = read(directory / "bridge").strip()
    end_cgroup(Path(bridge, name))
    for pid in supervisors(machine / "root"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    unmount(machine / "root")
    remove_tree(machine)


def supervisors(root: Path) -> list[int]:
    """Return the processes that run the machine with this root, and boot it again."""
    wanted = f"--directory={root}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if wanted in words:
            found.append(int(path.parent.name))
    return found


def cgroup_of(name: Path) -> Path:
    """Return the cgroup of a fleet (``BRIDGE``) or of one of its machines (``BRIDGE/MACHINE``)."""
    hybrid = CGROUPS / "unified"
    return (hybrid if hybrid.is_dir() else CGROUPS) / name


def end_cgroup(name: Path) -> None:
    """Kill every process in a tree of cgroups, see `cgroup_of`, and remove the tree."""
    until = time.monotonic() + END_TIMEOUT_S
    # A computer that has both versions of cgroups gets a copy of the tree from systemd-nspawn,
    # in the hierarchy of version 1 that is named after systemd.
    for top in (cgroup_of(name), CGROUPS / "systemd" / name):
        while top.exists():
            for path, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):  # version 1 has no such file
                    (Path(path) / "cgroup.kill").write_text("1")
                with contextlib.suppress(OSError):  # busy until its last process has ended
                    Path(path).rmdir()
            if time.monotonic() > until:
                fail(f"processes in {top} do not end. See ps; a reboot of this computer ends them.")
            time.sleep(0.02)
