"""``neurofleet run hello``: every engine says who it is. The first thing to run on a new fleet."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from neurofleet import __version__
from neurofleet.atomic import write_whole
from neurofleet.backends.choice import EngineChoice, engine_source
from neurofleet.dispatch import EngineFarm
from neurofleet.dispatch_engines import ask
from neurofleet.engine import host_cache
from neurofleet.errors import TooFewEngines, UsageError
from neurofleet.files import dump_json

#: How long an engine may take to answer; a busy one answers after its task [s].
ANSWER_S = 60.0


@dataclass(frozen=True)
class Hello:
    """What an engine says of itself.

    Attributes
    ----------
    engine : int
        Its number.
    host : str
    pid : int
    versions : dict
        By name.
    says : str
    """

    engine: int
    host: str
    pid: int
    versions: dict[str, str]
    says: str = "Hello, World"

    def __str__(self) -> str:
        """One line."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"engine {self.engine} on {self.host}, process {self.pid} ({versions}): {self.says}"


def introduce() -> tuple[str, int, dict[str, str]]:
    """Return host, process and versions; runs on an engine."""
    versions = {"Python": platform.python_version(), "neurofleet": __version__}
    return socket.gethostname(), os.getpid(), versions | host_cache.versions()


def hello(choice: EngineChoice) -> list[Hello]:
    """Ask every engine.

    Raises
    ------
    EnginesUnreachable, TooFewEngines
        No controller; no engine; or some do not answer, and which.
    """
    with tempfile.TemporaryDirectory(prefix=".neurofleet-", dir=choice.scratch) as folder:
        source, _ = engine_source(choice, Path(folder) / "engines")
        farm = EngineFarm(source, engine_timeout_s=choice.timeout_s)
        with contextlib.closing(farm):
            farm.open()
            client = farm.client
            asked = ask(client, client.ids, introduce)
            client.wait(list(asked.values()), timeout=ANSWER_S)
            silent = sorted(
                engine
                for engine, answer in asked.items()
                if not answer.ready() or not answer.successful()  # it ended meanwhile
            )
            said = [
                Hello(engine, *answer.get(timeout=0))
                for engine, answer in sorted(asked.items())
                if engine not in silent
            ]
    if silent:
        raise TooFewEngines(
            f"{len(silent)} of {len(asked)} engines did not answer within {ANSWER_S:.0f} s:"
            f" {', '.join(map(str, silent))}",
            remedy="They may be busy: look again later; else see their logs",
        )
    return said


def keep(said: list[Hello], file: Path) -> None:
    """Write what was said as JSON, whole or not at all.

    Raises
    ------
    UsageError
        The file cannot be written.
    """
    told = {"schema_version": 1, "engines": [asdict(one) for one in said]}
    try:
        write_whole(Path(os.path.realpath(file)), dump_json(told, indent=2).encode() + b"\n")
    except OSError as error:
        raise UsageError(
            f"{str(file)!r} cannot be written ({error.strerror or error})",
            remedy="Make room or mend the permissions, or name another file with --output",
        ) from error
