"""The other end of a job server: start it, ask it, end it."""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neurofleet.engine import frames
from neurofleet.engine.forks import last_words
from neurofleet.engine.job_content import Calls, Ended
from neurofleet.engine.job_server import DAMAGED
from neurofleet.engine.private_copy import remove_tree
from neurofleet.engine.warm import memory_limit
from neurofleet.engine.warm_process import without_display
from neurofleet.errors import FleetError, WorkloadFailed

#: How long loading a function may take [s].
LOAD_LIMIT_S = 600.0
#: How long the server has to end what it is calling, and itself [s].
CLOSE_S = 5.0
#: Not run as a module: a function's ``__main__`` is the person's program, or nothing.
PROGRAM = "from neurofleet.engine.job_server import main; main()"


class DamagedJob(Exception):
    """The job's file is not what was sent, or is gone."""


class ServerEnded(Exception):
    """The server itself ended, which no call can do by accident."""


class JobProcess:
    """A process that has one job loaded.

    Parameters
    ----------
    file : Path
        The job's.
    directory : str
        The person's, where calls are made; empty gives each a directory of its own.

    Raises
    ------
    DamagedJob
        The file cannot be used.
    WorkloadFailed
        The function cannot be loaded here.
    """

    def __init__(self, file: Path, directory: str) -> None:
        self._connection, theirs = socket.socketpair()
        self._scratch = "" if directory else tempfile.mkdtemp(prefix="neurofleet-calls-")
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - it is closed with the process
        words = [theirs.fileno(), os.getpid(), memory_limit(), file, directory, self._scratch]
        environment = without_display()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", PROGRAM, *map(str, words)],
                cwd=self._scratch or "/",
                env=environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                start_new_session=True,
            )
        except BaseException:
            self._discard()
            raise
        finally:
            theirs.close()
        self._messages = frames.Messages(self._connection.fileno())
        try:
            told = self._loaded()
        except BaseException:
            self.close(0.0)
            raise
        if isinstance(told, FleetError) or told == DAMAGED:
            self.close()
            raise told if isinstance(told, FleetError) else DamagedJob

    def run(self, items: Sequence[tuple[int, bytes]], calls: Calls) -> list[Ended]:
        """Call the job for each item.

        Raises
        ------
        ServerEnded
            What became of the items is not known.
        """
        try:
            frames.send(self._connection.fileno(), pickle.dumps((tuple(items), calls)))
            ended: list[Ended] = pickle.loads(self._messages.wait())
        except (OSError, EOFError) as error:
            raise ServerEnded(self._last_words()) from error
        return ended

    def close(self, within_s: float = CLOSE_S) -> None:
        """End the process and what it is calling; safe to call twice."""
        self._connection.close()
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._discard()

    def _discard(self) -> None:
        self._connection.close()
        self._output.close()
        if self._scratch:
            remove_tree(Path(self._scratch))

    def _loaded(self) -> Any:
        until = time.monotonic() + LOAD_LIMIT_S
        what = f"no answer within {LOAD_LIMIT_S:.0f} s"
        while (left_s := until - time.monotonic()) > 0:
            if not select.select([self._connection], [], [], left_s)[0]:
                break
            if not self._messages.read():
                what = "its process ended"
                break
            message = self._messages.next()
            if message is not None:
                return pickle.loads(message)
        raise WorkloadFailed(
            f"the function does not load on {socket.gethostname()}: {what}{self._last_words()}",
            remedy="Import its module in a plain Python there to see more",
        )

    def _last_words(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            self._output.seek(0)
            return last_words(self._output.read()[-4096:])
        return ""
