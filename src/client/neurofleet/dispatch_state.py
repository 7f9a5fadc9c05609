"""What the task farm remembers while it runs, and how it reads what engines say."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from neurofleet.errors import FleetError, WorkloadFailed
from neurofleet.farm import Task

#: ipyparallel's name for "it died while it had this".
LOST = frozenset({"EngineError"})
#: Its names for "nobody has had this": the engines that might have are gone.
NEVER_BEGUN = frozenset(
    {
        "NoEnginesRegistered",
        "ImpossibleDependency",
        "InvalidDependency",
        "TaskAborted",
        "CancelledError",
        "TaskTimeout",
    }
)


@dataclass
class Engine:
    """One registered engine: being prepared, ready, or left out."""

    identity: str
    host: str = ""
    ready: bool = False
    left_out: FleetError | None = None


@dataclass
class Out:
    """A task that was submitted; engines publish when they begin one."""

    task: Task
    engine: str = ""  # its identity, once it has begun
    since: float = 0.0  # by this machine's clock [s since 1970]

    def heard(self, message: dict[str, Any]) -> None:
        """Take note of what an engine publishes; called in ipyparallel's thread."""
        if message["content"].get("execution_state") == "busy":
            self.since = time.time()
            self.engine = str(message["metadata"].get("engine", ""))


@dataclass
class Run:
    """The state of one ``EngineFarm.run``."""

    drawn: Iterator[Task] = field(default_factory=lambda: iter(()))
    waiting: list[tuple[float, int, Task]] = field(default_factory=list)
    out: dict[str, Out] = field(default_factory=dict)  # by message id
    done: set[Any] = field(default_factory=set)
    failures: dict[Any, int] = field(default_factory=dict)
    losses: dict[Any, int] = field(default_factory=dict)
    missed: set[str] = field(default_factory=set)  # outstanding, unknown to the hub once
    held: list[tuple[str, Any]] = field(default_factory=list)  # results of who is being prepared
    last_result: float = field(default_factory=time.monotonic)
    refused_since: float | None = None  # tasks have been coming back that nobody has had


def remote_failure(error: BaseException) -> WorkloadFailed:
    """Return what an engine raised."""
    name, value = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", error)
    return WorkloadFailed(f"an engine says {name}: {value}", remedy="See the engine's log")
