"""The job server: one function with its data, loaded once, called in forks.

Its words are ``FD PARENT FILE DIRECTORY SCRATCH``. It answers on the connection FD, and ends
when the other side closes it, with whatever it is calling. It imports little, so that it
starts quickly; what the function needs comes with the function.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import itertools
import os
import pickle
import secrets
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from neurofleet.engine import brought_back, call, forks, frames, own_modules, surroundings
from neurofleet.engine.job_content import Calls, Ended, JobContent
from neurofleet.engine.limits import die_with_parent
from neurofleet.engine.printed import Printed

#: What is dearer to load than a fork of a process that has it, most likely [bytes].
DEAR_BYTES = 1_000_000
#: How often a fork is looked at whose end nothing else tells [s].
LOOK_S = 0.5
#: How long a fork may take to end that has said all [s].
EXIT_S = 1.0


#: What the server says first, unless it is an error.
READY, DAMAGED = "ready", "damaged"
#: What a call has left that wrote nothing.
NOTHING: tuple[bytes, tuple[str, ...]] = (b"", ())


class EngineGone(Exception):
    """Nobody waits for the answer any more."""


class Damaged(Exception):
    """The job's file is not what was sent."""


class JobServer:
    """A function that is called in forks of this process.

    Parameters
    ----------
    content : JobContent
    engine : Connection to the engine, a descriptor
        Closed by the engine when it ends; a running fork is then ended too.
    directory : Path or None
        The person's, where calls are made; ``None`` gives each a directory of its own.
    scratch : Path
        Where those are.
    """

    def __init__(
        self, content: JobContent, engine: int, directory: Path | None, scratch: Path
    ) -> None:
        self._content = content
        self._engine = engine
        self._directory = directory
        self._scratch = scratch
        self._numbers = itertools.count()
        self._own_process = content.own_process or len(content.call) > DEAR_BYTES
        os.chdir(directory or scratch)
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
            self._function, self._load, items, calls.seed, directories, own, None, self._files
        )
        ended: list[Ended] = []
        with Fork(work, self._engine, self._others) as fork:
            for directory in directories:
                one, told = fork.next(calls.limit_s)
                files, left = NOTHING
                if own:
                    files, left = self._take(Path(directory), calls.files_bytes)
                ended.append(one._replace(files=files, left_behind=left))
                if told is None or told.last:
                    break
                self._own_process = self._own_process or told.dear
        return ended

    @staticmethod
    def _take(directory: Path, most: int) -> tuple[bytes, tuple[str, ...]]:
        if not directory.exists():
            return NOTHING  # its process ended before
        try:
            return brought_back.collect(directory, most)
        finally:
            shutil.rmtree(directory, ignore_errors=True)


