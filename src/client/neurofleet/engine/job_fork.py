"""A fork of the job server, seen from the server: started, heard, ended with what it started."""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import time

from neurofleet.engine import call, forks, frames, surroundings
from neurofleet.engine.job_content import Ended
from neurofleet.engine.printed import Printed

#: How often a fork is looked at whose end nothing else tells [s].
LOOK_S = 0.5
#: Between two looks at what a fork has told, while more is to come: to be woken for every
#: short item would cost half as much as to call it [s].
PAUSE_S = 0.01
#: How long a fork may take to end that has said all [s].
EXIT_S = 1.0
#: Environment variable with what a process may need [MB]; see ``warm.memory_limit``.
MEMORY = "NEUROFLEET_UNIT_MEMORY_MB"


class EngineGone(Exception):
    """Nobody waits for the answer any more."""


class Fork:
    """A process that calls items one after the other.

    Parameters
    ----------
    work : Work
    engine : int
        Watched meanwhile.
    others : frozenset of int
        Children of this process that are none of this one's.
    printed : Printed
    """

    def __init__(
        self, work: call.Work, engine: int, others: frozenset[int], printed: Printed
    ) -> None:
        self._engine, self._others, self._printed = engine, others, printed
        printed.begin()
        self._left, self._memory = len(work.items), work.memory
        self._status: int | None = None
        results, to_results = os.pipe()
        server = os.getpid()
        surroundings.write_out(surroundings.streams())
        forks.flush_c()
        self._child = os.fork()
        if self._child == 0:
            for number in (results, engine):
                os.close(number)
            call.work_and_exit(work, call.Ends(to_results, printed.number), server)
        os.close(to_results)
        os.set_blocking(results, False)
        with contextlib.suppress(OSError):
            os.setpgid(self._child, self._child)
        self._results = frames.Messages(results)
        self._heard = False
        self._poll, self._poll_engine = select.poll(), select.poll()
        self._poll.register(results, select.POLLIN)
        for poll in (self._poll, self._poll_engine):
            poll.register(engine, select.POLLIN)

    def __enter__(self) -> Fork:
        return self

    def __exit__(self, *_: object) -> None:
        self._end(0.0)
        os.close(self._results.number)

    def next(self, limit_s: float | None) -> tuple[Ended, call.Told | None]:
        """Return how the next item ended, and what its process has told of it, if it did."""
        self._left -= 1
        message, timed_out = self._wait(limit_s)
        if message is not None:
            told = call.Told(*pickle.loads(message))
            if told.last or not self._left:
                self._end(EXIT_S)
            output = self._printed.of_call(told.printed)
            reason = told.reason
            if "MemoryError" in reason:
                reason += (
                    f"; its process may have {self._memory // 1_000_000} MB ({MEMORY} sets it)"
                )
            ended = Ended(told.status, told.value, reason, told.traceback, output)
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
        message = self._results.next()
        if message is None and self._heard and self._left:
            message = self._next_after_pause()
        while message is None:
            left_s = LOOK_S if until is None else until - time.monotonic()
            if left_s <= 0:
                return None, True
            ready = {number for number, _ in self._poll.poll(1000 * min(left_s, LOOK_S))}
            if self._engine in ready:
                raise EngineGone
            if not ready:
                self._printed.bound()
            if self._results.number in ready:
                self._results.read()
                if self._results.ended:
                    return None, False
            elif not ready and forks.has_ended(self._child):
                # Something that it has started keeps the connection open.
                while self._results.read():
                    pass
                return self._results.next(), False
            message = self._results.next()
        self._heard = True
        return message, False

    def _next_after_pause(self) -> bytes | None:
        if self._poll_engine.poll(1000 * PAUSE_S):
            raise EngineGone
        self._results.read()
        return self._results.next()

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
