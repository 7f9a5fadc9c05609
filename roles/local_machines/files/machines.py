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
import contextlib
import fcntl
import hashlib
import ipaddress
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

#: What systemd-nspawn, the image and the network need of this computer.
HOST_PACKAGES = {
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "nft": "nftables",
    "ssh-keygen": "openssh-client",
    "ip": "iproute2",
    "setsid": "util-linux",
}
#: What a freshly installed machine has: systemd, SSH and the Python that Ansible needs.
IMAGE_PACKAGES = (
    "ca-certificates",
    "dbus",
    "iproute2",
    "openssh-server",
    "python3",
    "python3-apt",
    "sudo",
    "systemd",
    "systemd-sysv",
    "udev",
)
#: Changed by hand when `make_image` builds something else from the same settings.
IMAGE_FORMAT = "1"
#: Settings of this computer's environment that its machines need too, to reach the outside.
INHERITED_VARIABLES = (
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "PIP_INDEX_URL",
    "PIP_DEFAULT_TIMEOUT",
    "UV_DEFAULT_INDEX",
)
#: Variables that name a bundle of certificate authorities.
CA_VARIABLES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
#: A person's account on every machine, without any right.
ACCOUNT = "user"
CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
LOCAL_CAS = Path("/usr/local/share/ca-certificates")

FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
CGROUPS = Path("/sys/fs/cgroup")
#: Which fleets on this computer need forwarding; forgotten with it at a reboot.
FORWARDING_USERS = Path("/run/neurofleet-forwarding")

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

BOOT_TIMEOUT_S = 90.0
#: A process in the kernel cannot be killed until it returns [s].
END_TIMEOUT_S = 30.0
LOCK_TIMEOUT_S = 300.0
#: Disk space that the image and each machine may take [bytes].
IMAGE_SPACE, MACHINE_SPACE = 1_000_000_000, 2_500_000_000


@dataclass(frozen=True)
class Fleet:
    """What is wanted.

    Parameters
    ----------
    directory, cache : Path
        Of the machines, and of the images.
    release : str
        Debian's code name.
    bridge : str
        Name of the bridge, of the nftables table and of the cgroup.
    network : ipaddress.IPv4Interface
        The bridge's own address, with the network's prefix length.
    machines : dict
        Address by name.
    packages : tuple of str
        Debian packages in the image beyond the usual ones.
    binds : dict
        Directory in the machines by directory of this computer, shared by all.
    """

    directory: Path
    cache: Path
    release: str
    bridge: str
    network: ipaddress.IPv4Interface
    machines: dict[str, str]
    packages: tuple[str, ...] = ()
    binds: dict[str, str] = field(default_factory=dict)

    def root(self, name: str) -> Path:
        """Return where a machine's root directory is mounted."""
        return self.directory / "machines" / name / "root"


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


def fleet_of(data: dict[str, Any]) -> Fleet:
    """Return the wanted fleet; every value is checked here."""
    network = ipaddress.IPv4Interface(data["network"])
    machines = {str(name): str(address) for name, address in data["machines"].items()}
    for name, address in machines.items():
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,39}", name):
            fail(f"{name!r} cannot be a machine's name. Use small letters, digits and -.")
        try:
            fits = ipaddress.IPv4Address(address) in network.network
        except ValueError:
            fits = False
        if not fits or address == str(network.ip):
            fail(
                f"machine {name} has the address {address!r}, which is not one of"
                f" {network.network} beside {network.ip}. Give it another ansible_host."
            )
    if len(set(machines.values())) < len(machines):
        fail("two machines have the same address. Give each its own ansible_host.")
    if not re.fullmatch(r"[a-z][a-z0-9]{0,14}", data["bridge"]):
        fail(f"the bridge's name {data['bridge']!r} must be 1 to 15 small letters and digits.")
    return Fleet(
        directory=Path(data["directory"]),
        cache=Path(data["cache"]),
        release=str(data["release"]),
        bridge=str(data["bridge"]),
        network=network,
        machines=machines,
        packages=tuple(data.get("packages", ())),
        binds=dict(data.get("binds", {})),
    )


