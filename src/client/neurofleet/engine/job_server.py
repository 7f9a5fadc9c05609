"""The job server: one function with its data, loaded once, called in forks.

Its words are ``FD PARENT MEMORY FILE DIRECTORY SCRATCH``, and one of the last two is empty. It
answers on the connection FD, and ends when the other side closes it, with whatever it is
calling. It imports little, so that it starts quickly; what the function needs comes with the
function.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import itertools
import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from neurofleet.engine import (
    brought_back,
    call,
    forks,
    frames,
    job_mechanisms,
    own_modules,
    surroundings,
)
from neurofleet.engine.job_content import Calls, Ended, JobContent
from neurofleet.engine.job_fork import EngineGone, Fork
from neurofleet.engine.limits import die_with_parent
from neurofleet.engine.printed import Printed
from neurofleet.engine.private_copy import remove_tree
from neurofleet.errors import FleetError, WorkloadFailed

#: What is dearer to load than a fork of a process that has it, most likely [bytes].
DEAR_BYTES = 1_000_000


#: What the server says first, unless it is an error.
READY, DAMAGED = "ready", "damaged"
#: What a call has left that wrote nothing.
NOTHING: tuple[bytes, tuple[str, ...]] = (b"", ())


class Damaged(Exception):
    """The job's file is not what was sent."""


class JobServer:
    """A function that is called in forks of this process.

    Parameters
    ----------
    content : JobContent
    engine : int
        The connection's descriptor. Closed by the engine when it ends; a running fork is then
        ended too.
    directory : Path or None
        The person's, where calls are made; ``None`` gives each a directory of its own.
    scratch : Path
        Where those are.
    memory : int
        The most that a call's process may have [bytes].
    """

    def __init__(
        self,
        content: JobContent,
        engine: int,
        directory: Path | None,
        scratch: Path,
        memory: int,
    ) -> None:
        self._content = content
        self._engine = engine
        self._directory = directory
        self._scratch = scratch
        self._memory = memory
        self._printed = Printed()
        self._numbers = itertools.count()
        self._own_process = content.own_process or len(content.call) > DEAR_BYTES
        os.chdir(directory or scratch)
        if content.mechanisms:
            job_mechanisms.load(content.mechanisms)
        own_modules.install(content)
        self._function = self._load()
        gc.collect()
        if self._own_process:
            self._content = dataclasses.replace(content, call=b"")  # loaded once and for all
        self._others = forks.children()
        self._files = surroundings.open_files()
        gc.freeze()  # its pages stay shared with all forks

    def _load(self) -> Callable[[Any], Any]:
        own_modules.forget()
        return own_modules.load(self._content)

    def run(self, items: Sequence[tuple[int, bytes]], calls: Calls) -> list[Ended]:
        """Call the function for each item."""
        ended: list[Ended] = []
        while len(ended) < len(items):
            rest = items[len(ended) :]
            ended += self._run_in_one_fork(rest[:1] if self._own_process else rest, calls)
        return ended

    def _run_in_one_fork(self, items: Sequence[tuple[int, bytes]], calls: Calls) -> list[Ended]:
        """Call the function for some items, up to the first that ends its process."""
        own = self._directory is None
        directories = [
            str(self._scratch / str(next(self._numbers)) if own else self._directory) for _ in items
        ]
        work = call.Work(
            self._function,
            self._load,
            items,
            calls.seed,
            directories,
            own,
            self._memory,
            self._files,
        )
        ended: list[Ended] = []
        with Fork(work, self._engine, self._others, self._printed) as fork:
            for directory in directories:
                one, told = fork.next(calls.limit_s)
                files, left = NOTHING
                if own:
                    files, left = self._take(Path(directory), calls.files_bytes)
                ended.append(one._replace(files=files, left_behind=left))
                if told is None:
                    break
                self._own_process = self._own_process or told.dear
                if told.last:
                    break
        return ended

    @staticmethod
    def _take(directory: Path, most: int) -> tuple[bytes, tuple[str, ...]]:
        if not directory.exists():
            return NOTHING  # its process ended before
        try:
            return brought_back.collect(directory, most)
        finally:
            remove_tree(directory)


def load(file: Path) -> JobContent:
    """Return the job in a file that is named by its hash.

    Raises
    ------
    Damaged
        The content is not what the name says.
    """
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != file.name:
        raise Damaged
    return JobContent.loads(content)


def serve(engine: int, file: Path, directory: Path | None, scratch: Path, memory: int) -> None:
    """Load the job, say so, and call it until the other side closes the connection."""
    try:
        content = load(file)
        if content.sources:
            from neurofleet.engine import own_archive  # few jobs need it

            own_archive.provide(content, file.with_name(f"{file.name}.zip"))
        server = JobServer(content, engine, directory, scratch, memory)
    except (Damaged, FileNotFoundError):
        frames.send(engine, pickle.dumps(DAMAGED))
        return
    except BaseException as error:
        frames.send(engine, pickle.dumps(_unusable(error)))
        return
    forks.outlive_parent()  # from here on it is watched
    frames.send(engine, pickle.dumps(READY))
    requests = frames.Messages(engine)
    with contextlib.suppress(EOFError, BrokenPipeError, EngineGone):
        while True:
            items, calls = pickle.loads(requests.wait())
            frames.send(engine, pickle.dumps(server.run(items, calls)))


def _unusable(error: BaseException) -> FleetError:
    from neurofleet import causes

    if isinstance(error, FleetError):  # of its mechanisms
        return error
    return WorkloadFailed(
        f"an engine on {socket.gethostname()} cannot load the function ({causes.line(error)})",
        remedy="Install what it imports there, in the environment of the engines",
    )


def main() -> None:
    """Serve one job."""
    engine, parent, memory = map(int, sys.argv[1:4])
    file, directory, scratch = sys.argv[4:]
    sys.argv = [""]
    surroundings.open_streams()
    die_with_parent(parent)
    forks.adopt_orphans()
    os.set_inheritable(engine, False)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        serve(engine, Path(file), Path(directory) if directory else None, Path(scratch), memory)
    finally:
        if scratch:
            remove_tree(Path(scratch))
        os._exit(0)  # whatever threads the function's modules have started