class Fork:
    """A process that calls items one after the other.

    Parameters
    ----------
    work : Work
    engine : int
        Watched meanwhile.
    others : frozenset of int
        Children of this process that are none of this one's.
    """

    def __init__(self, work: call.Work, engine: int, others: frozenset[int]) -> None:
        self._engine, self._others = engine, others
        self._left = len(work.items)
        self._status: int | None = None
        results, to_results = os.pipe()
        printed, to_printed = os.pipe()
        mark = secrets.token_bytes(16)
        server = os.getpid()
        surroundings.write_out(surroundings.streams())
        forks.flush_c()
        self._child = os.fork()
        if self._child == 0:
            for number in (results, printed, engine):
                os.close(number)
            call.work_and_exit(work, call.Ends(to_results, to_printed, mark), server)
        os.close(to_results)
        os.close(to_printed)
        for number in (results, printed):
            os.set_blocking(number, False)
        with contextlib.suppress(OSError):
            os.setpgid(self._child, self._child)
        self._results = frames.Messages(results)
        self._printed = Printed(printed, mark)
        self._poll = select.poll()
        for number in (results, printed, engine):
            self._poll.register(number, select.POLLIN)

    def __enter__(self) -> Fork:
        return self

    def __exit__(self, *_: object) -> None:
        self._end(0.0)
        os.close(self._results.number)
        os.close(self._printed.number)

    def next(self, limit_s: float | None) -> tuple[Ended, call.Told | None]:
        """Return how the next item ended, and what its process has told of it, if it did."""
        self._left -= 1
        message, timed_out = self._wait(limit_s)
        if message is not None:
            told = call.Told(*pickle.loads(message))
            if told.last or not self._left:
                self._end(EXIT_S)
            output = self._printed.of_next_call()
            ended = Ended(told.status, told.value, told.reason, told.traceback, output)
            return ended._replace(drew=told.drew), told
        how = self._end(0.0 if timed_out else EXIT_S)
        output = self._printed.rest()
        if timed_out:
            reason = f"ended at its limit of {limit_s:g} s"
            return Ended("timeout", reason=reason, output=output), None
        return Ended("crashed", reason=how + forks.last_words(output), output=output), None

    def _wait(self, limit_s: float | None) -> tuple[bytes | None, bool]:
        """Return the next message, ``None`` if there is none, and whether the limit came."""
        until = None if limit_s is None else time.monotonic() + limit_s
        while (message := self._results.next()) is None:
            left_s = LOOK_S if until is None else until - time.monotonic()
            if left_s <= 0:
                return None, True
            ready = {number for number, _ in self._poll.poll(1000 * min(left_s, LOOK_S))}
            if self._engine in ready:
                raise EngineGone
            if self._printed.number in ready and not self._printed.read():
                self._poll.unregister(self._printed.number)
            if self._results.number in ready:
                self._results.read()
                if self._results.ended:
                    return None, False
            elif not ready and forks.has_ended(self._child):
                # Something that it has started keeps the connection open.
                while self._results.read():
                    pass
                return self._results.next(), False
        return message, False

    def _end(self, within_s: float) -> str:
        """End the process and all that it has started; return how it ended.

        Parameters
        ----------
        within_s : float
            How long it may take to end by itself [s].
        """
        if self._status is not None:
            return ""
        by_itself = forks.ends_within(self._child, within_s)
        if not by_itself:
            forks.end_group(self._child)
        _, self._status = os.waitpid(self._child, 0)
        forks.end_children(self._others, forks.LINGER_S if by_itself else 0.0)
        if not by_itself:
            return "its process closed the connection on which it answers"
        return forks.how_it_died(self._status)


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


def serve(engine: int, file: Path, directory: Path | None, scratch: Path) -> None:
    """Load the job, say so, and call it until the other side closes the connection."""
    try:
        server = JobServer(load(file), engine, directory, scratch)
    except (Damaged, FileNotFoundError):
        frames.send(engine, pickle.dumps(DAMAGED))
        return
    except BaseException as error:
        frames.send(engine, pickle.dumps(_unusable(error)))
        return
    frames.send(engine, pickle.dumps(READY))
    requests = frames.Messages(engine)
    with contextlib.suppress(EOFError, BrokenPipeError, EngineGone):
        while True:
            items, calls = pickle.loads(requests.wait())
            frames.send(engine, pickle.dumps(server.run(items, calls)))


def _unusable(error: BaseException) -> Exception:
    from neurofleet import causes
    from neurofleet.errors import WorkloadFailed

    return WorkloadFailed(
        f"an engine on {socket.gethostname()} cannot load the function ({causes.line(error)})",
        remedy="Install what it imports there, in the environment of the engines",
    )


def main() -> None:
    """Serve one job."""
    engine, parent = int(sys.argv[1]), int(sys.argv[2])
    file, directory, scratch = sys.argv[3:]
    sys.argv = [""]
    surroundings.open_streams()
    die_with_parent(parent)
    forks.adopt_orphans()
    os.set_inheritable(engine, False)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        serve(engine, Path(file), Path(directory) if directory else None, Path(scratch))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os._exit(0)  # whatever threads the function's modules have started
