"""Which licence is where: Ansible's own code may only be imported by what is GPL."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
GPL = "GPL-3.0-or-later"


def test_what_imports_ansible_is_gpl_and_says_so() -> None:
    folders = ("plugins", "roles", "src", "scripts", "benchmarks", "molecule", "playbooks")
    importing = [
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"^\s*(from|import) ansible\b", path.read_text(), re.M)
    ]
    assert importing
    for path in importing:
        assert path.read_text().startswith(f"# SPDX-License-Identifier: {GPL}\n"), path


def test_both_packages_name_the_licences_whose_texts_are_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0"
    collection = (ROOT / "galaxy.yml").read_text()
    assert f"\nlicense: [Apache-2.0, {GPL}]\n" in collection
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert "GNU GENERAL PUBLIC LICENSE" in (ROOT / "LICENSES" / f"{GPL}.txt").read_text()
