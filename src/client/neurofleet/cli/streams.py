"""The standard streams of a command, whatever the person's terminal or shell made of them."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys

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
    if not isinstance(sys.stdout, io.TextIOWrapper):
        return
    if isinstance(sys.stdout.buffer, io.RawIOBase):
        # PYTHONUNBUFFERED: what is not written at once, because of a signal, would be lost.
        whole = io.BufferedWriter(io.FileIO(sys.stdout.fileno(), "w", closefd=False))
        sys.stdout = io.TextIOWrapper(whole, sys.stdout.encoding, line_buffering=True)
    sys.stdout.reconfigure(errors=ERRORS)


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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _bytes_or_escape(error: UnicodeError) -> tuple[bytes, int]:
    """Return the bytes of a file's name as they are, and an escape for anything else."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    made = b""
    for char in error.object[error.start : error.end]:
        is_byte = "\udc80" <= char <= "\udcff"
        made += char.encode("ascii", "surrogateescape" if is_byte else "backslashreplace")
    return made, error.end
