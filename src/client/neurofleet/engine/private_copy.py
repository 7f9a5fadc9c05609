"""A private copy of a model for each process that evaluates it, put back after each evaluation.

What an evaluation writes into its working directory, over the model's own files or in their
place must reach no other evaluation: neither the next one of the same process nor those of other
engines and later runs, which start from the host's cached copy. So each warm process works in a
copy of its own::

    <temporary directory>/neurofleet-model-<random>/owner    locked by whoever uses the copy
    <temporary directory>/neurofleet-model-<random>/model/   the copy, its working directory
    <temporary directory>/neurofleet-model-<random>/loaded/  what loading the model wrote there

The kernel gives the lock up when the last process that uses the copy is gone, however it ended;
the next copy that is made on the machine removes those that nobody holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from neurofleet.errors import WorkloadFailed

PREFIX = "neurofleet-model-"
#: A copy that is younger is left alone, locked or not: it may be in the making [s].
ABANDONED_AFTER_S = 60.0
#: Two changes of a file within so short a time may have the same timestamp [s].
TIMESTAMP_S = 0.02
_PLAIN = re.compile(r"[\w./+@%:,=~-]+", re.ASCII)

#: What tells whether an entry of a directory is as it was.
State = tuple[int, ...]


class Changed(Exception):
    """A file of the cached copy is not the one that was put there."""


@dataclass(frozen=True)
class Cached:
    """A model as this host keeps it, read-only.

    Attributes
    ----------
    directory : Path
    files : mapping of str to (bool, str)
        The model's files by path: whether executable, and the SHA-256 of the content.
    libraries : mapping of str to str
        NEURON's compiled libraries by path, and the SHA-256 of each.
    """

    directory: Path
    files: Mapping[str, tuple[bool, str]]
    libraries: Mapping[str, str]


class PrivateCopy:
    """A copy of a model that one warm process may do with as it likes.

    Parameters
    ----------
    cached : Cached

    Attributes
    ----------
    top : Path
        The directory of this copy alone.
    model : Path
        The model, below it.
    lock : int
        A file descriptor; whoever has it holds the copy.

    Raises
    ------
    Changed
        The cached copy is not what it should be.
    WorkloadFailed
        The copy cannot be written.
    """

    def __init__(self, cached: Cached) -> None:
        self.top = Path()
        self.lock = -1
        try:
            above = plain_temporary_directory()
            _remove_abandoned(above)
            self.top = Path(tempfile.mkdtemp(prefix=PREFIX, dir=above))
            self.lock = os.open(self.top / "owner", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self.lock, fcntl.LOCK_EX)
            self.model = self.top / "model"
            self.model.mkdir()
            _fill(self.model, cached)
        except OSError as error:
            self.close()
            raise no_room(error) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove the copy; safe to call twice."""
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1
        if self.top.name:
            remove_tree(self.top)


class Keeper:
    """Puts a private copy back to what it was once its model was loaded.

    To be made before the model's code runs.

    Parameters
    ----------
    model : Path
        The private copy.
    cached : Path
        The host's copy.
    """

    def __init__(self, model: Path, cached: Path) -> None:
        self._model = model
        self._sources = (model.parent / "loaded", cached)
        self._seen = _scan(model)
        self._links: dict[str, str] = {}

    def keep(self) -> None:
        """Have the present state be the one to go back to: the model is loaded."""
        before, self._seen = self._seen, _scan(self._model)
        for name, state in self._seen.items():
            path = self._model / name
            if stat.S_ISLNK(state[1]):
                self._links[name] = str(path.readlink())
            elif stat.S_ISREG(state[1]) and before.get(name) != state:
                kept = self._sources[0] / name
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, kept)
        newest = max((state[-1] for state in self._seen.values()), default=0) / 1e9
        time.sleep(min(TIMESTAMP_S, max(0.0, newest + TIMESTAMP_S - time.time())))

    def put_back(self) -> bool:
        """Undo what an evaluation did to the copy; tell whether it did anything.

        Raises
        ------
        OSError
            It cannot be undone; the process that uses the copy must not go on.
        """
        now: dict[str, State] | None = None
        with contextlib.suppress(OSError):  # gone, or made unreadable
            now = _scan(self._model)
        if now == self._seen:
            return False
        try:
            self._mend(now)
        except PermissionError:
            self._mend(None)
        self._seen = _scan(self._model)
        os.chdir(self._model)  # it may have been another directory of this name
        return True

    def _mend(self, now: dict[str, State] | None) -> None:
        """Go back from a state; from ``None`` by making everything anew."""
        if now is None:
            remove_tree(self._model)
            now = {}
        self._model.mkdir(exist_ok=True)
        for name in sorted(now, reverse=True):  # what is in a directory before the directory
            kind = stat.S_IFMT(now[name][1])
            if name and (name not in self._seen or stat.S_IFMT(self._seen[name][1]) != kind):
                _remove(self._model / name)
        for name in sorted(self._seen):
            if now.get(name) != self._seen[name]:
                self._make(name, self._seen[name][1])

    def _make(self, name: str, mode: int) -> None:
        path = self._model / name
        if stat.S_ISDIR(mode):
            path.mkdir(exist_ok=True)
        elif name in self._links:
            path.unlink(missing_ok=True)
            path.symlink_to(self._links[name])
            return
        elif stat.S_ISREG(mode):
            source = next(top / name for top in self._sources if (top / name).exists())
            path.unlink(missing_ok=True)
            shutil.copyfile(source, path)
        else:
            return  # a socket or a pipe of whatever the model keeps running
        path.chmod(stat.S_IMODE(mode))


