"""One process at a time works in a run directory, and others can tell which."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import filelock

from neurofleet.errors import RunDirectoryError
from neurofleet.files import open_plain, user_name

#: The lock, and who has it.
LOCK, HOLDER = "scores.lock", "scores.holder"
#: What is read of who holds a directory [bytes].
LONGEST_HOLDER = 500


class RunLock:
    """The right to write into a run directory.

    Parameters
    ----------
    directory : Path
        It exists.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = filelock.FileLock(directory / LOCK)
        self._holder = directory / HOLDER

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
                with open_plain(self._holder) as file:
                    holder = file.read(LONGEST_HOLDER).decode(errors="replace").strip()
            except OSError:
                holder = ""
            holder = holder or "another process"
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
            self._holder.unlink(missing_ok=True)  # what is there may be a link or a pipe
            with self._holder.open("x") as file:
                file.write(
                    f"process {os.getpid()} of {user_name(os.geteuid())} on {socket.gethostname()},"
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
