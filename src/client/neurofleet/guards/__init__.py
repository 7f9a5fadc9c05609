"""What keeps a fleet from costing money that nobody wants to spend; runs on its machines.

None of it has rights at AWS: a worker that powers itself off is ended by AWS, and a head is
stopped, because they were launched so.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurofleet.files import flag, number, read_settings, text, texts, words

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
    ttl_s : float
        How long the machine is there after each start [s]; 0 is for ever.
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
        On the head: where runs are looked for that are asked to stop before it ends.
    """

    on_head: bool
    idle_s: float
    ttl_s: float
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
    remedy = "Run the playbook again: site.yml --tags guards"
    return read_settings(file or path(), SCHEMA_VERSION, _settings, "the guards' settings", remedy)


def _settings(content: Mapping[str, Any]) -> Settings:
    return Settings(
        on_head=flag(content, "on_head"),
        idle_s=number(content, "idle_s"),
        ttl_s=number(content, "ttl_s"),
        connection_file=Path(text(content, "connection_file")),
        metadata_url=words(content, "metadata_url").rstrip("/"),
        timer=text(content, "timer"),
        most_h=number(content, "most_h"),
        wishes=Path(text(content, "wishes")),
        results_below=tuple(map(Path, texts(content, "results_below"))),
    )
