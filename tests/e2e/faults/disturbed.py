"""An optimisation on the fleet's head, which is disturbed, and what became of it."""

from __future__ import annotations

import contextlib
import itertools
import json
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e2e.booted import HEAD, WORKERS, Fleet
from e2e.faults.power import inside
from e2e.processes import awaited
from e2e.running import MODELS, Client, Evolution, Finished, Row, course, rows

#: Whose runs they are, and where.
USER, HOME = "user", "/home/user"
#: Where each worker's engines write down what they simulate; engines may write there.
COUNTED = "/var/lib/neurofleet/work/simulated"
#: BluePyOpt's L5PC, with its settings by default.
L5PC = ("opt_l5pc", "--start", "--ipyparallel", "--seed=42", "--offspring-size=1", "--max-ngen=2")
#: The client may take so long to begin, engines to be there, a unit to be scored [s].
LIMIT_S = 180.0


@dataclass
class DisturbedRun:
    """One run, from its first command to its end.

    Parameters
    ----------
    fleet : Fleet
    words : sequence of str
        Its command, without the run directory.
    name : str
        Of its directory on the head; unique on this fleet.
    log : Path
        Directory for what its commands say.
    environment : str
        Variables of the command, as a shell takes them.
    """

    fleet: Fleet
    words: Sequence[str]
    name: str
    log: Path
    environment: str = ""
    commands: list[Client] = field(default_factory=list)

    @property
    def directory(self) -> Path:
        """The run directory, as this computer sees it."""
        return inside(HEAD, f"{HOME}/{self.name}")

    @property
    def client(self) -> Client:
        """The last command."""
        return self.commands[-1]

    def begin(self) -> None:
        """Give the command, for the first time or again."""
        words = [*self.words, "--no-report", f"--run-dir={self.name}"]
        log = self.log / f"{self.name.replace('/', '-')}-{len(self.commands)}.log"
        line = f"cd {HOME} && exec env {self.environment} {shlex.join(words)}"
        self.commands.append(self.fleet.begin(HEAD, line, log, user=USER))

    def status(self) -> dict[str, Any]:
        """Return what the run says of itself; nothing before it says anything."""
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads((self.directory / "status.json").read_text()))
        return {}

    def scored(self) -> list[Row]:
        """Return what has been scored so far."""
        return rows(self.directory)

    def running(self) -> bool:
        return self.client.running()

    def scored_since(self, moment: float) -> set[str]:
        """Return the machines that have begun and scored a unit since a moment [s since 1970]."""
        return {row.host for row in self.scored() if row.started > moment}

    def wait_until_computing(self, hosts: int = len(WORKERS), limit_s: float = LIMIT_S) -> float:
        """Wait until so many machines score units, or the run has ended; return how long [s]."""
        since, moment = time.monotonic(), time.time()
        awaited(
            lambda: not self.running() or len(self.scored_since(moment)) >= hosts, limit_s,
            f"{hosts} machine(s) score units; the run says {self.status()}",
        )  # fmt: skip
        return time.monotonic() - since

    def signal(self, name: str) -> Finished:
        """Send the client a signal, and wait until it has ended."""
        # It may have ended by itself in this moment.
        self.fleet.ssh(HEAD, f"kill -s {name} {self.status()['pid']}")
        return self.client.ended(LIMIT_S)

    def to_its_end(self, limit_s: float) -> Finished:
        """Wait until the run is over."""
        return self.client.ended(limit_s)

    def course(self) -> dict[str, Any]:
        """Return all that the evolution decided, bit for bit."""
        return course(self.directory / "checkpoint.pkl")

    def longest_pause(self, since: float, until: float) -> float:
        """Return the longest time without a scored unit between two moments [s since 1970]."""
        ends = sorted(row.started + row.duration_s for row in self.scored())
        inner = [since, *(end for end in ends if since < end < until), until]
        return max(after - before for before, after in itertools.pairwise(inner))


def optimise(evolution: Evolution, *options: str) -> list[str]:
    """Return the command for an evolution of a model that ``put_model`` has put there."""
    _, *words = evolution.options()
    name = evolution.model.name
    return ["neurofleet", "optimise", name, *words, f"--name={name}", *options]


def put_model(fleet: Fleet, name: str) -> None:
    """Put a model of the tests beside the runs."""
    fleet.done(HEAD, f"rm -rf {HOME}/{name}", user=USER)
    fleet.copy(MODELS / name, HEAD, f"{HOME}/{name}", user=USER)


def forget_runs(fleet: Fleet) -> None:
    """Remove what earlier runs have left on the machines."""
    fleet.done(HEAD, f"rm -rf {HOME}/disturbed-*", user=USER)
    forget_simulated()


def forget_simulated() -> None:
    """Begin to count anew."""
    for worker in WORKERS:
        inside(worker, COUNTED).unlink(missing_ok=True)


def simulated() -> Counter[str]:
    """Return how often each unit was begun on any worker, by what its model wrote down."""
    found: Counter[str] = Counter()
    for worker in WORKERS:
        with contextlib.suppress(FileNotFoundError):
            found.update(inside(worker, COUNTED).read_text().splitlines())
    return found
