# SPDX-License-Identifier: GPL-3.0-or-later
# It imports Ansible's code, unlike the rest of neurofleet; see LICENSES/GPL-3.0-or-later.txt.
"""What exists of a fleet on AWS: ``amazon.aws.aws_ec2`` with region and name filled in.

The plugin of amazon.aws knows nothing of ``group_vars``, where region and name of the fleet
are set; this one reads them there, so that they are said once, and hands over to it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import boto3
import yaml
from ansible.errors import AnsibleError
from ansible.plugins.inventory import BaseFileInventoryPlugin
from ansible.plugins.loader import inventory_loader
from ansible.utils.display import Display
from ansible.utils.vars import load_extra_vars

DOCUMENTATION = """
name: neurofleet_aws
short_description: The machines of a fleet on AWS
description:
  - Reads aws_machines_region and fleet_name from group_vars/all beside its file, and gives them,
    with everything else in the file, to amazon.aws.aws_ec2.
options:
  plugin:
    description: Name of this plugin.
    required: true
    choices: [neurofleet_aws]
"""

#: What has no value in the inventory has the role's.
DEFAULTS = {"fleet_name": "neurofleet", "aws_machines_region": ""}


class _WrongRegion(Exception):
    """There is no such region."""


def _end(message: str) -> None:
    """Say one thing and end: a source that fails is tried by four more plugins."""
    Display().error(message, wrap_text=False)
    sys.exit(1)


class InventoryModule(BaseFileInventoryPlugin):  # type: ignore[misc]
    """See above."""

    NAME = "neurofleet_aws"

    def verify_file(self, path: str) -> bool:
        """Take files that end as amazon.aws wants them to."""
        return bool(super().verify_file(path)) and path.endswith(("aws_ec2.yml", "aws_ec2.yaml"))

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        """Fill in, and hand over."""
        super().parse(inventory, loader, path, cache)
        config = yaml.safe_load(Path(path).read_text())
        settings = self._settings(Path(path), loader)
        config["plugin"] = "amazon.aws.aws_ec2"
        config["regions"] = [settings["aws_machines_region"]]
        config.setdefault("filters", {})["tag:neurofleet:fleet"] = settings["fleet_name"]
        try:
            self._check_region(settings["aws_machines_region"])
            self._ask(config, inventory, loader, cache)
        except _WrongRegion as error:
            _end(str(error))
        except Exception as error:  # of boto3, of its parsers, of amazon.aws
            why = " ".join(str(error).split()).rstrip(".")
            _end(
                f"the machines on AWS cannot be listed: {why}. See whether you have credentials"
                " (`aws sts get-caller-identity`) and the network."
            )

    def _check_region(self, region: str) -> None:
        known = boto3.Session().get_available_regions("ec2")
        if region not in known:
            raise _WrongRegion(
                f"aws_machines_region is {region!r}, which is no region of EC2. Use one of"
                f" {', '.join(sorted(known))}."
            )

    def _ask(self, config: dict[str, Any], inventory: Any, loader: Any, cache: bool) -> None:
        plugin = inventory_loader.get("amazon.aws.aws_ec2")
        if plugin is None:
            raise AnsibleError(
                "the collection amazon.aws is missing; requirements/control.txt has it."
            )
        with tempfile.TemporaryDirectory() as folder:
            filled = Path(folder) / "filled.aws_ec2.yml"
            filled.write_text(yaml.safe_dump(config))
            plugin.parse(inventory, loader, str(filled), cache=cache)

    def _settings(self, path: Path, loader: Any) -> dict[str, str]:
        """Return region and name: of the command line, else of group_vars, else the role's."""
        found: dict[str, Any] = dict(DEFAULTS)
        for file in sorted((path.parent / "group_vars" / "all").glob("*.yml")):
            # Not by the loader: it would hand what it read to everybody else, and as untrusted.
            found |= yaml.safe_load(file.read_text()) or {}
        found |= load_extra_vars(loader)
        for name in DEFAULTS:
            if "{{" in str(found[name]):
                raise AnsibleError(f"{name} must be a plain value in {path.parent}/group_vars/all.")
        return {name: str(found[name]) for name in DEFAULTS}
