"""Processes that do a person's work for another one: limited, and ended with all that they started.

Standard library only, and little of it: whoever forks for each call starts quickly.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import resource
import signal
import sys
import time

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
#: What a process that has ended by itself leaves running may take so long to end as well [s].
LINGER_S = 0.2
#: So much of what a process printed last is told [characters].
LAST_WORDS = 600


def adopt_orphans() -> None:
    """Become the parent of all processes below this one whose own parent ends."""
    if sys.platform == "linux":
        _c_library().prctl(_PR_SET_CHILD_SUBREAPER, 1)


def outlive_parent() -> None:
    """Take back ``limits.die_with_parent``: this process notices, and tidies up."""
    if sys.platform == "linux":
        _c_library().prctl(_PR_SET_PDEATHSIG, 0)


def lead_a_group() -> None:
    """Have this process and what it starts end together; see ``end_group``."""
    with contextlib.suppress(OSError):  # its parent has done the same
        os.setpgid(0, 0)


def limit_memory(most: int) -> None:
    """Have this process fail when it needs more memory [bytes], before the machine does."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


def flush_c() -> None:
    """Write what C code has printed and the C library still holds back."""
    _c_library().fflush(None)


@functools.cache
def _c_library() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def has_children() -> bool:
    """Tell whether this process has any, ended or not."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def has_ended(child: int) -> bool:
    """Tell whether a child has ended; it is left to be waited for, so its number stays its own."""
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, child, flags) is not None


def end_group(leader: int) -> None:
    """End a child that has not been waited for, and its process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(leader, signal.SIGKILL)  # it may not lead its group yet, or no more


def ends_within(child: int, seconds: float) -> bool:
    """Tell whether a child has ended after so long [s] at most; see ``has_ended``."""
    until, pause = time.monotonic() + seconds, 0.0001
    while not has_ended(child):
        if time.monotonic() >= until:
            return False
        time.sleep(pause)
        pause = min(2 * pause, 0.01)
    return True


def children() -> frozenset[int]:
    """Return the numbers of this process's children."""
    if not has_children():
        return frozenset()
    import psutil

    return frozenset(child.pid for child in psutil.Process().children())


def end_children(others: frozenset[int], linger_s: float = LINGER_S) -> None:
    """Wait for the children of a process that adopts orphans, and end those that stay.

    Parameters
    ----------
    others : frozenset of int
        Children that are left alone.
    linger_s : float
        How long they may take to end by themselves, as a helper that tidies up does [s].
    """
    until = time.monotonic() + linger_s
    while has_children() and (left := children() - others):
        for child in left:
            if time.monotonic() >= until:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(child, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, os.WNOHANG)
        time.sleep(0.002)


def how_it_died(wait_status: int, who: str = "its process") -> str:
    """Return in words how a process ended."""
    if os.WIFSIGNALED(wait_status):
        return f"{who} was ended by {signal_name(os.WTERMSIG(wait_status))}"
    return f"{who} exited with code {os.waitstatus_to_exitcode(wait_status)}"


def signal_name(number: int) -> str:
    """Return a signal's name; those of real time have none in Python."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def last_words(output: bytes) -> str:
    """Return the end of what a process printed, to be added to how it ended."""
    text = " ".join(output[-4 * LAST_WORDS :].decode(errors="replace").split())[-LAST_WORDS:]
    return f"; its last words: {text}" if text else ""
