"""What a person sees: plain lines without a terminal, a live view in one."""

from __future__ import annotations

import io
import math
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from neurofleet.evolution import State
from neurofleet.farm import FarmState
from neurofleet.findings import Findings
from neurofleet.progress import Watcher
from neurofleet.scoring import Progress
from unit.support import an_outcome, scored


def a_state(generation: int) -> State:
    return State(generation, [], [], None, None, None, None, ["x"])


def found(best: float, *population: float) -> Findings:
    """What a run has found whose best is of an earlier generation."""
    findings = Findings(["a"])
    findings.add([scored(0.5, best)], [scored(0.5, best)])
    findings.add([scored(x, value) for x, value in enumerate(population)], [scored(0.5, best)])
    return findings


def step(done: int, status: str = "ok", generation: int = 1) -> Progress:
    return Progress(generation, done, 16, done, an_outcome(status=status), "Step1")


def test_watcher_without_terminal_tells_each_generation_in_a_plain_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Watcher("l5pc", 3) as watcher:
        watcher.generation(a_state(2), found(1.5, 1.75, 3.25))
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(
        "generation 2/3: best 1.5, population minimum 1.75, mean 2.5, 0:00:0"
    )
    assert "\x1b" not in told.err
    assert len(told.err.splitlines()) == 1


def test_watcher_generation_with_scores_that_are_not_finite_says_how_many_do_not_count(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Watcher("l5pc", 3) as watcher:
        watcher.generation(a_state(2), found(1.5, math.nan, 2.0, math.inf, 3.0))
        watcher.generation(a_state(3), found(math.nan, math.nan))
    some, none = capsys.readouterr().err.splitlines()
    assert "best 1.5, population minimum 2, mean 2.5 (without 2 of 4, whose sum is" in some
    assert "best not finite, population minimum not finite, mean not finite" in none


def test_watcher_without_terminal_does_not_flood(capsys: pytest.CaptureFixture[str]) -> None:
    with Watcher("l5pc", 3) as watcher:
        for done in range(16):
            watcher.progress(step(done))
    assert len(capsys.readouterr().err.splitlines()) <= 1


def test_watcher_state_line_counts_units_engines_and_penalties(
    capsys: pytest.CaptureFixture[str],
) -> None:
    watcher = Watcher("l5pc", 3)
    watcher.farm(FarmState(4, 3, None))
    watcher.progress(Progress(1, 0, 16, 0, None, ""))
    for done, status in enumerate(["ok", "crashed", "timeout"], 1):
        watcher.progress(step(done, status))
    line = watcher._state_line()
    assert line.startswith("generation 1: 3/16 units, 3/4 engines busy")
    assert "2 penalised" in line


def test_watcher_before_anything_is_known_says_that_it_prepares() -> None:
    assert Watcher("l5pc", 3)._state_line() == "preparing"


def test_watcher_line_of_a_path_with_brackets_is_told_as_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Watcher("l5pc", 3) as watcher:
        watcher.says("report: /home/me/[bold]runs[/bold]/" + "very" * 60 + "/report.html")
    told = capsys.readouterr().err
    assert told == "report: /home/me/[bold]runs[/bold]/" + "very" * 60 + "/report.html\n"


SCRIPT = """
import time
from unit.test_progress import FarmState, Progress, Watcher, a_state, found, step
with Watcher("l5pc", 3) as watcher:
    watcher.farm(FarmState(4, 3, None))
    watcher.progress(Progress(1, 0, 16, 0, None, ""))
    time.sleep(1.2)
    watcher.progress(step(8, "crashed"))
    watcher.generation(a_state(1), found(1.5, 1.75, 3.25))
    time.sleep(0.6)
    if {fails}:
        raise KeyboardInterrupt
"""


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.timeout(60)
def test_watcher_in_a_real_terminal_shows_the_live_view_and_gives_the_cursor_back(
    fails: bool,
) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(fails=fails)],
        stdin=slave, stdout=slave, stderr=slave,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "TERM": "xterm",
             "COLUMNS": "100", "LINES": "30"},
    )  # fmt: skip
    os.close(slave)
    seen = io.BytesIO()
    deadline = time.monotonic() + 50
    while time.monotonic() < deadline:
        if not select.select([master], [], [], 1)[0]:
            continue
        try:
            part = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen.write(part)
    os.close(master)
    process.wait(20)
    raw = seen.getvalue().decode()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", raw)
    for words in ("1 of 3", "3 busy of 4", "8 of 16", "units a minute", "penalised", "left"):
        assert words in text, text
    assert "best 1.5, population minimum 1.75, mean 2.5" in text
    assert raw.rindex("\x1b[?25h") > raw.rindex("\x1b[?25l")  # the cursor is shown again