def plain_temporary_directory() -> Path:
    """Return the temporary directory; ``/tmp`` if NEURON and make would trip over its name."""
    found = tempfile.gettempdir()
    if not _PLAIN.fullmatch(found) and os.access("/tmp", os.W_OK | os.X_OK):
        return Path("/tmp")
    return Path(found)


def no_room(error: OSError) -> WorkloadFailed:
    """Return what to say when the temporary directory cannot be written."""
    where = f" to {tempfile.tempdir!r}" if tempfile.tempdir else ""
    return WorkloadFailed(
        f"the model cannot be copied{where} ({error.strerror or error})",
        remedy="Make room there, or name another place with TMPDIR",
    )


def is_plain(path: Path) -> bool:
    """Tell whether a path consists of what NEURON's compiler and make take."""
    return _PLAIN.fullmatch(str(path)) is not None


def remove_tree(top: Path) -> None:
    """Remove a directory with all that is in it, whatever its permissions; as far as possible."""
    with contextlib.suppress(OSError):
        _remove(top)


def _fill(model: Path, cached: Cached) -> None:
    """Copy what the model consists of, and look whether it is that."""
    for name, (executable, sha256) in cached.files.items():
        content = _read(cached.directory / name)
        if hashlib.sha256(content).hexdigest() != sha256:
            raise Changed(name)
        path = model / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o755 if executable else 0o644)
    for name, sha256 in cached.libraries.items():
        library = cached.directory / name
        if hashlib.sha256(_read(library)).hexdigest() != sha256:
            raise Changed(name)
        path = model / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # A link, because the temporary directory may be mounted without the right to execute.
        path.symlink_to(library)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Changed(path.name) from error


def _scan(top: Path) -> dict[str, State]:
    """Return the state of a directory and of everything below it, links not followed."""
    status = os.lstat(top)
    found: dict[str, State] = {"": (status.st_ino, status.st_mode)}
    folders = [("", str(top))]
    while folders:
        inside, folder = folders.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                name = f"{inside}{entry.name}"
                if stat.S_ISDIR(status.st_mode):
                    found[name] = (status.st_ino, status.st_mode)
                    folders.append((f"{name}/", entry.path))
                else:
                    found[name] = (
                        status.st_ino,
                        status.st_mode,
                        status.st_size,
                        status.st_mtime_ns,
                        status.st_ctime_ns,
                    )
    return found


def _remove(path: Path) -> None:
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    try:
        shutil.rmtree(path)
    except PermissionError:  # nothing can be removed from a directory that is read-only
        path.chmod(0o700)
        for folder, folders, _ in os.walk(path):
            for name in folders:
                if not (Path(folder) / name).is_symlink():
                    (Path(folder) / name).chmod(0o700)
        shutil.rmtree(path)


def _remove_abandoned(above: Path) -> None:
    """Remove the copies of this user that no process holds any more."""
    for top in above.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            status = top.lstat()
            young = time.time() - status.st_mtime < ABANDONED_AFTER_S
            if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode) or young:
                continue
            lock = os.open(top / "owner", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_tree(top)
            finally:
                os.close(lock)