# --- Up -----------------------------------------------------------------------------------


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


def install_packages() -> None:
    """Install what this computer lacks, and remember it."""
    missing = [package for tool, package in HOST_PACKAGES.items() if not shutil.which(tool)]
    if not missing:
        return
    if not shutil.which("apt-get"):
        fail(f"this computer lacks {', '.join(missing)}, and has no apt-get. Install them.")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run("apt-get", "update", "-qq", env=environment)
    # Another apt may be at work [s].
    install = ["apt-get", "install", "-qq", "-y", "-o", "DPkg::Lock::Timeout=120"]
    run(*install, "--no-install-recommends", *missing, env=environment)
    say(f"packages installed: {' '.join(missing)}")


def make_image(fleet: Fleet) -> Path:
    """Return the image's directory, built unless it is there."""
    sources = debian_sources(fleet.release)
    options = apt_options()
    variables = inherited_environment()
    authorities = sorted(LOCAL_CAS.glob("*.crt")) if LOCAL_CAS.is_dir() else []
    # Anything that changes what is built changes the image's name.
    parts = [IMAGE_FORMAT, *IMAGE_PACKAGES, *fleet.packages, sources, options, variables]
    parts += [path.read_text() for path in authorities]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
    image = fleet.cache / f"{fleet.release}-{digest}"
    if image.is_dir():
        return image
    for rest in fleet.cache.glob(".building-*"):  # of a build that was killed
        remove_tree(rest)
    free = shutil.disk_usage(fleet.cache).free
    if free < IMAGE_SPACE:
        fail(
            f"{str(fleet.cache)!r} has {free / 1e9:.1f} GB free; the image needs"
            f" {IMAGE_SPACE / 1e9:.0f} GB. Make room or set local_machines_cache_dir."
        )
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=fleet.cache))
    root = building / "root"
    apt_file = building / "apt.conf"
    apt_file.write_text(options)
    command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase"]
    command += [f"--include={','.join([*IMAGE_PACKAGES, *fleet.packages])}", f"--aptopt={apt_file}"]
    # A machine does not outlive this computer's power, so its packages need not be synced to disk.
    command += ["--dpkgopt=force-unsafe-io", "--skip=cleanup/apt/lists", fleet.release, str(root)]
    if sources:
        (building / "sources.list").write_text(sources)
        command.append(str(building / "sources.list"))
    run(*command)
    local = root / LOCAL_CAS.relative_to("/")
    local.mkdir(parents=True, exist_ok=True)
    for path in authorities:
        shutil.copyfile(path, local / path.name)
    run("chroot", str(root), "update-ca-certificates")
    with (root / "etc/environment").open("a") as environment:
        environment.write(variables)
    run("chroot", str(root), "useradd", "--create-home", "--shell", "/bin/bash", ACCOUNT)
    write(root / "etc/machine-id", "")
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()  # each machine gets its own
    run("systemctl", f"--root={root}", "enable", "systemd-networkd", "ssh")
    run("systemctl", f"--root={root}", "mask", "console-getty.service", "systemd-firstboot.service")
    root.rename(image)
    remove_tree(building)
    mounts = Path("/proc/self/mounts").read_text()
    for other in fleet.cache.glob(f"{fleet.release}-*"):
        if other != image and f"lowerdir={other}," not in mounts:
            remove_tree(other)
    say(f"image of Debian {fleet.release} built in {image}")
    return image


