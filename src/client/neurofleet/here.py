"""How an engine finds out that it sees the person's directory: a file with a random text."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from neurofleet.engine.job_content import Place

#: What the names of such files begin with.
PREFIX = ".neurofleet-here-"


def clear(directory: Path) -> None:
    """Remove the marks of runs that were killed, from a directory that nobody else runs in."""
    for file in directory.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            file.unlink()


@contextlib.contextmanager
def place(directory: Path) -> Iterator[Place]:
    """Mark a directory while a run lasts, and say where the person's program works.

    Parameters
    ----------
    directory : Path
        On the person's file system. If it cannot be written, no engine works in the
        person's directory.
    """
    token = secrets.token_hex(16)
    file = directory.absolute() / f"{PREFIX}{token[:8]}"
    try:
        # Other people who can read the directory may run engines there, as other users.
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
            opened.write(token)
    except OSError:
        yield Place(str(Path.cwd()))
        return
    try:
        yield Place(str(Path.cwd()), str(file), token)
    finally:
        with contextlib.suppress(OSError):
            file.unlink()
