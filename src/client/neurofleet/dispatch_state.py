"""What the task farm remembers while it runs, and how it reads what engines say."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from neurofleet.errors import FleetError, WorkloadFailed
from neurofleet.farm import Task

#: ipyparallel's names for "no engine has answered this".
LOST = frozenset(
    {
        "EngineError",
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
class Run:
    """The state of one ``EngineFarm.run``."""

    drawn: Iterator[Task] = field(default_factory=lambda: iter(()))
    waiting: list[tuple[float, int, Task]] = field(default_factory=list)
    out: dict[str, Task] = field(default_factory=dict)  # by message id
    done: set[Any] = field(default_factory=set)
    failures: dict[Any, int] = field(default_factory=dict)
    losses: dict[Any, int] = field(default_factory=dict)
    missed: set[str] = field(default_factory=set)  # outstanding, unknown to the hub once
    last_result: float = field(default_factory=time.monotonic)


def remote_failure(error: BaseException) -> WorkloadFailed:
    """Return what an engine raised."""
    name, value = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", error)
    return WorkloadFailed(f"an engine says {name}: {value}", remedy="See the engine's log")
