"""Whether this machine has anything to do, and which runs on it have not been fetched.

A worker has something to do while one of its engines has a task, or has finished one since it
was last asked. The head has while an engine is registered or results are copied. While the hub
cannot be asked nothing is known, and no machine counts as idle: what bounds its costs then is its
end.

    python -m neurofleet.guards.idle DIRECTORY...     lists those for who fetches them, as JSON
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import psutil

from neurofleet.files import count, read_object
from neurofleet.hub import HubAddress, queues
from neurofleet.model import RUN_MARKERS

#: Left in a run directory by whoever fetched it (playbooks/fetch.yml).
FETCHED = ".fetched"
FETCHING = ".fetching"
#: So deep below a home run directories are looked for.
DEPTH = 5


class Idleness:
    """For how long there has been nothing to do.

    Parameters
    ----------
    ask : callable
        Returns the hub's queues, ``None`` if it cannot be asked.
    mine : callable or None
        The numbers of this worker's engines; ``None`` on the head, which answers for all.
    now : float
        A monotonic clock [s].

    Attributes
    ----------
    answered : bool
        Whether the hub did when it was asked last.
    """

    def __init__(
        self,
        ask: Callable[[], Mapping[int, tuple[int, int]] | None],
        mine: Callable[[], set[int]] | None,
        now: float,
    ) -> None:
        self._ask = ask
        self._mine = mine
        self._since = now
        self._finished: dict[int, int] = {}
        self.answered = True

    def begin_anew(self, now: float) -> None:
        """Count from now on: somebody needs this machine."""
        self._since = now

    def seconds(self, now: float) -> float:
        """Ask the hub, and return for how long there has been nothing to do [s]."""
        if self._is_busy():
            self._since = now
        return now - self._since

    def _is_busy(self) -> bool:
        seen = self._ask()
        self.answered = seen is not None
        if seen is None:
            return True
        if self._mine is None:
            return bool(seen)
        mine = self._mine()
        before, self._finished = self._finished, {n: seen[n][1] for n in mine & set(seen)}
        return any(
            seen[number][0] or done != before.get(number, done)
            for number, done in self._finished.items()
        )


def asker(connection_file: Path) -> Callable[[], Mapping[int, tuple[int, int]] | None]:
    """Return what asks the hub of this connection file."""

    def ask() -> Mapping[int, tuple[int, int]] | None:
        try:
            return queues(HubAddress.from_file(connection_file))
        except (OSError, ValueError):  # not written yet, or just being replaced
            return None

    return ask


def results_are_copied() -> bool:
    """Tell whether somebody copies files to or from this machine (playbooks/fetch.yml)."""
    return any(process.info["name"] == "rsync" for process in psutil.process_iter(["name"]))


def engines_here(run: Path = Path("/run")) -> set[int]:
    """Return the numbers that the hub has given to this machine's engines."""
    found = set()
    for note in run.glob("ipengine-*/neurofleet-engine-*.json"):
        try:
            found.add(count(read_object(note), "engine"))
        except (OSError, ValueError):  # of an engine that is just ending
            continue
    return found


def not_fetched(folders: Iterable[Path]) -> Iterator[Path]:
    """Yield run directories that have changed since they were fetched."""
    return filter(_changed, run_directories(folders, lambda _folder, _why: None))


def run_directories(
    folders: Iterable[Path], unreadable: Callable[[Path, str], None]
) -> Iterator[Path]:
    """Yield run directories.

    Parameters
    ----------
    folders : iterable of Path
        They are looked for below these.
    unreadable : callable
        Takes a directory that cannot be looked into, also by root (of another machine), and why.
    """

    def tell(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            unreadable(Path(error.filename), error.strerror or str(error))

    for top in folders:
        for folder, below, files in os.walk(top, onerror=tell):
            if not set(RUN_MARKERS).isdisjoint(files):
                below.clear()
                yield Path(folder)
            elif len(Path(folder).relative_to(top).parts) >= DEPTH:
                below.clear()
            else:
                below[:] = sorted(name for name in below if not name.startswith("."))


def _changed(run: Path) -> bool:
    try:
        fetched = (run / FETCHED).lstat().st_mtime
        # Of a link the link: what it names may not be there.
        return any(status.st_mtime > fetched for status in _files(run))
    except OSError:
        return True


def _files(run: Path) -> Iterator[os.stat_result]:
    """Yield the status of everything in a run directory but the marks of fetching."""
    for folder, below, files in os.walk(run):
        for name in (*below, *files):
            if folder != str(run) or name not in (FETCHED, FETCHING):
                yield Path(folder, name).lstat()


def _listed(run: Path) -> dict[str, str | int]:
    """Return where a run is, whose it is, how large [bytes], and what tells it from another.

    This mark is what was written into it when it was first fetched, and a new one before that.
    """
    owner = run.lstat()
    return {
        "path": str(run),
        "uid": owner.st_uid,
        "gid": owner.st_gid,
        "bytes": sum(status.st_size for status in _files(run)),
        "mark": _mark(run / FETCHED) or _mark(run / FETCHING) or uuid.uuid4().hex,
    }


def _mark(file: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        if file.is_file() and not file.is_symlink():
            with file.open("rb") as content:
                return uuid.UUID(content.read(64).decode("ascii").strip()).hex
    return ""


if __name__ == "__main__":
    print(json.dumps([_listed(run) for run in not_fetched(map(Path, sys.argv[1:]))]))
