"""What this machine, if it is a fleet's head, knows about its fleet.

Ansible writes the file (role ``client``), this module reads it; it has no secrets.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurofleet.files import as_object, count, entries, read_settings, text

#: Where Ansible writes it; ``NEUROFLEET_MANIFEST`` names another file.
PATH = Path("/etc/neurofleet/fleet.json")
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Worker:
    """One machine with engines.

    Attributes
    ----------
    name : str
        In the inventory.
    hostname : str
        As the machine calls itself.
    engines : int
        Engines that it should show.
    """

    name: str
    hostname: str
    engines: int


@dataclass(frozen=True)
class Manifest:
    """A fleet, as it should be.

    Attributes
    ----------
    name : str
    profile : str
        The IPython profile of its controller.
    profile_dir : Path
    client_file : Path
        The clients' connection file.
    workers : tuple of Worker
    lock : str
        SHA-256 of the lock that head and workers share.
    """

    name: str
    profile: str
    profile_dir: Path
    client_file: Path
    workers: tuple[Worker, ...]
    lock: str

    @property
    def engines(self) -> int:
        """Engines that the whole fleet should show."""
        return sum(worker.engines for worker in self.workers)


def path() -> Path:
    """Return where the manifest is, if there is one."""
    return Path(os.environ.get("NEUROFLEET_MANIFEST") or PATH)


def read(file: Path | None = None) -> Manifest | None:
    """Return the fleet that this machine is the head of, ``None`` if it is not one.

    Raises
    ------
    UsageError
        The file is there and cannot be used.
    """
    remedy = "Run the playbook again: site.yml --tags client"
    return read_settings(file or path(), SCHEMA_VERSION, _manifest, "the fleet's manifest", remedy)


def _manifest(content: Mapping[str, Any]) -> Manifest:
    return Manifest(
        name=text(content, "name"),
        profile=text(content, "profile"),
        profile_dir=Path(text(content, "profile_dir")),
        client_file=Path(text(content, "client_file")),
        workers=tuple(_worker(as_object(entry)) for entry in entries(content, "workers")),
        lock=text(content, "lock"),
    )


def _worker(entry: Mapping[str, Any]) -> Worker:
    return Worker(text(entry, "name"), text(entry, "hostname"), count(entry, "engines"))
