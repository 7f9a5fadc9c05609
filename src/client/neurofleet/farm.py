"""What a task farm is: tasks, somewhere to run them, and the simplest of such places."""

from __future__ import annotations

import pkgutil
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from neurofleet import safe_point
from neurofleet.errors import WorkloadFailed


@dataclass(frozen=True)
class ByName:
    """A function that travels as its name; ipyparallel by itself would send its code.

    Attributes
    ----------
    name : str
        ``module:function``, importable on the engine.
    """

    name: str

    @classmethod
    def of(cls, function: Callable[..., Any]) -> ByName:
        """Return the name of a module's function."""
        return cls(f"{function.__module__}:{function.__qualname__}")

    def __call__(self, *args: Any) -> Any:
        """Call the function; on the engine."""
        return pkgutil.resolve_name(self.name)(*args)


class Task(NamedTuple):
    """One call of an importable function on some engine.

    Attributes
    ----------
    key : object
        Names the task to the caller; hashable, unique in a run.
    function : callable
        Importable on the engines.
    args : tuple
    weight : float
        Heavier tasks start earlier.
    """

    key: Any
    function: Callable[..., Any]
    args: tuple[Any, ...]
    weight: float = 0.0

    @property
    def title(self) -> str:
        """What a person calls the task."""
        return str(self.key)

    @property
    def most_losses(self) -> int:
        """After so many lost engines the task is taken to be the cause."""
        return 10

    @property
    def not_on(self) -> str:
        """A host that must not have the task while there is another one; empty is none."""
        return ""

    def parts(self) -> Sequence[Task]:
        """Return what is submitted in its place when its engine was lost."""
        return (self,)


class Running(NamedTuple):
    """A task that an engine is working on, as far as the client knows.

    Attributes
    ----------
    key : object
        The task's.
    host : str
        Where; empty if that is not known.
    since : float
        By this machine's clock [s since 1970].
    """

    key: Any
    host: str
    since: float


class FarmState(NamedTuple):
    """What a person wants to know of a farm.

    Attributes
    ----------
    engines : int
        Engines that can be used now.
    busy : int
        Those that have a task.
    waiting_since : float or None
        Since when no engine can be used, by the monotonic clock [s].
    registered : int
        Engines that the controller knows, prepared or not.
    limit_s : float
        How long a run waits before it gives up [s]; 0 is not known.
    running : tuple of Running
        What engines are working on, the longest first.
    """

    engines: int
    busy: int
    waiting_since: float | None
    registered: int = 0
    limit_s: float = 0.0
    running: tuple[Running, ...] = ()


class Preparation(Protocol):
    """What an engine has to do before it may have tasks."""

    def request(self, answer: Any | None) -> tuple[Any, ...] | None:
        """Return the next call ``(function, *args)`` for an engine, ``None`` when ready.

        ``answer`` is what the previous call returned, ``None`` at first. A
        ``FleetError`` that is raised leaves the engine out.
        """


class Farm(Protocol):
    """Somewhere tasks are run."""

    @property
    def size(self) -> int:
        """Number of engines that can be used now."""

    def open(self) -> None:
        """Make at least one engine ready."""

    def run(
        self,
        tasks: Iterable[Task],
        on_result: Callable[[Task, Any], None],
        on_failure: Callable[[Task, WorkloadFailed], None] | None = None,
    ) -> None:
        """Run all tasks; ``on_result`` is called in this thread as each one ends."""

    def close(self) -> None:
        """Let go of the engines."""


class SerialFarm:
    """The calling process, one task after the other.

    Parameters
    ----------
    prepare : callable
        Called once before the first task; raises ``FleetError`` if it cannot be.
    release : callable
        Called when the farm closes.
    watch : callable or None
        Told the ``FarmState`` when it changes.
    """

    size = 1

    def __init__(
        self,
        prepare: Callable[[], None],
        release: Callable[[], None],
        watch: Callable[[FarmState], None] | None = None,
    ) -> None:
        self._prepare = prepare
        self._release = release
        self._watch = watch
        self._completed = 0

    def open(self) -> None:
        """Prepare this process."""
        self._prepare()

    def run(
        self,
        tasks: Iterable[Task],
        on_result: Callable[[Task, Any], None],
        on_failure: Callable[[Task, WorkloadFailed], None] | None = None,
    ) -> None:
        """Run all tasks in the order given; what one raises is raised."""
        with safe_point.working():  # also between two tasks, so that SIGTERM loses neither
            for task in tasks:
                if safe_point.asked():
                    raise safe_point.reached(self._completed)
                self._tell(Running(task.key, socket.gethostname(), time.time()))
                try:
                    result = task.function(*task.args)
                except WorkloadFailed as failure:
                    if on_failure is None:
                        raise
                    on_failure(task, failure)
                    continue
                self._completed += 1
                on_result(task, result)
        self._tell()

    def _tell(self, *running: Running) -> None:
        if self._watch is not None:
            self._watch(FarmState(1, len(running), None, 1, running=running))

    def close(self) -> None:
        """Release what was prepared."""
        self._release()


def check_engine(told: Mapping[str, Any], ours: Mapping[str, str]) -> None:
    """Compare an engine's answer to ``tasks.probe`` with the versions wanted.

    Raises
    ------
    WorkloadFailed
        One differs.
    """
    theirs = {**told["versions"], "neurofleet": told["neurofleet"], "Python": told.get("python")}
    for name, version in ours.items():
        if theirs.get(name) != version:
            has = f"{name} {theirs[name]}" if theirs.get(name) else f"no {name}"
            raise WorkloadFailed(
                f"the engine on {told['host']} has {has}, this machine has {version}",
                remedy="Install the same lock on both; results could differ",
            )
