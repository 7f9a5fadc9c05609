"""Functions that the farm's tests run on engines."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def work(log: str, name: str, seconds: float = 0.0) -> tuple[str, int]:
    """Note when this began, take some time, and say who did it."""
    with Path(log).open("a") as file:
        file.write(f"{name} {os.getpid()}\n")
    time.sleep(seconds)
    return name, os.getpid()


def kill_own_engine_once(mark: str) -> str:
    """End the engine by SIGKILL, the first time."""
    if not Path(mark).exists():
        Path(mark).write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def fail(log: str) -> None:
    """Raise, with a message of two lines."""
    work(log, "fail")
    raise ValueError("this cannot be\ndone")


def fail_once(mark: str) -> str:
    """Raise the first time."""
    if not Path(mark).exists():
        Path(mark).touch()
        raise OSError("just now it cannot")
    return "done"
