"""The warm process: one model, loaded once, forked for every unit.

Run as ``python -m neurofleet.engine.warm FD PRIVATE_COPY READY``. It answers on the
connection FD, and ends when the other side closes it, with whatever it is simulating;
the private copy of the model, its working directory, goes with it. Nothing that a
simulation does (a crash of NEURON, an endless loop, a change of global state or of the
model's files) outlives the unit's own process.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from neurofleet import causes, units
from neurofleet.engine import forks, limits
from neurofleet.engine.host_cache import versions
from neurofleet.engine.inbox import Inbox, Told
from neurofleet.engine.loading import load_evaluator, missing_module
from neurofleet.engine.outcome import Description, Outcome, Parameter
from neurofleet.engine.private_copy import Keeper, remove_tree
from neurofleet.errors import ModelError
from neurofleet.mechanisms import hint
from neurofleet.model import EvaluatorSpec

#: Limit for what is asked of a model once, when it is loaded [s].
LOAD_LIMIT_S = 600.0
#: So much of what went wrong travels [characters].
LONGEST_REASON = 2000
LONGEST_TRACEBACK = 20_000
#: Environment variable with what a unit's process may need [MB].
MEMORY_VARIABLE = "NEUROFLEET_UNIT_MEMORY_MB"
#: Otherwise it may have its core's share of this part of the machine's memory.
MEMORY_PART = 0.8


class EngineGone(Exception):
    """Nobody waits for the answer any more."""


class WarmModel:
    """A loaded model that evaluates in forks of this process.

    Parameters
    ----------
    evaluator : bluepyopt.evaluators.Evaluator
    engine : Connection
        Closed by the engine when it ends; a running fork is then ended too.
    model : Path
        The private copy.
    factory : str
        The evaluator's name, ``module:callable``.
    compiled : tuple of str
        Its directories whose mechanisms were compiled.
    put_back : callable
        Undoes what an evaluation did to the private copy.
    """

    def __init__(
        self,
        evaluator: Any,
        engine: Connection,
        model: Path,
        factory: str,
        compiled: tuple[str, ...],
        put_back: Callable[[], object],
    ) -> None:
        self._evaluator = evaluator
        self._engine = engine
        self._model = model
        self._factory = factory
        self._compiled = compiled
        self._put_back = put_back
        found = [units.whole_of(evaluator), *units.partition(evaluator)]
        self._units = {unit.name: unit for unit in found}
        self._penalties = [units.DEFAULT_PENALTY] * len(evaluator.objectives)

    def describe(self) -> Description:
        """Return what an optimisation has to know of the model."""
        whole = self._units[units.WHOLE]
        taken_apart = tuple(u for u in self._units.values() if u is not whole)
        status, value, *_ = self._in_fork(lambda: units.penalties(self._evaluator), LOAD_LIMIT_S)
        if status == "ok":
            self._penalties = value
        return Description(
            parameters=tuple(
                Parameter(p.name, float(p.lower_bound), float(p.upper_bound))
                for p in self._evaluator.params
            ),
            objectives=tuple(objective.name for objective in self._evaluator.objectives),
            penalties=tuple(self._penalties),
            whole=whole,
            units=taken_apart or (whole,),
            versions=versions(),
        )

    def evaluate(self, unit_name: str, parameters: Sequence[float], limit_s: float) -> Outcome:
        """Score one individual by one unit, within a limit [s]."""
        unit = self._units[unit_name]
        started, clock = time.time(), time.monotonic()

        def work() -> tuple[list[float], list[str], list[str]]:
            scorer = units.scorer(self._evaluator, unit, self._penalties)
            scores = [float(score) for score in scorer.score(list(parameters))]
            if len(scores) != len(unit.objectives):
                raise ValueError(f"{len(scores)} scores for {len(unit.objectives)} objectives")
            return scores, scorer.raised, scorer.tracebacks

        status, value, reason, text = self._in_fork(work, limit_s)
        scores = [self._penalties[i] for i in unit.objectives]
        if status == "ok":
            scores, raised, tracebacks = value
            if raised:
                status, reason, text = "raised", "; ".join(raised), "\n".join(tracebacks)
        duration_s = time.monotonic() - clock
        return Outcome(
            status,
            tuple(scores),
            reason[:LONGEST_REASON],
            started,
            duration_s,
            socket.gethostname(),
            os.getppid(),
            text[-LONGEST_TRACEBACK:],
        )

    def responses(self, parameters: Sequence[float], limit_s: float) -> tuple[str, Any]:
        """Return ``("ok", {recording: (time [ms], value)})`` of all protocols, or why not."""

        def work() -> dict[str, Any]:
            evaluator = self._evaluator
            evaluator.sim.initialize()
            traces = evaluator.run_protocols(
                evaluator.fitness_protocols.values(), evaluator.param_dict(list(parameters))
            )
            shown = {name: _trace(response) for name, response in traces.items()}
            return {name: trace for name, trace in shown.items() if trace is not None}

        if not getattr(self._evaluator, "fitness_protocols", None):
            return "ok", {}
        status, value, reason, _ = self._in_fork(work, limit_s)
        return (status, value) if status == "ok" else (status, reason)

    def _in_fork(self, work: Callable[[], Any], limit_s: float) -> Told:
        """Run ``work`` in a fork, and put back what it did to the model's files."""
        answer = Inbox(self._engine)
        sys.stdout.flush()
        sys.stderr.flush()
        here = os.getpid()
        child = os.fork()
        if child == 0:
            self._engine.close()
            _work_and_exit(work, answer, here, self._reason)
        told: Told | None = None
        arrived = ""
        try:
            with contextlib.suppress(OSError):
                os.setpgid(child, child)
            arrived = answer.wait(child, limit_s)
            if arrived == "engine":
                raise EngineGone
            told = answer.told() if arrived == "whole" else None
        finally:
            if told is None:
                forks.end_group(child)
            # Its group ends while its number is still its own.
            os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
            forks.end_group(child)
            _, wait_status, used = os.wait4(child, 0)
            answer.close()
            self._put_back()
        if told is not None and told[0] == "ok":
            return told
        greedy = _said_of_memory(used)
        if told is not None:
            return told[0], told[1], told[2] + greedy, told[3]
        if arrived == "timeout":
            return "timeout", None, f"ended at its limit of {limit_s:.0f} s{greedy}", ""
        return "crashed", None, _how_it_died(wait_status) + greedy + answer.last_words(), ""

    def _reason(self, error: BaseException) -> str:
        """Return the innermost cause in one line, and what can be done if it is known."""
        said = causes.line(error, self._model)
        missing = missing_module(error, self._model, self._factory)
        return said + (f"; {missing}" if missing else hint(said, self._model, self._compiled))


