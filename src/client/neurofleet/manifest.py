"""What this machine, if it is a fleet's head, knows about its fleet.

Ansible writes the file (role ``client``), this module reads it; it has no secrets.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurofleet.errors import UsageError

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
    file = file or path()
    try:
        text = file.read_text()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(file, error.strerror or str(error)) from error
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise TypeError("it is not an object")
        version = content.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {version}, this program knows {SCHEMA_VERSION}")
        return _manifest(content)
    except KeyError as error:
        raise _unusable(file, f"it has no {error}") from error
    except (TypeError, ValueError) as error:
        raise _unusable(file, str(error)) from error


def _manifest(content: dict[str, Any]) -> Manifest:
    workers = tuple(
        Worker(_text(worker, "name"), _text(worker, "hostname"), _count(worker, "engines"))
        for worker in content["workers"]
    )
    return Manifest(
        name=_text(content, "name"),
        profile=_text(content, "profile"),
        profile_dir=Path(_text(content, "profile_dir")),
        client_file=Path(_text(content, "client_file")),
        workers=workers,
        lock=_text(content, "lock"),
    )


def _text(content: dict[str, Any], key: str) -> str:
    value = content[key]
    if not isinstance(value, str) or not value:
        raise TypeError(f"{key!r} is {value!r}, not a text")
    return value


def _count(content: dict[str, Any], key: str) -> int:
    value = content[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{key!r} is {value!r}, not a count")
    return value


def _unusable(file: Path, why: str) -> UsageError:
    return UsageError(
        f"the fleet's manifest {str(file)!r} cannot be used: {why}",
        remedy="Run the playbook again: site.yml --tags client",
    )
