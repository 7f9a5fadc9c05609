"""Files that are replaced whole: a reader, or a crash, sees the old or the new one entirely.

It knows of bytes only. What a file that cannot be written means, and what to do about it,
whoever calls says: to one it ends the run, to another it is a convenience.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path

#: So much of a file's name is in that of its partial one, which must not be too long [characters].
NAME_SHOWN = 40
#: What file systems say whose directories cannot be synchronised; the file itself is on disk.
NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)


def write_whole(path: Path, content: bytes, *, lasting: bool = True) -> None:
    """Replace a file.

    Parameters
    ----------
    path : Path
    content : bytes
    lasting : bool
        Whether it is on disk, power cut or not, when this returns.

    Raises
    ------
    OSError
        It cannot be written; the old file is as it was, and nothing is left of the new one.
    """
    # A device or a pipe would be gone: /dev/null, for root.
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a plain file", str(path))
    # Nobody else has this name: not another thread, nor a process of this number on another host.
    partial = path.with_name(f".{path.name[:NAME_SHOWN]}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            if lasting:
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    if lasting:
        _sync(path.parent)


def _sync(folder: Path) -> None:
    """See to it that a power cut does not bring the old name back."""
    opened = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
    finally:
        os.close(opened)
