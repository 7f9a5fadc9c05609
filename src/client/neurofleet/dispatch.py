"""The task farm: submit, watch, resubmit, and never wait without a limit.

Tasks go to the engines through ipyparallel's load-balanced view, but only a small
window of them at a time: the order (heaviest first, lost ones before all) stays in
this process, the hub's memory stays bounded, and two people who use one fleet take
turns. Delivery is at least once, so tasks must be idempotent; of two results of one
task the first counts.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import queue
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from neurofleet import safe_point
from neurofleet.backends import EngineSource
from neurofleet.dispatch_engines import Roster
from neurofleet.dispatch_state import LOST, NEVER_BEGUN, Out, Run, remote_failure
from neurofleet.errors import (
    EnginesUnreachable,
    TooFewEngines,
    WorkloadFailed,
    first_line,
)
from neurofleet.farm import ByName, FarmState, Preparation, Running, Task
from neurofleet.hub_watch import HubWatch

#: Tasks given to the scheduler per usable engine: one runs, one waits behind it.
WINDOW = 2
#: How often engines are counted and tended [s].
TICK_S = 0.5
#: Once one engine is ready, how long the others may take before work begins [s].
ASSEMBLY_S = 120.0
#: Tasks that come back for so long because nobody can have them, and the client knows wrong [s].
REFUSED_S = 10.0
#: A task that fails (not: whose engine is lost) so often is not tried again.
MOST_FAILURES = 3

logger = logging.getLogger(__name__)


class EngineFarm:
    """Engines of an ``EngineSource``.

    Parameters
    ----------
    source : EngineSource
    preparation : Preparation or None
    engine_timeout_s : float
        How long to wait while no engine can be used [s].
    watch : callable or None
        Told the ``FarmState`` when it changes.
    is_not_ready : callable
        Tells a result that means "prepare me again" from a real one.
    """

    def __init__(
        self,
        source: EngineSource,
        *,
        preparation: Preparation | None = None,
        engine_timeout_s: float = 300.0,
        watch: Callable[[FarmState], None] | None = None,
        is_not_ready: Callable[[Any], bool] = lambda _result: False,
    ) -> None:
        self._source = source
        self._engine_timeout_s = engine_timeout_s
        self._watch = watch
        self._is_not_ready = is_not_ready
        self._client: Any = None
        self._view: Any = None
        self._hub: HubWatch | None = None
        self._events: queue.SimpleQueue[tuple[str, Any, Any]] = queue.SimpleQueue()
        self._roster = Roster(
            preparation, lambda asked, answer: self._events.put(("prepared", asked, answer))
        )
        self._empty_since: float | None = None
        self._had_one = False  # an engine that could be used
        self._completed = 0
        self._order = itertools.count()

    @property
    def size(self) -> int:
        """Number of engines that are ready."""
        return self._roster.size

    @property
    def client(self) -> Any:
        """The ``ipyparallel.Client`` in use; another one after the connection was lost."""
        return self._client

    def open(self) -> None:
        """Connect, and prepare every engine that is there; nothing if some are ready already.

        Raises
        ------
        EnginesUnreachable, TooFewEngines, FleetError
            No controller; no engine within the limit; none that can be prepared.
        """
        if self._client is None:
            self._connect()
        elif self.size:
            return  # whoever is being replaced joins when it is ready; nobody waits for it
        run = Run()
        patience = time.monotonic() + ASSEMBLY_S
        while not self._assembled() and (not self.size or time.monotonic() < patience):
            if safe_point.asked():
                raise safe_point.reached(self._completed)
            self._step(run, lambda _task, _result: None)

    def _assembled(self) -> bool:
        """Tell whether all expected engines are there, and each is ready or left out."""
        expected = max(self._source.expected, len(self._roster))
        return self.size > 0 and self._roster.settled >= expected

    def run(
        self,
        tasks: Iterable[Task],
        on_result: Callable[[Task, Any], None],
        on_failure: Callable[[Task, WorkloadFailed], None] | None = None,
    ) -> None:
        """Run all tasks; return when each has a result.

        Parameters
        ----------
        tasks : iterable of Task
            An iterator is drawn from when an engine could take a task, so it can make
            its next one of what is known by then; anything else is ordered by weight.
        on_result : callable
            Called in this thread as each task ends.
        on_failure : callable or None
            Called for a task that failed for good; without it the run ends.

        Raises
        ------
        WorkloadFailed
            A task failed on several engines; its last error is told.
        EnginesUnreachable, TooFewEngines
            The limits of the source or of ``engine_timeout_s`` were reached.
        Interrupted
            A safe point was asked for; what engines had begun has been handed over.
        """
        if self._client is None:
            self._connect()
        run = Run()
        if isinstance(tasks, Iterator):
            run.drawn = tasks
        else:
            for task in tasks:
                self._enqueue(run, task, task.weight)
        try:
            with safe_point.working():
                while self._submit(run) or run.out:
                    self._step(run, on_result, on_failure)
        finally:
            self._keep_what_arrived(run, on_result)
        self._tell(run)
        if safe_point.asked():
            raise safe_point.reached(self._completed)

    def close(self) -> None:
        """Disconnect, and end engines that were started for this farm."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(Exception):
                client.close(linger=0)
        self._source.close()

    def _connect(self) -> None:
        self._client = self._source.connect()
        self._view = self._client.load_balanced_view()
        client = self._client
        self._hub = HubWatch(
            client,
            self._source.connection_file,
            lambda known: self._events.put(("hub", client, known)),
        )
        self._roster.connect(client)
        self._empty_since = time.monotonic()

    def _enqueue(self, run: Run, task: Task, weight: float) -> None:
        heapq.heappush(run.waiting, (-weight, next(self._order), task))

    def prepare_for(self, preparation: Preparation) -> None:
        """Have every engine prepared anew, for something else."""
        self._had_one = False
        self._roster.prepare_for(preparation)

    def _submit(self, run: Run) -> bool:
        """Give the scheduler tasks until the window is full; tell whether more are waiting."""
        if safe_point.asked():
            return False
        while self._draw(run):
            ready, _ = self._roster.targets("")
            if not ready or len(run.out) >= WINDOW * len(ready):
                break
            waiting = heapq.heappop(run.waiting)
            task = waiting[-1]
            if task.key in run.done:
                continue
            targets, everybody = self._roster.targets(task.not_on)
            try:
                # Each target named makes each message longer: none is when all may have it.
                with self._view.temp_flags(targets=None if everybody else targets):
                    result = self._view.apply_async(ByName.of(task.function), *task.args)
            except Exception:
                heapq.heappush(run.waiting, waiting)
                if not self._client._closed and set(targets) <= set(self._roster.present):
                    raise  # that was not because of an engine that has just gone
                if self._client._closed:
                    break  # the next look connects anew
                continue
            self._submitted(run, task, result)
        return bool(run.waiting)

    def _submitted(self, run: Run, task: Task, result: Any) -> None:
        # Client and view would remember the name of every task they ever sent.
        self._client.history.clear()
        self._view.history.clear()
        message = result.msg_ids[0]
        out = run.out[message] = Out(task)
        for sent in result._children:
            sent.iopub_callbacks.append(out.heard)
        result.add_done_callback(lambda done: self._events.put(("task", message, done)))

    def _draw(self, run: Run) -> bool:
        """Tell whether a task waits, after drawing the next one if none does."""
        if not run.waiting:
            task = next(run.drawn, None)
            if task is not None:
                self._enqueue(run, task, task.weight)
        return bool(run.waiting)

    def _step(
        self,
        run: Run,
        on_result: Callable[[Task, Any], None],
        on_failure: Callable[[Task, WorkloadFailed], None] | None = None,
    ) -> None:
        """Handle one event, or the passing of time."""
        self._update_engines(run)
        try:
            kind, name, value = self._events.get(timeout=TICK_S)
        except queue.Empty:
            if self._hub is not None:
                self._hub.quiet_since(run.last_result)
            return
        if kind == "task":
            self._task_ended(run, name, value, on_result, on_failure)
        elif kind == "prepared":
            self._roster.take(name, value)
        else:
            self._hub_told(run, name, value)

    # -- engines ------------------------------------------------------------------

    def _update_engines(self, run: Run) -> None:
        """Follow who comes and goes; prepare who comes; give up when nobody is there."""
        if self._client._closed:  # the controller told it that it ends
            self._reconnect(run)
            return
        registered = self._roster.follow()
        self._decide_held(run)
        if not self._source.tend(registered):
            self._reconnect(run)
            return
        now = time.monotonic()
        if self.size:
            self._empty_since, self._had_one = None, True
        elif self._empty_since is None:
            self._empty_since = now
        # Once an engine has been of use, others like it may come back; until then why wait?
        waited = 0.0 if self._empty_since is None else now - self._empty_since
        all_there = registered >= self._source.expected or waited > ASSEMBLY_S
        why_none = self._roster.why_none
        if why_none is not None and all_there and not self._had_one:
            raise why_none
        if waited > self._engine_timeout_s:
            raise TooFewEngines(
                f"no engine of {self._source.name} could be used for"
                f" {self._engine_timeout_s:.0f} s ({registered} registered)",
                remedy="Start engines and run the same command again; what was finished is kept",
            )
        self._tell(run)

    def _tell(self, run: Run) -> None:
        if self._watch is None:
            return
        begun = sorted((out for out in run.out.values() if out.engine), key=lambda out: out.since)
        hosts = self._roster.hosts()  # once: this is told at every event
        running = tuple(
            Running(out.task.key, hosts.get(out.engine, ""), out.since) for out in begun
        )
        self._watch(
            FarmState(
                engines=self.size,
                busy=min(len(run.out), self.size),
                waiting_since=self._empty_since,
                registered=len(self._roster),
                limit_s=self._engine_timeout_s,
                running=running,
            )
        )

    # -- tasks --------------------------------------------------------------------

    def _task_ended(
        self,
        run: Run,
        message: str,
        done: Any,
        on_result: Callable[[Task, Any], None],
        on_failure: Callable[[Task, WorkloadFailed], None] | None,
    ) -> None:
        out = run.out.pop(message, None)
        run.missed.discard(message)
        with contextlib.suppress(Exception):
            self._client.purge_local_results([message])
        if out is None or out.task.key in run.done:
            return
        task = out.task
        result, error = None, None
        try:
            result = done.get(timeout=0)
        except Exception as raised:
            error = raised
        fate = getattr(error, "ename", type(error).__name__)
        if fate in NEVER_BEGUN:
            self._refused(run, task)
            return
        run.refused_since = None
        if fate in LOST:
            assert error is not None
            self._task_failed(run, task, error, on_failure)
            return
        engine = _who(done)
        if error is None and self._is_not_ready(result):
            self._roster.prepare_again(engine)
            self._enqueue(run, task, float("inf"))
            return
        counts = self._roster.vouches_for(engine)
        if counts is None:
            run.out[message] = out
            run.held.append((message, done))
        elif not counts:
            logger.info("%s was given to an engine that may not have tasks", task.title)
            self._enqueue(run, task, float("inf"))
        elif error is not None:
            self._task_failed(run, task, error, on_failure)
        else:
            run.last_result = time.monotonic()
            self._completed += 1
            run.done.add(task.key)
            on_result(task, result)

    def _refused(self, run: Run, task: Task) -> None:
        """Submit a task again that nobody has had, because the engines meant had just gone."""
        self._enqueue(run, task, float("inf"))
        now = time.monotonic()
        run.refused_since = run.refused_since or now
        if now - run.refused_since > REFUSED_S:
            self._reconnect(run)

    def _decide_held(self, run: Run) -> None:
        """Come back to results of engines that were not prepared, once that is known."""
        held, run.held = run.held, []
        for message, done in held:
            if self._roster.vouches_for(_who(done)) is None:
                run.held.append((message, done))
            else:
                self._events.put(("task", message, done))

    def _task_failed(
        self,
        run: Run,
        task: Task,
        error: Exception,
        on_failure: Callable[[Task, WorkloadFailed], None] | None,
    ) -> None:
        lost = getattr(error, "ename", type(error).__name__) in LOST
        counts, limit = (run.losses, task.most_losses) if lost else (run.failures, MOST_FAILURES)
        counts[task.key] = counts.get(task.key, 0) + 1
        if counts[task.key] >= limit:
            how = (
                f"lost its engine {limit} time{'s'[: limit > 1]}"
                if lost
                else f"failed on {limit} tries"
            )
            failure = WorkloadFailed(
                f"{task.title} {how}: {remote_failure(error).what}",
                remedy="Look at the engines' logs, then run the same command again;"
                " what was finished is kept",
            )
            if on_failure is None:
                raise failure
            run.done.add(task.key)
            on_failure(task, failure)
            return
        logger.info("resubmitting %s: %s", task.title, first_line(error))
        for part in task.parts() if lost else (task,):
            self._enqueue(run, part, float("inf"))

    def _keep_what_arrived(self, run: Run, on_result: Callable[[Task, Any], None]) -> None:
        """Hand over results that are here already, also when the run is broken off."""
        others = []
        with contextlib.suppress(queue.Empty):
            while True:
                event = self._events.get_nowait()
                kind, name, value = event
                if kind != "task":
                    others.append(event)  # of engines being prepared: for the next run
                    continue
                out = run.out.pop(name, None)
                if out is None or out.task.key in run.done:
                    continue
                with contextlib.suppress(Exception):
                    result = value.get(timeout=0)
                    if not self._is_not_ready(result) and self._roster.vouches_for(_who(value)):
                        run.done.add(out.task.key)
                        on_result(out.task, result)
        for event in others:
            self._events.put(event)

    # -- the hub ------------------------------------------------------------------

    def _hub_told(self, run: Run, client: Any, known: set[str] | None) -> None:
        if client is not self._client:
            return
        if known is None:
            self._reconnect(run)
            return
        unknown = set(run.out) - known - {message for message, _ in run.held}
        for message in unknown & run.missed:
            task = run.out.pop(message).task
            logger.warning("the hub has lost %s; submitting it again", task.title)
            self._enqueue(run, task, float("inf"))
        run.missed = unknown & set(run.out)

    def _reconnect(self, run: Run) -> None:
        """Start anew with another client; what was out is submitted again."""
        logger.warning("connecting to %s again", self._source.name)
        with contextlib.suppress(Exception):
            self._client.close(linger=0)
        for out in run.out.values():
            self._enqueue(run, out.task, float("inf"))
        run.out.clear()
        run.missed.clear()
        run.held.clear()
        self._roster.connect(self._client)
        self._empty_since = time.monotonic()
        deadline = self._empty_since + self._engine_timeout_s
        while True:
            self._tell(run)
            try:
                self._connect()
                break
            except EnginesUnreachable:
                if safe_point.asked():
                    raise safe_point.reached(self._completed) from None
                if time.monotonic() > deadline:
                    raise
                time.sleep(TICK_S)
        run.last_result = time.monotonic()
        run.refused_since = None


def _who(done: Any) -> str:
    """Return the identity of the engine that a result came from."""
    return str(done.metadata["engine_uuid"])
