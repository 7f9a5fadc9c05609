"""Jobs in a host's cache: one file each, named by its hash, whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import time
from pathlib import Path

from neurofleet.engine import host_cache
from neurofleet.errors import WorkloadFailed

#: A job's file that nobody has used for so long is removed [s].
KEPT_S = 7 * 86400.0


def path(digest: str) -> Path:
    """Return where a job is, if it is there."""
    return host_cache.host_directory() / "jobs" / digest


def keep(digest: str, payload: bytes) -> None:
    """Keep a job, on disk when this returns; forget those that nobody uses.

    Raises
    ------
    WorkloadFailed
        The cache cannot be written.
    """
    file = path(digest)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        if file.exists() and hashlib.sha256(file.read_bytes()).hexdigest() == digest:
            return
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for other in file.parent.iterdir():
            with contextlib.suppress(OSError):
                if other.stat().st_mtime < time.time() - KEPT_S:
                    other.unlink()
        with partial.open("wb") as whole:
            whole.write(payload)
            whole.flush()
            os.fsync(whole.fileno())
        partial.replace(file)
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise unusable(error) from error


def use(digest: str) -> Path:
    """Return a job's file, which is kept for longer because it is used."""
    file = path(digest)
    with contextlib.suppress(OSError):
        file.touch()
    return file


def remove(digest: str) -> None:
    """Remove a job's file, so that the job is sent again."""
    with contextlib.suppress(OSError):
        path(digest).unlink(missing_ok=True)


def unusable(error: OSError) -> WorkloadFailed:
    """Return what to say of a cache that cannot be used."""
    return WorkloadFailed(
        f"the cache {str(host_cache.cache_directory())!r} on {socket.gethostname()} cannot be used"
        f" ({error.strerror or error})",
        remedy="Make room there, or name another place with NEUROFLEET_CACHE",
    )
