"""The other end of a warm process: start it, ask it, end it."""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neurofleet.engine import host_cache
from neurofleet.engine.outcome import Description, Outcome
from neurofleet.engine.private_copy import no_room
from neurofleet.engine.warm import LOAD_LIMIT_S, LONGEST_TRACEBACK
from neurofleet.errors import FleetError, ModelError, WorkloadFailed, debugging

logger = logging.getLogger(__name__)

#: What a warm process may need beyond a unit's own limit to say that it was reached [s].
ANSWER_GRACE_S = 30.0
#: Every unit has one core: no library may start threads of its own.
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
)


#: PYTHONSAFEPATH is for engines, not for the programs that a person's code starts.
NOT_FOR_MODELS = frozenset({"DISPLAY", "PYTHONSAFEPATH"})


def without_display() -> dict[str, str]:
    """Return this environment for a process that simulates.

    NEURON ends the process when DISPLAY names a screen that it cannot open. A model that calls
    ``nrnivmodl`` finds the one of this environment, also if it is not activated.
    """
    kept = {name: value for name, value in os.environ.items() if name not in NOT_FOR_MODELS}
    beside_python = str(Path(sys.executable).parent)
    path = [part for part in kept.get("PATH", os.defpath).split(os.pathsep) if part]
    if beside_python not in path:
        path.insert(0, beside_python)
    return {**kept, **ONE_THREAD, "MPLBACKEND": "Agg", "PATH": os.pathsep.join(path)}


class WarmProcess:
    """A process that has one model loaded, in a private copy of it.

    Parameters
    ----------
    digest : str
        The hash of a model that this host has received.

    Raises
    ------
    ModelError
        The model does not compile, or its code does not give an evaluator.
    WorkloadFailed
        There is no room for the copy.
    """

    description: Description

    def __init__(self, digest: str) -> None:
        copy, ready = host_cache.private_copy(digest)
        self._name = ready.spec.factory
        told_of = {
            "evaluator": ready.spec.as_json(),
            "compiled": ready.compiled,
            "cached": str(ready.cached.directory),
        }
        environment = without_display()
        if ready.compiled:  # NEURON would load other mechanisms, perhaps of the same names
            environment.pop("NRN_NMODL_PATH", None)
        with contextlib.ExitStack() as resources:
            resources.callback(copy.close)
            try:
                self._output = resources.enter_context(tempfile.TemporaryFile())
            except OSError as error:
                raise no_room(error) from error
            self._connection, theirs = multiprocessing.Pipe()
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-B",
                    "-m",
                    "neurofleet.engine.warm",
                    str(theirs.fileno()),
                    str(copy.top),
                    json.dumps(told_of),
                ],
                cwd=copy.top,
                env=environment,
                pass_fds=[theirs.fileno(), copy.lock],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                start_new_session=True,
            )
            self._resources = resources.pop_all()
        theirs.close()
        try:
            told = self._receive(LOAD_LIMIT_S)
        except WorkloadFailed as error:
            self.close()
            raise ModelError(
                f"the model does not load: {error.what}",
                remedy="Import its evaluator in a plain Python to see more",
            ) from error
        except BaseException:
            self.close()
            raise
        if isinstance(told, FleetError):
            if debugging():
                logger.warning("%s", self._printed(LONGEST_TRACEBACK))
            self.close()
            raise told
        self.description = told

    def evaluate(self, unit: str, parameters: Sequence[float], limit_s: float) -> Outcome:
        """Score one individual by one unit; see ``WarmModel.evaluate``."""
        told = self._ask("evaluate", (unit, tuple(parameters), limit_s), limit_s)
        assert isinstance(told, Outcome)
        return told

    def responses(self, parameters: Sequence[float], limit_s: float) -> tuple[str, Any]:
        """Return one individual's traces; see ``WarmModel.responses``."""
        told: tuple[str, Any] = self._ask("responses", (tuple(parameters), limit_s), limit_s)
        return told

    def close(self) -> None:
        """End the process and what it is simulating; safe to call twice."""
        self._connection.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._resources.close()

    def _ask(self, method: str, args: tuple[Any, ...], limit_s: float) -> Any:
        with contextlib.suppress(OSError):  # then the answer, or its absence, tells
            self._connection.send((method, args))
        return self._receive(limit_s + ANSWER_GRACE_S)

    def _receive(self, limit_s: float) -> Any:
        try:
            if self._connection.poll(limit_s):
                return self._connection.recv()
            what = f"no answer within {limit_s:.0f} s"
        except (EOFError, OSError):
            what = "its process ended"
        raise WorkloadFailed(
            f"the process that holds {self._name} failed: {what}{self._last_words()}",
            remedy="Run the same command again; what was scored is kept",
        )

    def _last_words(self) -> str:
        text = " ".join(self._printed(600).split())
        return f" ({text})" if text else ""

    def _printed(self, most: int) -> str:
        """Return the end of what the process printed itself [bytes]."""
        size = self._output.seek(0, os.SEEK_END)
        self._output.seek(max(0, size - most))
        return self._output.read().decode(errors="replace")