def debian_sources(release: str) -> str:
    """Return this computer's own Debian archives, for ``release``; nothing if it has none."""
    name = os_release().get("VERSION_CODENAME", "")
    if os_release().get("ID") != "debian" or not name:
        return ""
    listed = subprocess.run(
        ["apt-get", "indextargets", *("--format", "$(SITE)|$(RELEASE)|$(COMPONENT)")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    ).stdout
    lines = []
    for line in listed.splitlines():
        site, suite, component = line.split("|")
        ours = suite in (name, f"{name}-updates", f"{name}-security")
        if ours and component == "main" and site.startswith("http"):
            lines.append(f"deb {site} {suite.replace(name, release)} main\n")
    return "".join(dict.fromkeys(lines))


def apt_options() -> str:
    """Return how this computer's apt reaches its archives: proxies, retries, date checks."""
    dump = subprocess.run(
        ["apt-config", "dump"], capture_output=True, text=True, check=False, timeout=60
    ).stdout
    wanted = re.compile(r"Acquire::(https?::|Check-|Retries)")
    kept = [line for line in dump.splitlines() if wanted.match(line) and '""' not in line]
    return "".join(f"{line}\n" for line in kept)


def inherited_environment() -> str:
    """Return lines for the machines' /etc/environment."""
    found = {name: os.environ[name] for name in INHERITED_VARIABLES if os.environ.get(name)}
    # A path of this computer means nothing in a machine.
    found = {name: value for name, value in found.items() if not value.startswith(("/", "file:"))}
    found |= {name: CA_BUNDLE for name in CA_VARIABLES if os.environ.get(name)}
    return "".join(f'{name}="{value}"\n' for name, value in sorted(found.items()))


def require_free_network(fleet: Fleet) -> None:
    """Fail if something else on this computer has the network."""
    for link in links():
        for address in link.get("addr_info", []):
            other = ipaddress.ip_network(f"{address['local']}/{address['prefixlen']}", strict=False)
            mine = link["ifname"] == fleet.bridge
            if not mine and other.version == 4 and other.overlaps(fleet.network.network):
                fail(
                    f"the network {fleet.network.network} is in use on {link['ifname']}."
                    " Set local_machines_network and the machines' ansible_host to another."
                )


def links() -> list[dict[str, Any]]:
    """Return this computer's network interfaces with their addresses."""
    return list(json.loads(run("ip", "-json", "addr", "show")))


def make_network(fleet: Fleet) -> None:
    """Make the bridge, forwarding and the masquerade rule."""
    mine = next((link for link in links() if link["ifname"] == fleet.bridge), None)
    if mine is None:
        run("ip", "link", "add", fleet.bridge, "type", "bridge")
        say(f"bridge {fleet.bridge} made")
    local = [a["local"] for a in (mine or {}).get("addr_info", [])]
    if str(fleet.network.ip) not in local:
        run("ip", "addr", "replace", str(fleet.network), "dev", fleet.bridge)
    run("ip", "link", "set", fleet.bridge, "up")

    forward(fleet.bridge)

    table = f"inet {fleet.bridge}"
    if subprocess.run(["nft", "list", "table", *table.split()], capture_output=True).returncode:
        network = fleet.network.network
        rules = f"""
            table {table} {{
              chain postrouting {{
                type nat hook postrouting priority srcnat
                ip saddr {network} ip daddr != {network} masquerade
              }}
              chain forward {{
                type filter hook forward priority filter
                iifname "{fleet.bridge}" accept
                oifname "{fleet.bridge}" ct state established,related accept
              }}
            }}"""
        run("nft", "-f", "-", stdin=rules)
        say(f"nftables table {table} made")


def forward(bridge: str) -> None:
    """Switch IPv4 forwarding on, and remember for whom and what it was."""
    FORWARDING_USERS.mkdir(parents=True, exist_ok=True)
    before = FORWARDING_USERS / ".before"
    if not before.exists():
        write(before, FORWARDING.read_text())
    (FORWARDING_USERS / bridge).touch()
    if FORWARDING.read_text().strip() != "1":
        FORWARDING.write_text("1")
        say("IPv4 forwarding switched on")


def forward_no_longer(bridge: str) -> None:
    """Put forwarding back to what it was, unless another fleet on this computer needs it."""
    (FORWARDING_USERS / bridge).unlink(missing_ok=True)
    before = FORWARDING_USERS / ".before"
    if before.exists() and [*FORWARDING_USERS.iterdir()] == [before]:
        FORWARDING.write_text(before.read_text())
        remove_tree(FORWARDING_USERS)


def make_key(fleet: Fleet) -> None:
    """Make the key that opens the machines."""
    keys = fleet.directory / "ssh"
    keys.mkdir(exist_ok=True, mode=0o700)
    (keys / "control").mkdir(exist_ok=True, mode=0o700)
    if not (keys / "id_ed25519").exists():
        new_key(keys / "id_ed25519", "neurofleet")
        say("SSH key made")


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


# --- Down ---------------------------------------------------------------------------------


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


def remove_network(bridge: str) -> None:
    """Remove bridge and rules; put forwarding back."""
    if shutil.which("nft"):
        subprocess.run(["nft", "delete", "table", "inet", bridge], capture_output=True, check=False)
    # The kernel removes the links of a machine that was killed, but takes its time.
    listed = subprocess.run(
        ["ip", "-json", "link", "show", "master", bridge], capture_output=True, check=False
    ).stdout
    for link in [*(port["ifname"] for port in json.loads(listed or "[]")), bridge]:
        subprocess.run(["ip", "link", "delete", link], capture_output=True, check=False)
    forward_no_longer(bridge)
    say(f"bridge {bridge} removed")


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


# --- Small things -------------------------------------------------------------------------


def existing(directory: Path) -> list[str]:
    """Return the names of the machines in a directory."""
    machines = directory / "machines"
    return sorted(path.name for path in machines.iterdir()) if machines.is_dir() else []


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


def unmount(path: Path) -> None:
    """Unmount everything at and below a path."""
    for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
        point = line.split()[1].replace("\\040", " ")
        if point == str(path) or point.startswith(f"{path}/"):
            run("umount", "--lazy", point)


def remove_tree(path: Path) -> None:
    """Remove a directory, never what is mounted in it."""
    unmount(path)
    run("rm", "-rf", "--one-file-system", str(path))


def new_key(path: Path, comment: str) -> None:
    """Make an SSH key pair, whole or not at all."""
    for part in (path, path.with_name(f"{path.name}.pub")):
        part.unlink(missing_ok=True)
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", f"{path}.new")
    Path(f"{path}.new.pub").rename(f"{path}.pub")
    Path(f"{path}.new").rename(path)


def os_release() -> dict[str, str]:
    """Return what this computer's system calls itself."""
    pairs = (line.partition("=") for line in read(Path("/etc/os-release")).splitlines())
    return {name: value.strip('"') for name, _, value in pairs}


def read(path: Path) -> str:
    """Return a file's text, nothing if there is none."""
    return path.read_text() if path.exists() else ""


def write(path: Path, text: str) -> None:
    """Write a file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.rename(path)


def tail(path: Path) -> str:
    """Return the last lines of a log."""
    return "\n".join(read(path).splitlines()[-20:])


@contextlib.contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Let one process at a time change what a directory stands for."""
    # Outside the directory, which `down` removes.
    name = str(directory.resolve()).replace("/", "-").lstrip("-")
    with Path(f"/run/lock/{name}.lock").open("w") as file:
        until = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    fail(f"another process is changing {directory}. Wait for it or end it.")
                time.sleep(0.2)
        yield


def run(*command: str, stdin: str | None = None, env: dict[str, str] | None = None) -> str:
    """Run a command and return its output; what it said goes into the error."""
    done = subprocess.run(
        command, input=stdin, env=env, capture_output=True, text=True, timeout=1200, check=False
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-15:]
        fail(f"{shlex.join(command)} failed:\n" + "\n".join(said))
    return done.stdout


def say(text: str) -> None:
    """Report one change."""
    print(text, flush=True)


def fail(text: str) -> NoReturn:
    """End with one message."""
    sys.exit(f"error: {text}")


if __name__ == "__main__":
    main()
