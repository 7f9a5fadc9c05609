"""One process at a time works in a run directory, and others can tell which."""

from __future__ import annotations

import getpass
import os
import socket
import time
from pathlib import Path

import filelock

from neurofleet.errors import RunDirectoryError


class RunLock:
    """The right to write into a run directory.

    Parameters
    ----------
    directory : Path
        It exists.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = filelock.FileLock(directory / "scores.lock")
        self._holder = directory / "scores.holder"

    def acquire(self) -> None:
        """Take the directory, without waiting.

        Raises
        ------
        RunDirectoryError
            Another process has it, or it cannot be written.
        """
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout as error:
            try:
                holder = self._holder.read_text().strip()
            except OSError:
                holder = "another process"
            raise RunDirectoryError(
                f"the run directory {str(self._directory)!r} is in use by {holder}",
                remedy="Wait for it, end it, or name another directory with --run-dir",
            ) from error
        except OSError as error:
            raise RunDirectoryError(
                f"the run directory {str(self._directory)!r} is not writable"
                f" ({error.strerror or error})",
                remedy="Mend its permissions or name another with --run-dir",
            ) from error
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        try:
            self._holder.write_text(
                f"process {os.getpid()} of {getpass.getuser()} on {socket.gethostname()},"
                f" since {since}\n"
            )
        except OSError as error:
            self._lock.release()
            raise RunDirectoryError(
                f"the run directory {str(self._directory)!r} cannot be written"
                f" ({error.strerror or error})",
                remedy="Make room, mend its permissions, or name another with --run-dir",
            ) from error

    def release(self) -> None:
        """Let go of it; safe to call twice."""
        if self._lock.is_locked:
            self._holder.unlink(missing_ok=True)
            self._lock.release()
