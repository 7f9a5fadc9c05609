"""The standard streams of a command, whatever the person's terminal or shell made of them."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import stat
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: Names of files are bytes, and terminals have other alphabets: what is done with either.
ERRORS = "neurofleet"


def make_usable() -> None:
    """Open what is closed, and have no character that cannot be printed end a command.

    A closed standard stream would be given to the next file that is opened, such as a store,
    and what a library prints would be written into it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    codecs.register_error(ERRORS, _bytes_or_escape)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=ERRORS)


def notice_loss(call: Callable[[], bool]) -> None:
    """Have a command go on when nobody reads any more what it says.

    A connection that is lost leaves a pipe without a reader, or a terminal that is gone.

    Parameters
    ----------
    call : callable
        Called when something cannot be written, until it says that the command is to go on, and
        the stream is silent. If it is not, writing to stdout raises ``BrokenPipeError``, which
        ends a command such as ``neurofleet list | head``.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):
            continue
        # Of PYTHONUNBUFFERED too: what is not written at once, because of a signal, would be lost.
        if isinstance(stream.buffer, io.BufferedWriter | io.FileIO):
            whole = io.BufferedWriter(_Noticing(stream.fileno(), call))
            by_line = stream.line_buffering or stream.write_through
            noticing = io.TextIOWrapper(
                whole, stream.encoding, stream.errors, line_buffering=by_line
            )
            setattr(sys, name, noticing)


def leave_terminal() -> None:
    """Write nowhere from now on what would have gone to a terminal, which has been lost."""
    for number in (1, 2):
        if _is_device(number):  # a lost terminal is none for isatty()
            _silence(number)


class _Noticing(io.FileIO):
    def __init__(self, number: int, call: Callable[[], bool]) -> None:
        super().__init__(number, "w", closefd=False)
        self._call = call

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            lost = error.errno == errno.EIO and _is_device(self.fileno())
            if error.errno != errno.EPIPE and not lost:
                raise
            if self._call():
                _silence(self.fileno())
            elif self.fileno() == 1:
                raise
            return memoryview(data).nbytes


def flush() -> int:
    """Write what is left of stdout; return the exit code if nobody reads it, or 0."""
    try:
        sys.stdout.flush()
    except OSError:
        forget()
        return 1
    return 0


def forget() -> None:
    """Have the end of the program write nowhere what it could not write before."""
    with contextlib.suppress(OSError, ValueError):
        _silence(sys.stdout.fileno())


def _is_device(number: int) -> bool:
    return stat.S_ISCHR(os.fstat(number).st_mode)


def _silence(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


def _bytes_or_escape(error: UnicodeError) -> tuple[bytes, int]:
    """Return the bytes of a file's name as they are, and an escape for anything else."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    made = b""
    for char in error.object[error.start : error.end]:
        is_byte = "\udc80" <= char <= "\udcff"
        made += char.encode("ascii", "surrogateescape" if is_byte else "backslashreplace")
    return made, error.end
