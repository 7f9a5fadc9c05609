"""What several unit tests need: real commands, snapshots of directories, a small model."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

from neurofleet.engine.outcome import Outcome
from neurofleet.model import EvaluatorSpec

MODELS = Path(__file__).parents[1] / "models"
PURE_PYTHON = MODELS / "pure_python"
CREATE = EvaluatorSpec("evaluator:create")

#: A model without a simulator; ``{body}`` scores the list ``params``.
EVALUATOR = """
import math
import os
import random

import bluepyopt


class Model(bluepyopt.evaluators.Evaluator):
    def __init__(self, objectives, params):
        super().__init__(
            objectives=[bluepyopt.objectives.Objective(name) for name in objectives],
            params=[bluepyopt.parameters.Parameter(n, bounds=(-1.0, 2.0)) for n in params],
        )

    def evaluate_with_lists(self, params):
        {body}


def create(objectives=("first", "second"), params=("x", "y")):
    return Model(objectives, params)
"""


def write_model(
    directory: Path, body: str = "return [sum(p * p for p in params), abs(params[0] - 1.0)]"
) -> Path:
    """Write a pure Python model, and return its directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "evaluator.py").write_text(dedent(EVALUATOR).format(body=body))
    return directory


def an_outcome(scores: tuple[float, ...] = (1.5, 2.5), status: str = "ok") -> Outcome:
    reason = "" if status == "ok" else "because"
    return Outcome(status, scores, reason, 1_760_000_000.25, 3.5, "somewhere", 4711)


def scored(parameter: float, *scores: float) -> Any:
    """Return an individual of BluePyOpt's with one parameter and its scores."""
    from bluepyopt.deapext.optimisations import WSListIndividual

    individual = WSListIndividual([float(parameter)], obj_size=len(scores))
    individual.fitness.values = scores
    return individual


def command(
    name: str,
    *arguments: str | Path,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 60,
) -> subprocess.CompletedProcess[str]:
    """Run one of the installed commands as a person would."""
    return subprocess.run(
        [Path(sys.executable).parent / name, *arguments],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def called(name: str, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run one of the commands in this process, where all is imported already."""
    from neurofleet.cli import l5pc, main

    words = [name, *(str(word) for word in arguments)]
    out, err = io.StringIO(), io.StringIO()
    taken = (signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM)
    kept = {number: signal.getsignal(number) for number in taken}
    before, sys.argv = sys.argv, words
    try:
        with (
            contextlib.chdir(cwd),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            {"neurofleet": main.main, "opt_l5pc": l5pc.main}[name]()
        code: object = None
    except SystemExit as ended:
        code = ended.code
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
        sys.argv = before
    assert isinstance(code, int)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def assert_refused(
    done: subprocess.CompletedProcess[str], code: int, *words: str, lines: int = 1
) -> str:
    """Check the exit code and that stderr is one line of error with a remedy; return it."""
    told = done.stderr.splitlines()
    assert done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout
    errors = [line for line in told if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert told == errors, done.stderr
    # What is wrong, a full stop, what to do about it.
    assert errors[0].rstrip(".").count(". ") >= 1, errors[0]
    for word in words:
        assert word in errors[0], errors[0]
    return errors[0]


def snapshot(directory: Path) -> dict[str, tuple[int, str]]:
    """Return every file below a directory: its mode, and a hash of its content."""
    found = {}
    for path in sorted(directory.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        name = path.relative_to(directory).as_posix()
        found[name] = (path.lstat().st_mode, hashlib.sha256(content).hexdigest())
    return found


@contextlib.contextmanager
def no_room(size: int = 0) -> Iterator[None]:
    """Let no file of this process grow beyond a size, as on a full disk."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def wait_until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Return when the condition holds; fail if it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.02)