def _work_and_exit(
    work: Callable[[], Any], answer: Inbox, parent: int, reason: Callable[[BaseException], str]
) -> None:
    """The fork's whole life. Never returns."""
    exit_code = 1
    try:
        limits.die_with_parent(parent)
        forks.lead_a_group()
        forks.limit_memory(memory_limit())
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        answer.take_output()
        try:
            told: Told = ("ok", work(), "", "")
        except BaseException as error:
            told = ("raised", None, reason(error), causes.traceback_text(error))
        answer.send(told)
        exit_code = 0
    finally:
        os._exit(exit_code)


def _trace(response: Any) -> tuple[list[float], list[float]] | None:
    """Return a response's time [ms] and values, ``None`` if it is no time series."""
    try:
        return list(map(float, response["time"])), list(map(float, response["voltage"]))
    except (KeyError, TypeError, ValueError, IndexError):
        return None


def memory_limit() -> int:
    """Return what one unit's process may need [bytes]."""
    with contextlib.suppress(ValueError):
        return int(os.environ.get(MEMORY_VARIABLE, "")) * 1_000_000
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    share = machine / (os.cpu_count() or 1)
    allowed = limits.memory_limit_bytes()  # of a job, a container, a service
    if allowed is not None:
        share = min(share, allowed / limits.usable_cpus())
    return int(MEMORY_PART * share)


def _said_of_memory(used: resource.struct_rusage) -> str:
    """Return a remark on what failed, if it had nearly all the memory that it may have."""
    limit = memory_limit()
    if used.ru_maxrss * 1024 < 0.7 * limit:
        return ""
    return (
        f"; it reached the {limit // 1_000_000} MB that a unit may have ({MEMORY_VARIABLE} sets it)"
    )


def _how_it_died(wait_status: int) -> str:
    died = forks.how_it_died(wait_status, "the simulation's process")
    return died if os.WIFSIGNALED(wait_status) else f"{died} and gave no whole answer"


def main() -> None:
    """Load a model and serve it until the other side closes the connection."""
    engine = Connection(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    top, ready = Path(sys.argv[2]), json.loads(sys.argv[3])
    try:
        _serve(engine, top / "model", ready)
    finally:
        os.chdir("/")
        remove_tree(top)


def _serve(engine: Connection, model: Path, ready: dict[str, Any]) -> None:
    spec, compiled = EvaluatorSpec.from_json(ready["evaluator"]), tuple(ready["compiled"])
    try:
        keeper = Keeper(model, Path(ready["cached"]))
        evaluator = load_evaluator(model, spec, compiled)
        keeper.keep()
        warm = WarmModel(evaluator, engine, model, spec.factory, compiled, keeper.put_back)
        engine.send(warm.describe())
    except ModelError as error:
        sys.stderr.write(causes.traceback_text(error))
        engine.send(error)
        return
    except Exception as error:
        sys.stderr.write(causes.traceback_text(error))
        engine.send(
            ModelError(
                f"the model does not load: {causes.line(error, model)}",
                remedy="Mend its code; NEUROFLEET_DEBUG=1 shows all causes",
            )
        )
        return
    while True:
        try:
            method, args = engine.recv()
            engine.send(getattr(warm, method)(*args))
        except (EOFError, OSError, EngineGone):
            return


if __name__ == "__main__":
    main()
