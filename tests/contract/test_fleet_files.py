"""What the roles write is what the client reads: rendered by Ansible from the roles' defaults."""

from __future__ import annotations

import getpass
import grp
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from neurofleet import manifest
from neurofleet.controller import connection_files

ROOT = Path(__file__).parents[2]
INVENTORY = """
head:
  hosts:
    h1: {fleet_address: 192.0.2.1}
workers:
  hosts:
    w1: {fleet_address: 192.0.2.2, ipengine_count: 3}
    w2: {fleet_address: 192.0.2.3, ipengine_count: 4}
all:
  vars:
    ansible_connection: local
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
"""
PLAYBOOK = """
- hosts: all
  gather_facts: true
  gather_subset: [min, network]
  vars_files: [{defaults}]
  vars:
    __ipython_profile_scheme: leastload
  tasks:
    - ansible.builtin.template:
        src: "{root}/roles/{{{{ item.role }}}}/templates/{{{{ item.name }}}}.j2"
        dest: "{target}/{{{{ item.name }}}}"
      when: inventory_hostname == 'h1'
      loop:
        - {{role: client, name: fleet.json}}
        - {{role: ipython_profile, name: controller.json}}
"""


def _ansible_playbook() -> str:
    beside = [Path(sys.executable).parent, ROOT / ".venv-control" / "bin"]
    path = os.pathsep.join([*map(str, beside), os.environ.get("PATH", "")])
    found = shutil.which("ansible-playbook", path=path)
    if found is None:
        pytest.skip("no Ansible here: scripts/environment .venv-control control")
    return found


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contract")
    files = ("fleet/defaults", "fleet/vars", "client/defaults", "ipython_profile/defaults")
    defaults = ", ".join(str(ROOT / "roles" / file / "main.yml") for file in files)
    (folder / "inventory.yml").write_text(INVENTORY)
    play = PLAYBOOK.format(defaults=defaults, root=ROOT, target=folder)
    (folder / "play.yml").write_text(play)
    command = [_ansible_playbook(), "-i", str(folder / "inventory.yml"), str(folder / "play.yml")]
    command += ["-e", f"fleet_source_dir={ROOT}"]  # of a role's own path, which is not known here
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_manifest_of_the_roles_defaults_is_read_by_the_client(rendered: Path) -> None:
    fleet = manifest.read(rendered / "fleet.json")
    assert fleet is not None
    assert [(worker.name, worker.engines) for worker in fleet.workers] == [("w1", 3), ("w2", 4)]
    assert fleet.engines == 7
    assert fleet.profile_dir.name == f"profile_{fleet.profile}"
    assert fleet.client_file.parent == fleet.profile_dir / "security"
    assert len(fleet.lock) == 64


def test_manifest_has_no_secret(rendered: Path) -> None:
    content = json.loads((rendered / "fleet.json").read_text())
    assert set(content) == {
        "schema_version", "name", "profile", "profile_dir", "client_file", "workers", "lock",
    }  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0, reason="files are given to root")
def test_controller_settings_of_the_roles_defaults_make_connection_files(
    rendered: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = json.loads((rendered / "controller.json").read_text())
    for name in ("keys_file", "engine_file", "client_file"):
        assert settings[name].startswith("/var/lib/neurofleet/")
        settings[name] = str(tmp_path / Path(settings[name]).name)
    settings |= {"user": getpass.getuser(), "group": grp.getgrgid(os.getgid()).gr_name}
    assert len(connection_files.write(settings)) == 3
    connection_files.check(settings)
    engine = json.loads(Path(settings["engine_file"]).read_text())
    assert engine["interface"] == "tcp://192.0.2.1"
    assert engine["registration"] == 24100
