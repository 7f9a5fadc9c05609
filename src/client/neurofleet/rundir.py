"""The run directory: everything that one optimisation leaves behind.

==================== ======================================================================
neurofleet-run.json  what was run: command, seed, sizes, versions, model, machine, state
scores.sqlite        the evaluation store (``store.py``)
checkpoint.pkl       BluePyOpt's checkpoint, one every generation (``checkpoint.py``)
status.json          how far it is (``status.py``)
best.json            the best individual's voltage traces, for the report
report.html          the report
engines/             logs of engines that were started for this run
==================== ======================================================================
"""

from __future__ import annotations

import os
import platform
import reprlib
import socket
import stat
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurofleet import __version__
from neurofleet.atomic import write_whole
from neurofleet.errors import RunDirectoryError
from neurofleet.files import count, dump_json, number, read_object, text, user_name, words
from neurofleet.model import RUN_MARKER

SCHEMA_VERSION = 1
#: What a run goes on from, with what SQLite puts beside a store.
KEPT = (
    RUN_MARKER,
    *(f"{store}{end}" for store in ("scores.sqlite", "items.sqlite") for end in ("", "-journal")),
    "scores.lock",
    "scores.holder",
)

#: What a person does about a file of a run that cannot be written.
GO_ON = (
    "Make room or mend the permissions, and run the same command again; what was computed is kept"
)


@dataclass(frozen=True)
class RunDirectory:
    """Names of the files in a run directory."""

    path: Path

    @property
    def about(self) -> Path:
        """What was run here."""
        return self.path / RUN_MARKER

    @property
    def checkpoint(self) -> Path:
        """BluePyOpt's checkpoint, unless the user put it elsewhere."""
        return self.path / "checkpoint.pkl"

    def checkpoint_of(self, about: Mapping[str, Any]) -> Path:
        """Return the checkpoint that a record names, or the one here if that has moved."""
        named = Path(about.get("checkpoint") or self.checkpoint)
        # A copy of a run directory names the checkpoint in the original.
        copied = named.name == self.checkpoint.name and self.checkpoint.exists()
        return self.checkpoint if copied or not named.exists() else named

    @property
    def status(self) -> Path:
        """How far the run is."""
        return self.path / "status.json"

    @property
    def best(self) -> Path:
        """Traces of the best individual."""
        return self.path / "best.json"

    @property
    def report(self) -> Path:
        """The report."""
        return self.path / "report.html"

    @property
    def engines(self) -> Path:
        """Profile and logs of engines started for the run."""
        return self.path / "engines"

    def create(self, signs: Sequence[str] = (RUN_MARKER, "scores.sqlite")) -> None:
        """Make the directory, unless it is there.

        Parameters
        ----------
        signs : sequence of str
            How the names of files begin of which a directory that was used before has one.

        Raises
        ------
        RunDirectoryError
            It cannot be made or written, is another user's, or holds things that are not
            of a run.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            found = {entry.name for entry in self.path.iterdir() if entry.name[0] != "."}
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise RunDirectoryError(
                f"the run directory {str(self.path)!r} cannot be used ({error.strerror or error})",
                remedy="Make room, mend its permissions, or name another with --run-dir",
            ) from error
        self.refuse_foreign()
        # A run that was refused before it began has left a store, or its lock only.
        ours = any(name.startswith(tuple(signs)) for name in found)
        if found - {"scores.lock"} and not ours:
            raise RunDirectoryError(
                f"{str(self.path)!r} is not empty and not a run directory",
                remedy="Name an empty or a new directory with --run-dir",
            )

    def refuse_foreign(self) -> None:
        """Raise unless what is gone on from here is plain files of this user's.

        Raises
        ------
        RunDirectoryError
            Something is another user's, or a link or a pipe in the place of a file.
        """
        for name in KEPT:
            try:
                status = (self.path / name).lstat()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise RunDirectoryError(
                    f"the run directory {str(self.path)!r} cannot be used ({error.strerror})",
                    remedy="Mend its permissions, or name another with --run-dir",
                ) from error
            if not stat.S_ISREG(status.st_mode):
                raise RunDirectoryError(
                    f"{name!r} in the run directory {str(self.path)!r} is not a plain file",
                    remedy="Find out who put it there; nothing was changed",
                )
            if status.st_uid != os.geteuid():
                raise RunDirectoryError(
                    f"the run directory {str(self.path)!r} is another user's: its {name} belongs"
                    f" to {user_name(status.st_uid)}",
                    remedy="Copy it if you trust who wrote it, since results and checkpoints are"
                    " pickles, which are code; or name another with --run-dir",
                )

    def read_about(self) -> dict[str, Any] | None:
        """Return what was run here, ``None`` if nothing was.

        Raises
        ------
        RunDirectoryError
            The file is damaged or of a later version.
        """
        try:
            about = read_object(self.about)
            version = about.get("schema_version")
            if not isinstance(version, int):
                raise ValueError("it has no schema_version")
            if version == SCHEMA_VERSION:
                _check_about(about)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise RunDirectoryError(
                f"{str(self.about)!r} is damaged ({why})",
                remedy="Remove that file; the scores beside it are kept and used",
            ) from error
        if version != SCHEMA_VERSION:
            raise RunDirectoryError(
                f"{str(self.about)!r} has schema_version {version}, this program"
                f" writes {SCHEMA_VERSION}",
                remedy="Use the version of neurofleet that wrote it, or another --run-dir",
            )
        return about

    def write_about(self, about: Mapping[str, Any]) -> None:
        """Write what is run here.

        Raises
        ------
        RunDirectoryError
            It cannot be written.
        """
        content = dump_json({"schema_version": SCHEMA_VERSION, **about}, indent=2)
        write_file(self.about, content.encode(), remedy=GO_ON)


def _check_about(about: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` unless everything in a record is of its kind; all may be missing."""
    for name in ("name", "command", "checkpoint", "state"):
        if about.get(name) is not None:
            words(about, name)
    for name in ("model", "settings", "versions", "machine", "description", "engines", "units"):
        if not isinstance(about.get(name, {}), dict):
            raise ValueError(f"{name!r} is {reprlib.repr(about[name])}, not an object")
    if about.get("generations_done") is not None:
        count(about, "generations_done")
    for name in ("started", "ended"):
        if about.get(name) is not None:
            number(about, name)
    model = about.get("model", {})
    for name in ("digest", "directory"):
        if name in model:
            text(model, name)


def write_file(path: Path, content: bytes, *, remedy: str) -> None:
    """Replace a file that a run is to leave, whole or not at all.

    Parameters
    ----------
    path : Path
    content : bytes
    remedy : str
        What to do when there is no room or no permission, and what is kept until then.

    Raises
    ------
    RunDirectoryError
        It cannot be written; the old file is as it was.
    """
    try:
        write_whole(path, content)
    except OSError as error:
        raise RunDirectoryError(
            f"{str(path)!r} cannot be written ({error.strerror or error})", remedy=remedy
        ) from error


def this_machine() -> dict[str, Any]:
    """Return what a reader of the report wants to know of this machine."""
    processor = platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return {
        "host": socket.gethostname(),
        "processor": processor,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": sys.version.split()[0],
        "neurofleet": __version__,
    }
