"""What calls print, cut at the marks between them."""

from __future__ import annotations

import collections
import os

#: So much of what one call prints is kept, its end [bytes].
KEPT_BYTES = 64 * 1024


class Printed:
    """The output of one call after the other, read from a pipe.

    A process that calls several items writes a mark after each, so that nobody has to wait
    until what was printed has been read.

    Parameters
    ----------
    number : int
        The pipe's end, which does not wait.
    mark : bytes
        What nobody prints.
    """

    def __init__(self, number: int, mark: bytes) -> None:
        self.number = number
        self._mark = mark
        self._complete: collections.deque[bytes] = collections.deque()
        self._begin()

    def _begin(self) -> None:
        self._current = bytearray()
        self._cut = 0

    def read(self) -> bool:
        """Take in what is there; tell whether there was any."""
        try:
            some = os.read(self.number, 1 << 16)
        except BlockingIOError:
            return False
        # The mark may have come in two parts.
        start = max(0, len(self._current) - len(self._mark))
        self._current += some
        while (found := self._current.find(self._mark, start)) >= 0:
            rest = bytes(self._current[found + len(self._mark) :])
            del self._current[found:]
            self._complete.append(self._shown())
            self._begin()
            self._current += rest
            start = 0
        if len(self._current) > 2 * KEPT_BYTES:
            self._trim()
        return bool(some)

    def of_next_call(self) -> bytes:
        """Return what the next call printed whose mark has been written."""
        while not self._complete and self.read():
            pass
        return self._complete.popleft() if self._complete else b""

    def rest(self) -> bytes:
        """Return what was printed after the last mark."""
        while self.read():
            pass
        rest = self._shown()
        self._begin()
        return rest

    def _trim(self) -> None:
        surplus = len(self._current) - KEPT_BYTES
        self._cut += surplus
        del self._current[:surplus]

    def _shown(self) -> bytes:
        if len(self._current) > KEPT_BYTES:
            self._trim()
        if not self._cut:
            return bytes(self._current)
        return b"[%d bytes before this were left out]\n" % self._cut + self._current
