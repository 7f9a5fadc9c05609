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
from neurofleet.dispatch_state import LOST, Engine, Run, remote_failure
from neurofleet.errors import (
    EnginesUnreachable,
    FleetError,
    TooFewEngines,
    WorkloadFailed,
    first_line,
)
from neurofleet.farm import ByName, FarmState, Preparation, Task
from neurofleet.hub_watch import HubWatch

#: Tasks given to the scheduler per usable engine: one runs, one waits behind it.
WINDOW = 2
#: How often engines are counted and tended [s].
TICK_S = 0.5
#: Once one engine is ready, how long the others may take before work begins [s].
ASSEMBLY_S = 120.0
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
        self._preparation = preparation
        self._engine_timeout_s = engine_timeout_s
        self._watch = watch
        self._is_not_ready = is_not_ready
        self._client: Any = None
        self._view: Any = None
        self._hub: HubWatch | None = None
        self._engines: dict[int, Engine] = {}
        self._events: queue.SimpleQueue[tuple[str, Any, Any]] = queue.SimpleQueue()
        self._empty_since: float | None = None
        self._completed = 0
        self._order = itertools.count()

    @property
    def size(self) -> int:
        """Number of engines that are ready."""
        return sum(engine.ready for engine in self._engines.values())

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
        settled = sum(
            engine.ready or engine.left_out is not None for engine in self._engines.values()
        )
        return self.size > 0 and settled >= max(self._source.expected, len(self._engines))

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
        self._engines.clear()
        self._empty_since = time.monotonic()

    def _enqueue(self, run: Run, task: Task, weight: float) -> None:
        heapq.heappush(run.waiting, (-weight, next(self._order), task))

    def prepare_for(self, preparation: Preparation) -> None:
        """Have every engine prepared anew, for something else."""
        self._preparation = preparation
        for engine_id, engine in list(self._engines.items()):
            engine.ready, engine.left_out = False, None
            self._prepared(engine_id, engine.identity, None)

    def _submit(self, run: Run) -> bool:
        """Give the scheduler tasks until the window is full; tell whether more are waiting."""
        if safe_point.asked():
            return False
        ready = [engine_id for engine_id, engine in self._engines.items() if engine.ready]
        # Each target named makes each message longer: none is when all may have it.
        targets = None if len(ready) == len(self._engines) else ready
        while self._draw(run) and ready and len(run.out) < WINDOW * len(ready):
            _, _, task = heapq.heappop(run.waiting)
            if task.key in run.done:
                continue
            elsewhere = [i for i in ready if self._engines[i].host != task.not_on]
            with self._view.temp_flags(targets=(task.not_on and elsewhere) or targets):
                result = self._view.apply_async(ByName.of(task.function), *task.args)
            # Client and view would remember the name of every task they ever sent.
            self._client.history.clear()
            self._view.history.clear()
            message = result.msg_ids[0]
            run.out[message] = task
            result.add_done_callback(lambda done, m=message: self._events.put(("task", m, done)))
        return bool(run.waiting)

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
            engine_id, identity = name
            self._prepared(engine_id, identity, value)
        else:
            self._hub_told(run, name, value)

    # -- engines ------------------------------------------------------------------

    def _update_engines(self, run: Run) -> None:
        """Follow who comes and goes; prepare who comes; give up when nobody is there."""
        present = dict(self._client._engines)
        for engine_id in [i for i, e in self._engines.items() if present.get(i) != e.identity]:
            del self._engines[engine_id]
        for engine_id, identity in present.items():
            if engine_id not in self._engines:
                self._engines[engine_id] = Engine(identity)
                self._prepared(engine_id, identity, None)
        if not self._source.tend(len(present)):
            self._reconnect(run)
            return
        now = time.monotonic()
        if self.size:
            self._empty_since = None
        elif self._empty_since is None:
            self._empty_since = now
        left_out = [e.left_out for e in self._engines.values() if e.left_out is not None]
        if left_out and len(left_out) == len(self._engines):
            raise left_out[0]
        if self._empty_since is not None and now - self._empty_since > self._engine_timeout_s:
            raise TooFewEngines(
                f"no engine of {self._source.name} could be used for"
                f" {self._engine_timeout_s:.0f} s ({len(present)} registered)",
                remedy="Start engines and run the same command again; what was scored is kept",
            )
        self._tell(min(len(run.out), self.size))

    def _tell(self, busy: int) -> None:
        if self._watch is not None:
            empty, limit = self._empty_since, self._engine_timeout_s
            self._watch(FarmState(self.size, busy, empty, len(self._engines), limit))

    def _prepared(self, engine_id: int, identity: str, answer: Any) -> None:
        """Take an engine's preparation one call further."""
        engine = self._engines.get(engine_id)
        if engine is None or engine.identity != identity:
            return
        try:
            if answer is not None:
                answer = answer.get(timeout=0)
            if isinstance(answer, dict):
                engine.host = str(answer.get("host", ""))
            call = self._preparation.request(answer) if self._preparation else None
            if call is None:
                engine.ready = True
                return
            function, *args = call
            asked = self._client[engine_id].apply_async(ByName.of(function), *args)
        except Exception as error:
            if engine_id not in self._client._engines:
                return
            cause = error if isinstance(error, FleetError) else remote_failure(error)
            engine.left_out = cause
            logger.warning("engine %d is left out: %s", engine_id, cause)
            return
        name = (engine_id, identity)
        asked.add_done_callback(lambda done: self._events.put(("prepared", name, done)))

    # -- tasks --------------------------------------------------------------------

    def _task_ended(
        self,
        run: Run,
        message: str,
        done: Any,
        on_result: Callable[[Task, Any], None],
        on_failure: Callable[[Task, WorkloadFailed], None] | None,
    ) -> None:
        task = run.out.pop(message, None)
        run.missed.discard(message)
        with contextlib.suppress(Exception):
            self._client.purge_local_results([message])
        if task is None or task.key in run.done:
            return
        try:
            result = done.get(timeout=0)
        except Exception as error:
            self._task_failed(run, task, error, on_failure)
            return
        if self._is_not_ready(result):
            for engine_id, engine in self._engines.items():
                if engine_id == done.engine_id:
                    engine.ready = False
                    self._prepared(engine_id, engine.identity, None)
            self._enqueue(run, task, float("inf"))
            return
        run.last_result = time.monotonic()
        self._completed += 1
        run.done.add(task.key)
        on_result(task, result)

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
                f"{task.function.__name__} {how}: {remote_failure(error).what}",
                remedy="Look at the engines' logs, then run the same command again;"
                " what was scored is kept",
            )
            if on_failure is None:
                raise failure
            run.done.add(task.key)
            on_failure(task, failure)
            return
        logger.info("resubmitting %s: %s", task.key, first_line(error))
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
                task = run.out.pop(name, None)
                if task is None or task.key in run.done:
                    continue
                with contextlib.suppress(Exception):
                    result = value.get(timeout=0)
                    if not self._is_not_ready(result):
                        run.done.add(task.key)
                        on_result(task, result)
        for event in others:
            self._events.put(event)

    # -- the hub ------------------------------------------------------------------

    def _hub_told(self, run: Run, client: Any, known: set[str] | None) -> None:
        if client is not self._client:
            return
        if known is None:
            self._reconnect(run)
            return
        unknown = set(run.out) - known
        for message in unknown & run.missed:
            task = run.out.pop(message)
            logger.warning("the hub has lost %s; submitting it again", task.key)
            self._enqueue(run, task, float("inf"))
        run.missed = unknown & set(run.out)

    def _reconnect(self, run: Run) -> None:
        """Start anew with another client; what was out is submitted again."""
        logger.warning("connecting to %s again", self._source.name)
        with contextlib.suppress(Exception):
            self._client.close(linger=0)
        self._engines.clear()
        self._empty_since = time.monotonic()
        deadline = self._empty_since + self._engine_timeout_s
        while True:
            self._tell(0)
            try:
                self._connect()
                break
            except EnginesUnreachable:
                if safe_point.asked():
                    raise safe_point.reached(self._completed) from None
                if time.monotonic() > deadline:
                    raise
                time.sleep(TICK_S)
        for task in run.out.values():
            self._enqueue(run, task, float("inf"))
        run.out.clear()
        run.missed.clear()
        run.last_result = time.monotonic()
