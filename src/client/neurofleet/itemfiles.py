"""What items wrote into working directories of their own, brought back into the run directory.

``files/<item>`` is a link to what the item with that number, from 1, has written; the files
themselves are in ``files/by-content``, below a name that stays the item's when its line moves.
A new try of an item, or another item, overwrites nothing.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from neurofleet.errors import RunDirectoryError

#: Where the files are, below ``files/``.
BY_CONTENT = "by-content"


class ItemFiles:
    """The files in one run directory.

    Parameters
    ----------
    directory : Path
        The run directory.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "files"
        self._kept = self.path / BY_CONTENT

    def unpack(self, key: bytes, content: bytes, most_bytes: int) -> tuple[str, tuple[str, ...]]:
        """Put what an item wrote into the run directory, whole.

        Parameters
        ----------
        key : bytes
            The item's.
        content : bytes
            A tar.
        most_bytes : int
            The most that is unpacked [bytes].

        Returns
        -------
        str, tuple of str
            The directory's name, for ``link``; and the names of what was left out: it was
            no plain file, led out of the directory, or was too large.

        Raises
        ------
        RunDirectoryError
            It cannot be written, or is no tar.
        """
        try:
            self._kept.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=self._kept))
            try:
                left_out = _extract(content, partial, most_bytes)
                partial.chmod(0o755)
                return self._name(key, partial), left_out
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
        except (OSError, tarfile.TarError) as error:
            raise RunDirectoryError(
                f"files of an item cannot be written into {str(self._kept)!r}"
                f" ({getattr(error, 'strerror', None) or error})",
                remedy="Make room or mend the permissions and run the same command again;"
                " what was computed is kept",
            ) from error

    def _name(self, key: bytes, partial: Path) -> str:
        """Give a complete directory its name, after what earlier tries of its item wrote."""
        number, name = 1, key.hex()
        while os.path.lexists(self._kept / name):
            number += 1
            name = f"{key.hex()}.{number}"
        partial.rename(self._kept / name)
        return name

    def link(self, names: Mapping[int, str]) -> None:
        """Have ``files/<item>`` lead to what that item wrote, for these items and no others.

        Parameters
        ----------
        names : mapping of int to str
            What ``unpack`` returned, by the item's number from 0.

        Raises
        ------
        RunDirectoryError
            A link cannot be made.
        """
        if not self.path.is_dir():
            return
        wanted = {str(number + 1): f"{BY_CONTENT}/{name}" for number, name in names.items()}
        try:
            for link in self.path.iterdir():
                if link.is_symlink() and link.name not in wanted:
                    link.unlink()
            for name, target in wanted.items():
                link = self.path / name
                if link.is_symlink() and link.readlink() == Path(target):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    link.unlink()
                link.symlink_to(target)
        except OSError as error:
            raise RunDirectoryError(
                f"{str(self.path)!r} cannot be written ({error.strerror or error})",
                remedy="Make room or mend the permissions and run the same command again;"
                " what was computed is kept",
            ) from error


def names(content: bytes) -> list[str]:
    """Return the names of the files in a tar; none if it is no tar."""
    with contextlib.suppress(tarfile.TarError, OSError), _opened(content) as tar:
        return [member.name for member in tar if not member.isdir()]
    return []


def _opened(content: bytes) -> tarfile.TarFile:
    return tarfile.open(fileobj=io.BytesIO(content), mode="r:*")


def _extract(content: bytes, into: Path, most_bytes: int) -> tuple[str, ...]:
    """Extract plain files and directories, and return the names of everything else."""
    left_out = []
    with _opened(content) as tar:
        for member in tar:
            name = member.name
            # A link could be the way out for what comes after it.
            if not (member.isfile() or member.isdir()) or member.size > most_bytes:
                left_out.append(name)
                continue
            inside = PurePosixPath(name.lstrip("/"))
            if ".." in inside.parts or "\0" in name:
                left_out.append(name)
                continue
            try:
                _write(tar, member, into / inside)
            except (FileExistsError, NotADirectoryError, IsADirectoryError):  # named twice
                left_out.append(name)
                continue
            most_bytes -= member.size
    return tuple(left_out)


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    """Write a plain file or directory of a tar where nothing is yet.

    The filters of ``tarfile`` would do, but Debian 12's Python has none.
    """
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(member)
    assert source is not None, "it is a plain file"
    with source, path.open("xb") as file:
        shutil.copyfileobj(source, file)
    path.chmod(member.mode & 0o755 | 0o600)
    os.utime(path, (member.mtime, member.mtime))
