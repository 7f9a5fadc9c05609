"""A real Slurm: a login machine with the controller, two compute machines, a shared directory.

Debian's packages on booted machines, as a site would have them; people are ordinary users
whose home is shared. Nothing of it is part of the product.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
MACHINES = ROOT / "roles/local_machines/files/machines.py"
HOME = Path("/var/lib/neurofleet-slurm-test")
#: An image with Slurm, kept from run to run.
CACHE = Path("/var/cache/neurofleet-slurm-test")
SHARED = "/shared"
#: The ordinary user's home, on all machines.
USER_HOME = f"{SHARED}/user"
LOGIN, COMPUTE = "login1", ("compute1", "compute2")
#: Cores of each compute machine, as Slurm is told.
CORES = 2
PACKAGES = (
    "environment-modules", "g++", "libpython3.11", "make", "munge", "procps", "python3-venv",
    "slurm-client", "slurmctld", "slurmd",
)  # fmt: skip
BOOT_LIMIT_S = 600.0

SLURM_CONF = f"""
ClusterName=test
SlurmctldHost={LOGIN}
SlurmUser=slurm
AuthType=auth/munge
MpiDefault=none
# On this kernel, with these cgroups: what was tried and works.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation=/var/lib/slurm/slurmctld
SlurmdSpoolDir=/var/lib/slurm/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd.log
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=batch_sched_delay=1,sched_interval=5,bf_interval=5
KillWait=5
MinJobAge=600
NodeName=compute[1-2] CPUs={CORES} RealMemory=2000 State=UNKNOWN
PartitionName=short Nodes=compute[1-2] Default=YES MaxTime=60 State=UP
"""


def settings() -> dict[str, Any]:
    """What ``machines.py up`` is asked for."""
    (HOME / "shared").mkdir(parents=True, exist_ok=True)
    return {
        "directory": str(HOME),
        "cache": str(CACHE),
        "release": "bookworm",
        "bridge": "nfslurm0",
        "network": "10.231.80.1/24",
        "machines": {LOGIN: "10.231.80.10", "compute1": "10.231.80.11", "compute2": "10.231.80.12"},
        "packages": list(PACKAGES),
        "binds": {str(HOME / "shared"): SHARED},
    }


class SlurmCluster:
    """The running cluster, as seen from this computer."""

    ssh_config = HOME / "ssh/config"

    @property
    def shared(self) -> Path:
        """The shared directory, on this computer."""
        return HOME / "shared"

    def path(self, there: str) -> Path:
        """Return where a path of the shared directory is on this computer."""
        return self.shared / Path(there).relative_to(SHARED)

    def ssh(
        self,
        command: str,
        *,
        on: str = LOGIN,
        user: str = "user",
        check: bool = True,
        timeout_s: float = 120,
        stdin: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command on a machine."""
        words = ["ssh", "-F", str(self.ssh_config), f"{user}@{on}", command]
        done = subprocess.run(
            words, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if check and done.returncode:
            raise AssertionError(
                f"{command!r} on {on}: {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def start(self, command: str, log: Path, *, on: str = LOGIN) -> subprocess.Popen[bytes]:
        """Start a shell command of the user's; its words go to a file."""
        words = ["ssh", "-F", str(self.ssh_config), f"user@{on}", command]
        with log.open("wb") as file:
            return subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )

    def jobs(self) -> dict[int, str]:
        """Return the state of every job that is pending, running or completing."""
        listed = self.ssh("squeue --noheader --format='%i %T'").stdout
        pairs = (line.split() for line in listed.splitlines())
        return {int(number): state for number, state in pairs}

    def state(self, job: int) -> str:
        """Return a job's state, also when it has ended."""
        told = self.ssh(f"scontrol show job {job} --oneliner").stdout
        found = re.search(r"JobState=(\S+)", told)
        assert found, told
        return found[1]


def up() -> SlurmCluster:
    """Boot the machines and start Slurm on them, unless they run."""
    machines("up", json.dumps(settings()))
    cluster = SlurmCluster()
    if cluster.ssh("sinfo", user="root", check=False).returncode:
        _configure(cluster)
    _modules(cluster)
    deadline = time.monotonic() + 60
    while (told := cluster.ssh("sinfo -h -N -o %T").stdout.split()) != ["idle"] * len(COMPUTE):
        assert time.monotonic() < deadline, f"nodes are {told}"
        time.sleep(0.5)
    return cluster


def down() -> None:
    """End and remove the machines; the image stays."""
    shutil.rmtree(HOME / "shared", ignore_errors=True)
    machines("down", None, "--directory", str(HOME))


def machines(action: str, stdin: str | None, *more: str) -> None:
    """Call the role's program."""
    done = subprocess.run(
        [sys.executable, str(MACHINES), action, *more],
        input=stdin, capture_output=True, text=True, timeout=BOOT_LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def _configure(cluster: SlurmCluster) -> None:
    """Write the same key, hosts and configuration on all machines, and start the daemons."""
    key = subprocess.run(["head", "-c", "1024", "/dev/urandom"], capture_output=True, check=True)
    (HOME / "munge.key").write_bytes(key.stdout)
    (HOME / "munge.key").chmod(0o600)
    addresses: Mapping[str, str] = settings()["machines"]
    hosts = "127.0.0.1 localhost\n" + "".join(f"{a} {n}\n" for n, a in addresses.items())
    cluster.shared.chmod(0o755)
    for name in addresses:
        _copy(HOME / "munge.key", f"root@{name}:/etc/munge/munge.key")
        _write(cluster, name, "/etc/hosts", hosts)
        _write(cluster, name, "/etc/slurm/slurm.conf", SLURM_CONF)
        _write(cluster, name, "/etc/slurm/cgroup.conf", "CgroupPlugin=cgroup/v1\n")
        service = "slurmctld" if name == LOGIN else "slurmd"
        other = "slurmd" if name == LOGIN else "slurmctld"
        cluster.ssh(
            f"""set -e
            chown munge:munge /etc/munge/munge.key; chmod 400 /etc/munge/munge.key
            install -d -o slurm -g slurm /var/lib/slurm /var/lib/slurm/slurmctld /var/log/slurm
            install -d /var/lib/slurm/slurmd
            [ -d {USER_HOME} ] || cp -a /home/user {USER_HOME}
            usermod -d {USER_HOME} user
            systemctl disable --quiet --now {other}
            systemctl restart munge {service}
            systemctl enable --quiet munge {service}""",
            on=name,
            user="root",
        )


def _modules(cluster: SlurmCluster) -> None:
    """Give the login machine a module for a compiler."""
    cluster.ssh("mkdir -p /usr/share/modules/modulefiles/compiler", user="root")
    content = "#%Module1.0\nsetenv SITE_COMPILER loaded\n"
    _write(cluster, LOGIN, "/usr/share/modules/modulefiles/compiler/12", content)


def _copy(source: Path, target: str) -> None:
    words = ["scp", "-q", "-F", str(SlurmCluster.ssh_config), str(source), target]
    subprocess.run(words, check=True, capture_output=True, timeout=60)


def _write(cluster: SlurmCluster, machine: str, path: str, text: str) -> None:
    cluster.ssh(f"cat > {shlex.quote(path)}", on=machine, user="root", stdin=text)


if __name__ == "__main__":
    up() if sys.argv[1:] == ["up"] else down()
