"""What keeps a fleet from costing money that nobody wants to spend; runs on its machines.

None of it has rights at AWS: a machine that powers itself off is ended by AWS, because it
was launched so.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurofleet.errors import UsageError

#: Where Ansible writes the settings; ``NEUROFLEET_GUARDS`` names another file.
PATH = Path("/etc/neurofleet/guards.json")
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Settings:
    """How this machine is guarded.

    Attributes
    ----------
    on_head : bool
    idle_s : float
        Time without a task after which the machine powers itself off [s]; 0 is never.
    connection_file : Path
        Of the engines, with which the hub is asked.
    metadata_url : str
        Of the service that tells of the end of a spot machine; empty where there is none.
    timer : str
        The systemd timer that ends the machine.
    most_h : float
        The furthest that its end may be put off from now [h].
    wishes : Path
        Directory where a new end is asked for; the fleet's account and its members write it.
    results_below : tuple of Path
        On the head: where run directories are looked for.
    """

    on_head: bool
    idle_s: float
    connection_file: Path
    metadata_url: str
    timer: str
    most_h: float
    wishes: Path
    results_below: tuple[Path, ...]


def path() -> Path:
    """Return where the settings are, if this machine is guarded."""
    return Path(os.environ.get("NEUROFLEET_GUARDS") or PATH)


def read(file: Path | None = None) -> Settings | None:
    """Return this machine's settings, ``None`` if it is not guarded.

    Raises
    ------
    UsageError
        The file is there and cannot be used.
    """
    file = file or path()
    try:
        content = json.loads(file.read_text())
        if content["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {content['schema_version']}")
        return _settings(content)
    except FileNotFoundError:
        return None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"the guards' settings {str(file)!r} cannot be used ({error})",
            remedy="Run the playbook again: site.yml --tags guards",
        ) from error


def _settings(content: dict[str, Any]) -> Settings:
    return Settings(
        on_head=bool(content["on_head"]),
        idle_s=float(content["idle_s"]),
        connection_file=Path(content["connection_file"]),
        metadata_url=str(content["metadata_url"]).rstrip("/"),
        timer=str(content["timer"]),
        most_h=float(content["most_h"]),
        wishes=Path(content["wishes"]),
        results_below=tuple(Path(folder) for folder in content["results_below"]),
    )
