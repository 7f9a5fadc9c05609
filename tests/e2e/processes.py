"""What is running because of a test, found by a mark in its environment."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

import psutil

#: Every child inherits its environment, so every process of a test carries its mark.
MARK = "NEUROFLEET_TEST_MARK"

Found = TypeVar("Found")


def processes_with(mark: str) -> list[psutil.Process]:
    """Return the live processes that carry the mark; zombies are not alive."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def command(process: psutil.Process) -> str:
    """Return the command line; empty if the process is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def parent(process: psutil.Process) -> psutil.Process | None:
    """Return the parent, ``None`` if there is none any more."""
    try:
        return process.parent()
    except psutil.Error:
        return None


def simulations(mark: str) -> list[psutil.Process]:
    """Return the forks of warm processes: one for each unit that is being simulated."""
    warm = [p for p in processes_with(mark) if "neurofleet.engine.warm" in command(p)]
    forks = []
    for process in warm:
        above = parent(process)
        if above is not None and "neurofleet.engine.warm" in command(above):
            forks.append(process)
    return forks


def engines_simulating(mark: str) -> list[psutil.Process]:
    """Return the engines that have a simulation under way."""
    engines: dict[int, psutil.Process] = {}
    for fork in simulations(mark):
        warm = parent(fork)
        engine = warm and parent(warm)
        if engine and "ipyparallel.engine" in command(engine):
            engines[engine.pid] = engine
    return list(engines.values())


def controllers(mark: str) -> list[psutil.Process]:
    """Return the controllers' main processes."""
    running = {p.pid: p for p in processes_with(mark) if _runs(p, "ipyparallel.controller")}
    return [p for p in running.values() if (above := parent(p)) is None or above.pid not in running]


def awaited(condition: Callable[[], Found], limit_s: float, what: str) -> Found:
    """Return the condition's value once it is true; fail when that takes too long.

    A condition that is costly to ask is asked less often: what it is about needs the processor.
    """
    deadline = time.monotonic() + limit_s
    while True:
        asked = time.monotonic()
        if value := condition():
            return value
        now = time.monotonic()
        if now > deadline:
            raise AssertionError(f"not within {limit_s:g} s: {what}")
        time.sleep(min(1.0, max(0.02, 3 * (now - asked))))


def end(processes: Iterable[psutil.Process]) -> None:
    """End these processes, and wait until they are gone."""
    ended = list(processes)
    for process in ended:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(ended, timeout=10)


def end_with_children(pid: int) -> None:
    """Kill a process and everything that it started, as a power failure would.

    Its children may have process groups of their own, as those of Ansible have.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        main = psutil.Process(pid)
        main.suspend()  # so that it starts nothing more
        end([*main.children(recursive=True), main])


def _runs(process: psutil.Process, module: str) -> bool:
    """Tell whether a process is this Python module, rather than a tether around it."""
    line = command(process)
    return f"-m {module}" in line and "tether.py" not in line
