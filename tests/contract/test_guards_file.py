"""What the role guards writes is what the guard reads."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from contract.test_fleet_files import ROOT, _ansible_playbook
from neurofleet import guards

INVENTORY = """
head:
  hosts:
    h1:
workers:
  hosts:
    w1:
all:
  vars:
    ansible_connection: local
"""
PLAYBOOK = """
- hosts: all
  gather_facts: false
  vars_files: [{defaults}]
  tasks:
    - ansible.builtin.template:
        src: "{root}/roles/guards/templates/guards.json.j2"
        dest: "{target}/{{{{ inventory_hostname }}}}.json"
"""


def test_settings_of_the_role_are_read_by_the_guard(tmp_path: Path) -> None:
    files = [ROOT / "roles" / role / kind / "main.yml" for role, kind in (
        ("fleet", "defaults"), ("fleet", "vars"), ("guards", "defaults"), ("guards", "vars"),
    )]  # fmt: skip
    (tmp_path / "inventory.yml").write_text(INVENTORY)
    play = PLAYBOOK.format(defaults=", ".join(map(str, files)), root=ROOT, target=tmp_path)
    (tmp_path / "play.yml").write_text(play)
    command = [_ansible_playbook(), "-i", str(tmp_path / "inventory.yml")]
    # Of what the defaults say it is the inventory that counts, as in a role.
    command += ["-e", "fleet_idle_minutes=1.5", "-e", "guards_metadata_url=http://169.254.169.254/"]
    command += ["-e", f"fleet_source_dir={ROOT}", str(tmp_path / "play.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    head, worker = (guards.read(tmp_path / f"{name}.json") for name in ("h1", "w1"))
    assert head is not None
    assert worker is not None
    assert (head.on_head, worker.on_head) == (True, False)
    assert worker.idle_s == pytest.approx(90.0)
    assert worker.metadata_url == "http://169.254.169.254"
    assert worker.connection_file.name == "ipcontroller-engine.json"
    assert worker.wishes == Path("/var/lib/neurofleet/work/guard")
    assert head.results_below == (Path("/home"), Path("/root"))
