"""What calls print: a file to which forks append, cut where they say that a call has ended."""

from __future__ import annotations

import fcntl
import os
import tempfile

#: So much of what one call prints is kept, its end [bytes].
KEPT_BYTES = 64 * 1024
#: The file is emptied when a call has printed so much [bytes].
LARGEST_BYTES = 8 * 1024 * 1024


class Printed:
    """The output of one call after the other, in a file without a name.

    Attributes
    ----------
    number : int
        The file's descriptor, to be standard output and error of forks.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it lasts as long as its process
        self.number = self._file.fileno()
        # A child that prints does so after what others have printed, and after what was cut off.
        fcntl.fcntl(self.number, fcntl.F_SETFL, os.O_APPEND)
        self._start = 0
        self._tail, self._cut = b"", 0

    def begin(self) -> None:
        """Begin with nothing: another fork follows."""
        self._file.truncate(0)
        self._start = 0

    def of_call(self, end: int) -> bytes:
        """Return what the current call has printed; the next one follows.

        Parameters
        ----------
        end : int
            The file's size when the call had ended.
        """
        start, self._start = self._start, end
        tail, cut = self._tail, self._cut
        self._tail, self._cut = b"", 0
        if end > start + KEPT_BYTES:
            cut += len(tail) + end - KEPT_BYTES - start
            tail, start = b"", end - KEPT_BYTES
        if end > start:
            tail += os.pread(self.number, end - start, start)
        if len(tail) > KEPT_BYTES:
            cut += len(tail) - KEPT_BYTES
            tail = tail[-KEPT_BYTES:]
        return b"[%d bytes before this were left out]\n" % cut + tail if cut else tail

    def rest(self) -> bytes:
        """Return what the last call has printed so far."""
        return self.of_call(os.fstat(self.number).st_size)

    def bound(self) -> None:
        """Keep the file small, whatever a call that goes on prints."""
        size = os.fstat(self.number).st_size
        if size - self._start < LARGEST_BYTES:
            return
        self._cut += len(self._tail) + size - KEPT_BYTES - self._start
        self._tail = os.pread(self.number, KEPT_BYTES, size - KEPT_BYTES)
        self.begin()
