"""One cluster for all tests of this directory, with neurofleet installed by an ordinary user."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.running import MODELS
from e2e.slurm import cluster as machines
from e2e.slurm.cluster import ROOT, USER_HOME, SlurmCluster

INVENTORY = """
login:
  hosts:
    login:
      ansible_host: {host}
      ansible_user: user
      ansible_ssh_common_args: -F {config}
      user_install_modules: [compiler/12]
"""
PLAYBOOK_LIMIT_S = 900.0


@pytest.fixture(scope="session")
def bare() -> Iterator[SlurmCluster]:
    """A Slurm cluster, as its site hands it over."""
    if os.getuid() != 0:
        pytest.skip("booting machines takes root")
    if not (ROOT / ".venv-control/bin/ansible-playbook").exists():
        pytest.skip("no Ansible here: scripts/environment .venv-control control")
    keep = bool(os.environ.get("NEUROFLEET_KEEP_SLURM"))
    if not keep:
        machines.down()  # tests that were killed have left theirs
    try:
        yield machines.up()
    finally:
        if not keep:
            machines.down()


@pytest.fixture(scope="session")
def cluster(bare: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> SlurmCluster:
    """The cluster after ``playbooks/user_install.yml``, with models in the user's home."""
    inventory = tmp_path_factory.mktemp("inventory") / "hosts.yml"
    inventory.write_text(INVENTORY.format(host=machines.LOGIN, config=bare.ssh_config))
    bare.ssh("date > installing")
    done = install(inventory)
    assert done.returncode == 0, done.stdout + done.stderr
    again = install(inventory)
    assert "changed=0 " in again.stdout, again.stdout
    home = bare.path(USER_HOME)
    owner = home.stat()
    if not (home / "quick").exists():
        shutil.copytree(MODELS / "quick", home / "quick")
        for path in [home / "quick", *(home / "quick").rglob("*")]:
            os.chown(path, owner.st_uid, owner.st_gid)
    return bare


def install(inventory: Path) -> subprocess.CompletedProcess[str]:
    """Run the playbook."""
    return subprocess.run(
        [
            ROOT / ".venv-control/bin/ansible-playbook", "playbooks/user_install.yml",
            "-i", str(inventory),
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=PLAYBOOK_LIMIT_S, check=False,
        env={
            **os.environ,
            "PATH": f"{ROOT}/.venv-control/bin:{os.environ['PATH']}",
            "ANSIBLE_SSH_ARGS": "-o ControlMaster=no -o ConnectTimeout=10",
        },
    )  # fmt: skip


@pytest.fixture(autouse=True)
def quiet(cluster: SlurmCluster) -> Iterator[None]:
    """No job is left over from a test, and every node takes jobs."""
    yield
    cluster.ssh("scancel --user=user")
    for node in machines.COMPUTE:
        cluster.ssh(f"scontrol update NodeName={node} State=RESUME", user="root", check=False)
