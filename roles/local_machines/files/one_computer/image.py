"""The image: a Debian that every machine starts from."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from .system import fail, read, remove_tree, run, say, write
from .wanted import ACCOUNT, Fleet

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
CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
LOCAL_CAS = Path("/usr/local/share/ca-certificates")
#: Disk space that the image may take [bytes].
IMAGE_SPACE = 1_000_000_000


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


def os_release() -> dict[str, str]:
    """Return what this computer's system calls itself."""
    pairs = (line.partition("=") for line in read(Path("/etc/os-release")).splitlines())
    return {name: value.strip('"') for name, _, value in pairs}


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
