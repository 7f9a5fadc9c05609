"""The warm process: one model, loaded once, forked for every unit.

Run as ``python -m neurofleet.engine.warm FD MODEL_DIRECTORY SPEC``. It answers on the
connection FD, and ends when the other side closes it, with whatever it is simulating.
Nothing that a simulation does (a crash of NEURON, an endless loop, a change of global
state) outlives the unit's own process.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import multiprocessing.connection
import os
import resource
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from neurofleet import units
from neurofleet.engine.host_cache import versions
from neurofleet.engine.loading import load_evaluator
from neurofleet.engine.outcome import Description, Outcome, Parameter
from neurofleet.errors import FleetError, ModelError
from neurofleet.model import EvaluatorSpec

#: Limit for what is asked of a model once, when it is loaded [s].
LOAD_LIMIT_S = 600.0
_PR_SET_PDEATHSIG = 1
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
    """

    def __init__(self, evaluator: Any, engine: Connection) -> None:
        self._evaluator = evaluator
        self._engine = engine
        found = [units.whole_of(evaluator), *units.partition(evaluator)]
        self._units = {unit.name: unit for unit in found}
        self._penalties = [units.DEFAULT_PENALTY] * len(evaluator.objectives)

    def describe(self) -> Description:
        """Return what an optimisation has to know of the model."""
        whole = self._units[units.WHOLE]
        taken_apart = tuple(u for u in self._units.values() if u is not whole)
        status, value, _ = self._in_fork(lambda: units.penalties(self._evaluator), LOAD_LIMIT_S)
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

        def work() -> tuple[list[float], list[str]]:
            scorer = units.scorer(self._evaluator, unit, self._penalties)
            scores = [float(score) for score in scorer.score(list(parameters))]
            if len(scores) != len(unit.objectives):
                raise ValueError(f"{len(scores)} scores for {len(unit.objectives)} objectives")
            return scores, scorer.raised

        status, value, reason = self._in_fork(work, limit_s)
        scores = [self._penalties[i] for i in unit.objectives]
        if status == "ok":
            scores, raised = value
            if raised:
                status, reason = "raised", "; ".join(raised)
        duration_s = time.monotonic() - clock
        where = socket.gethostname(), os.getppid()
        return Outcome(status, tuple(scores), reason[:2000], started, duration_s, *where)

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
        status, value, reason = self._in_fork(work, limit_s)
        return (status, value) if status == "ok" else (status, reason)

    def _in_fork(self, work: Callable[[], Any], limit_s: float) -> tuple[str, Any, str]:
        """Run ``work`` in a fork; return its status, its value, and the reason if not ok."""
        answer, to_parent = multiprocessing.Pipe(duplex=False)
        with tempfile.TemporaryFile() as output, contextlib.closing(answer):
            sys.stdout.flush()
            sys.stderr.flush()
            child = os.fork()
            if child == 0:
                answer.close()
                self._engine.close()
                _work_and_exit(work, to_parent, output)
            to_parent.close()
            with contextlib.suppress(OSError):
                os.setpgid(child, child)
            told = None
            try:
                ready = multiprocessing.connection.wait([answer, self._engine], limit_s)
                if answer in ready:
                    told = _receive(answer)
                elif ready:
                    raise EngineGone
            finally:
                if told is None:
                    _end_group(child)
                _, wait_status, used = os.wait4(child, 0)
                _end_group(child)
            if told is not None and told[0] == "ok":
                return told
            greedy = _said_of_memory(used)
            if told is not None:
                return *told[:2], told[2] + greedy
            if not ready:
                return "timeout", None, f"ended at its limit of {limit_s:.0f} s{greedy}"
            return "crashed", None, _how_it_died(wait_status) + greedy + _last_words(output)


def _receive(answer: Connection) -> tuple[str, Any, str] | None:
    try:
        return answer.recv()  # type: ignore[no-any-return]
    except EOFError:
        return None


def _work_and_exit(work: Callable[[], Any], to_parent: Connection, output: IO[bytes]) -> None:
    """The fork's whole life. Never returns."""
    exit_code = 1
    try:
        os.setpgid(0, 0)
        _die_with_parent()
        _limit_memory()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
        try:
            told = ("ok", work(), "")
        except BaseException as error:
            told = ("raised", None, _cause(error))
        to_parent.send(told)
        exit_code = 0
    finally:
        os._exit(exit_code)


def _trace(response: Any) -> tuple[list[float], list[float]] | None:
    """Return a response's time [ms] and values, ``None`` if it is no time series."""
    try:
        return list(map(float, response["time"])), list(map(float, response["voltage"]))
    except (KeyError, TypeError, ValueError, IndexError):
        return None


def _cause(error: BaseException) -> str:
    """Return the chain of an exception, innermost last, in one line."""
    parts: list[str] = []
    link: BaseException | None = error
    while link is not None and len(parts) < 4:
        said = str(link).strip().splitlines() or [""]
        # A traceback that came from another process says what happened at its end.
        telling = said[-1] if said[0].startswith("Traceback") else said[0]
        parts.append(f"{type(link).__name__}: {telling}"[:300])
        link = link.__cause__ or link.__context__
    return " from ".join(parts)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def memory_limit() -> int:
    """Return what one unit's process may need [bytes]."""
    with contextlib.suppress(ValueError):
        return int(os.environ.get(MEMORY_VARIABLE, "")) * 1_000_000
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(MEMORY_PART * machine / (os.cpu_count() or 1))


def _limit_memory() -> None:
    """Have a simulation that needs too much memory fail, before the machine does."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = memory_limit()
    if most != resource.RLIM_INFINITY:
        wanted = min(wanted, most)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, most))


def _said_of_memory(used: resource.struct_rusage) -> str:
    """Return a remark on what failed, if it had nearly all the memory that it may have."""
    limit = memory_limit()
    if used.ru_maxrss * 1024 < 0.7 * limit:
        return ""
    return (
        f"; it reached the {limit // 1_000_000} MB that a unit may have ({MEMORY_VARIABLE} sets it)"
    )


def _end_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _how_it_died(wait_status: int) -> str:
    if os.WIFSIGNALED(wait_status):
        number = os.WTERMSIG(wait_status)
        return f"the simulation's process was ended by {signal.Signals(number).name}"
    return f"the simulation's process exited with code {os.waitstatus_to_exitcode(wait_status)}"


def _last_words(output: IO[bytes]) -> str:
    output.seek(0, os.SEEK_END)
    output.seek(max(0, output.tell() - 600))
    text = " ".join(output.read().decode(errors="replace").split())
    return f"; its last words: {text}" if text else ""


def main() -> None:
    """Load a model and serve it until the other side closes the connection."""
    engine = Connection(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    model, spec = Path(sys.argv[2]), EvaluatorSpec.from_json(json.loads(sys.argv[3]))
    try:
        warm = WarmModel(load_evaluator(model, spec), engine)
        engine.send(warm.describe())
    except FleetError as error:
        engine.send(error if isinstance(error, ModelError) else ModelError(str(error), remedy=""))
        return
    while True:
        try:
            method, args = engine.recv()
            engine.send(getattr(warm, method)(*args))
        except (EOFError, OSError, EngineGone):
            return


if __name__ == "__main__":
    main()
