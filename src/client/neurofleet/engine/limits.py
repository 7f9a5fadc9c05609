"""What this process may use of its machine, and that it ends with its parent.

A Slurm job, a container or a service has less than its machine: the kernel keeps the limits
of their cgroups, of version 1 or 2, each nested in others. Standard library only.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

_PR_SET_PDEATHSIG = 1
#: Version 1 says "no limit" by a number near the largest [bytes].
_NO_LIMIT = 2**60


def usable_cpus(root: Path = Path("/")) -> int:
    """Return how many CPUs this process may use, by its affinity and its cgroups' quotas.

    Parameters
    ----------
    root : Path
        Where ``proc`` and ``sys`` are.
    """
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    quotas = [quota for quota in map(_quota, _groups(root, "cpu")) if quota is not None]
    return max(1, math.floor(min([allowed, *quotas])))


def memory_limit_bytes(root: Path = Path("/")) -> int | None:
    """Return the memory that this process's cgroups have [bytes], ``None`` without a limit.

    Parameters
    ----------
    root : Path
        Where ``proc`` and ``sys`` are.
    """
    limits = [limit for limit in map(_memory, _groups(root, "memory")) if limit is not None]
    return min(limits, default=None)


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process when its parent ends.

    Called in the child, first of all. "The parent" is the thread that forked: it has to
    be one that lasts as long as its process. Does nothing where there is no Linux.

    Parameters
    ----------
    parent : int
        The parent's process id, which it noted before it forked: a parent that ended
        before the kernel was told would end nobody.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the directories of a controller's cgroups, this process's own first."""
    paths: dict[str, str] = {}
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        paths |= dict.fromkeys(names.split(","), path)  # version 2 has no name
    for line in _lines(root / "proc/self/mountinfo"):
        fields, _, filesystem = (part.split() for part in line.partition(" - "))
        if len(fields) < 5 or len(filesystem) < 3:
            continue
        kind, options = filesystem[0], filesystem[-1].split(",")
        if kind == "cgroup2":
            own = paths.get("")
        else:
            own = paths.get(controller) if kind == "cgroup" and controller in options else None
        if own is None:
            continue
        mounted, place = map(_unescaped, fields[3:5])
        top = root / place.lstrip("/")
        # A container may see its own group as the top, by the path that the host has for it.
        below = Path("/", own)
        inside = below.is_relative_to(mounted) and ".." not in below.parts
        group = top / below.relative_to(mounted) if inside else top
        yield group
        while group != top:
            group = group.parent
            yield group


def _memory(group: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        for line in _lines(group / name):
            if line.isdecimal() and int(line) < _NO_LIMIT:
                return int(line)
    return None


def _quota(group: Path) -> float | None:
    """Return how many CPUs a cgroup may keep busy."""
    told = " ".join(_lines(group / "cpu.max"))
    if not told:
        told = " ".join(
            line
            for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            for line in _lines(group / name)
        )
    quota, _, period = told.partition(" ")
    if not quota.isdecimal() or not period.isdecimal() or not int(period):
        return None  # "max", or -1
    return int(quota) / int(period)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _unescaped(path: str) -> str:
    """Return a path of mountinfo, where a space is a backslash and ``040``."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)
