"""What comes back from a fork: one answer, and the end of what it printed."""

from __future__ import annotations

import contextlib
import os
import pickle
import selectors
import struct
import time
from multiprocessing.connection import Connection
from typing import Any

#: Status, value, reason in one line, traceback.
Told = tuple[str, Any, str, str]
#: Of what a fork prints so much is kept: its end [bytes].
KEPT = 4096
#: Of that so much is shown [characters].
SHOWN = 600
_LENGTH = struct.Struct("!Q")
_CHUNK = 1 << 16


class Inbox:
    """Two pipes from a fork: to be made before it, used by both sides.

    Nothing that the fork does can block the parent, nor the other way round: both pipes are
    read all the time, and a limit in time holds for an answer that is cut off in the middle
    too. Only the end of what is printed is kept, in memory: it costs no room on a disk that
    may be full.

    Parameters
    ----------
    engine : Connection
        Becomes readable when the engine is gone.
    """

    def __init__(self, engine: Connection) -> None:
        self._engine = engine
        self._answer, self._to_answer = os.pipe()
        self._output, self._to_output = os.pipe()
        self._got = bytearray()
        self._printed = b""

    # -- the fork's side -------------------------------------------------------------

    def take_output(self) -> None:
        """Have all that this process prints go to the parent."""
        os.close(self._answer)
        os.close(self._output)
        for stream in (1, 2):
            os.dup2(self._to_output, stream)
        os.close(self._to_output)

    def send(self, told: Told) -> None:
        """Send the answer."""
        content = memoryview(pickle.dumps(told, protocol=pickle.HIGHEST_PROTOCOL))
        for part in (memoryview(_LENGTH.pack(len(content))), content):
            while part:
                part = part[os.write(self._to_answer, part) :]

    # -- the parent's side -----------------------------------------------------------

    def wait(self, child: int, limit_s: float) -> str:
        """Return what came first: ``whole`` answer, ``ended``, ``timeout`` or ``engine``."""
        os.close(self._to_answer)
        os.close(self._to_output)
        self._to_answer = self._to_output = -1
        deadline = time.monotonic() + limit_s
        with selectors.DefaultSelector() as selector, contextlib.ExitStack() as resources:
            for source in (self._answer, self._output, self._engine.fileno()):
                selector.register(source, selectors.EVENT_READ)
            # What the fork has started may hold the pipes open when it has crashed.
            process = -1
            with contextlib.suppress(AttributeError, OSError):
                process = os.pidfd_open(child)
                resources.callback(os.close, process)
                selector.register(process, selectors.EVENT_READ)
            while True:
                left = deadline - time.monotonic()
                ready = (
                    {key.fd for key, _ in selector.select(max(0.0, left))} if left > 0 else set()
                )
                if self._output in ready:
                    more = os.read(self._output, _CHUNK)
                    self._printed = (self._printed + more)[-KEPT:]
                    if not more:
                        selector.unregister(self._output)
                if self._answer in ready:
                    more = os.read(self._answer, _CHUNK)
                    self._got += more
                    if self._is_whole():
                        return "whole"
                    if not more:
                        return "ended"
                elif self._engine.fileno() in ready:
                    return "engine"
                elif ready == {process}:
                    return "ended"
                elif not ready and left <= 0:
                    return "timeout"

    def told(self) -> Told | None:
        """Return the answer, ``None`` if it cannot be read."""
        try:
            status, value, reason, text = pickle.loads(self._got[_LENGTH.size :])
        except Exception:  # it may be anything
            return None
        return status, value, reason, text

    def last_words(self) -> str:
        """Return the end of what was printed, as part of a sentence."""
        text = " ".join(self._printed.decode(errors="replace").split())
        return f"; its last words: {text[-SHOWN:]}" if text else ""

    def close(self) -> None:
        """Close the parent's side, and read what is left of what was printed."""
        os.set_blocking(self._output, False)
        with contextlib.suppress(BlockingIOError):
            while more := os.read(self._output, _CHUNK):
                self._printed = (self._printed + more)[-KEPT:]
        for end in (self._answer, self._output, self._to_answer, self._to_output):
            if end >= 0:
                os.close(end)

    def _is_whole(self) -> bool:
        if len(self._got) < _LENGTH.size:
            return False
        (length,) = _LENGTH.unpack_from(self._got)
        return len(self._got) >= _LENGTH.size + int(length)
