"""What a call may change of its process, put back before the next call."""

from __future__ import annotations

import contextvars
import gc
import importlib
import io
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

Value = TypeVar("Value")

# Both are asked for after every call, of which there may be thousands in a second: without
# Python's translation of each value.
_environment: Mapping[Any, Any] = vars(os.environ).get("_data", os.environ)
_handler: Callable[[int], Any] = importlib.import_module("_signal").getsignal


class Surroundings:
    """A process as it is now: environment, directory, signals, streams and the like."""

    def __init__(self) -> None:
        self._environment, self._raw = dict(os.environ), dict(_environment)
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._signals = sorted(int(number) for number in signal.valid_signals())
        self._handlers = list(map(_handler, self._signals))
        self._path, self._words = list(sys.path), list(sys.argv)
        self._recursion = sys.getrecursionlimit()
        self._threads = threading.active_count()
        self._collects = gc.isenabled()
        self._log = logging.root.level, list(logging.root.handlers)

    def call(self, function: Callable[..., Value], *args: Any) -> Value:
        """Call a function in a context of its own, as of numpy's and decimal's settings."""
        with warnings.catch_warnings():
            return contextvars.copy_context().run(function, *args)

    def put_back(self) -> None:
        """Make this process what it was; what cannot be is told by ``left_behind``."""
        if _environment != self._raw:
            os.environ.clear()
            os.environ.update(self._environment)
        os.umask(self._umask)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if (handlers := list(map(_handler, self._signals))) != self._handlers:
            for number, handler, now in zip(self._signals, self._handlers, handlers, strict=True):
                # None is a handler that is not Python's.
                if handler is not None and now is not handler:
                    signal.signal(number, handler)
        sys.path[:], sys.argv[:] = self._path, self._words
        sys.setrecursionlimit(self._recursion)
        if self._collects != gc.isenabled():
            (gc.enable if self._collects else gc.disable)()
        logging.root.level, logging.root.handlers[:] = self._log
        open_streams()

    def left_threads(self) -> bool:
        """Tell whether calls have left threads that still run."""
        return threading.active_count() > self._threads


_streams: dict[str, io.TextIOWrapper] = {}


class _Stream(io.FileIO):
    """A standard stream, of which nobody asks where it is: it becomes another pipe in a fork."""

    def seekable(self) -> bool:
        """Return that it is not."""
        return False


def open_streams() -> None:
    """Have Python's standard streams be those of this process, line by line.

    Those that it has from here are used again, unless they were closed: logging may know them.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        own = _streams.get(name)
        if own is None or own.closed:
            raw = io.BufferedWriter(_Stream(number, "w", closefd=False))
            own = io.TextIOWrapper(raw, "utf-8", "backslashreplace", line_buffering=True)
            _streams[name] = own
        for place in (name, f"__{name}__"):
            setattr(sys, place, own)
    if sys.__stdin__ is None or sys.__stdin__.closed:
        sys.__stdin__ = open(0, closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stdin = sys.__stdin__


def streams() -> list[Any]:
    """Return what stands for standard output and error now, and did at first."""
    return [sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__]


def open_files() -> list[Any]:
    """Return the files that are open for writing in Python, as far as its collector knows."""
    kinds = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)
    return [thing for thing in gc.get_objects() if isinstance(thing, kinds)]


def write_out(files: Iterable[Any]) -> None:
    """Write what files hold back; a process that ends at once would lose it."""
    for file in files:
        try:
            if not file.closed and file.writable():
                file.flush()
        except Exception:
            continue
