"""What a call wrote into a directory of its own, packed to be sent back."""

from __future__ import annotations

import errno
import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

#: So many names of what was not brought back are told [count].
MOST_NAMES = 1000


def collect(directory: Path, most: int) -> tuple[bytes, tuple[str, ...]]:
    """Pack a directory's content.

    Parameters
    ----------
    directory : Path
    most : int
        The most that files may have together [bytes]; those that fit are taken, by name.

    Returns
    -------
    content : bytes
        A tar; empty if there is nothing.
    left_behind : tuple of str
        What is not in it: files that did not fit, by their names; what is no plain file or
        cannot be read, with the reason.
    """
    packed, left = io.BytesIO(), []
    count = 0
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, why in _below(directory):
            name = path.relative_to(directory).as_posix()
            try:
                if why is not None:
                    raise why
                info, content = _packed(path, name, directory, most)
            except OSError as error:
                left.append(f"{name} ({error.strerror or error})")
                continue
            if info is None:
                left.append(name)
                continue
            most -= info.size
            tar.addfile(info, io.BytesIO(content))
            count += 1
    if len(left) > MOST_NAMES:
        left[MOST_NAMES:] = [f"and {len(left) - MOST_NAMES} more"]
    shown = tuple(name.encode(errors="backslashreplace").decode() for name in left)
    return (packed.getvalue() if count else b""), shown


def _below(directory: Path) -> Iterator[tuple[Path, OSError | None]]:
    """Yield all paths below a directory in order, links not followed; with what hinders."""
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except OSError as error:
        yield directory, error
        return
    for entry in entries:
        path = Path(entry.path)
        yield path, None
        if entry.is_dir(follow_symlinks=False):
            yield from _below(path)


def _packed(
    path: Path, name: str, directory: Path, most: int
) -> tuple[tarfile.TarInfo | None, bytes]:
    """Return an entry of the tar and its content; no entry if it does not fit."""
    info = tarfile.TarInfo(name)
    about = path.lstat()
    info.mtime, info.mode = int(about.st_mtime), stat.S_IMODE(about.st_mode) & 0o777
    if stat.S_ISDIR(about.st_mode):
        info.type = tarfile.DIRTYPE
        return info, b""
    if stat.S_ISLNK(about.st_mode):
        target = str(path.readlink())
        inside = Path(os.path.normpath(path.parent / target)).is_relative_to(directory)
        if target.startswith("/") or not inside:
            raise OSError(errno.EINVAL, f"a link to {target}")
        info.type, info.linkname = tarfile.SYMTYPE, target
        return info, b""
    if not stat.S_ISREG(about.st_mode):
        raise OSError(errno.EINVAL, "no plain file")
    if about.st_size > most:
        return None, b""
    number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(number, "rb") as file:
        content = file.read(most + 1)
    info.size = len(content)
    return (info, content) if len(content) <= most else (None, b"")
