"""A stop that was asked for loses nothing, and takes no longer than its limit."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from neurofleet import safe_point
from neurofleet.cli.common import Duration
from unit.support import assert_refused, command, wait_until, write_model

#: An individual of the model takes so long [s].
UNIT_S = 0.4
SLOW = f"import time; time.sleep({UNIT_S}); return [params[0] ** 2, abs(params[1] - 1.0)]"
#: One that takes longer than any test waits.
ENDLESS = "import time; time.sleep(600); return [0.0, 0.0]"
SIZE = ("--offspring-size", "6", "--max-ngen", "2")


def words(*more: str) -> list[str]:
    return [
        "optimise", "model", "--evaluator=evaluator:create", "--backend=serial", *SIZE,
        "--no-report", "--run-dir=run", *more,
    ]  # fmt: skip


def scored(run: Path) -> int:
    try:
        with sqlite3.connect(f"file:{run / 'scores.sqlite'}?mode=ro", uri=True) as db:
            return int(db.execute("SELECT count(*) FROM score").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def started(directory: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [Path(sys.executable).with_name("neurofleet"), *words(*more)],
        cwd=directory, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str], limit_s: float) -> subprocess.CompletedProcess[str]:
    try:
        _, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return subprocess.CompletedProcess([], process.returncode, "", err)


@pytest.mark.parametrize("how", ["SIGUSR1", "SIGTERM"])
def test_run_stopped_at_a_safe_point_goes_on_with_nothing_computed_twice(
    tmp_path: Path, how: str
) -> None:
    write_model(tmp_path / "model", SLOW)
    run = tmp_path / "run"
    process = started(tmp_path)
    wait_until(lambda: scored(run) >= 2 or process.poll() is not None, 60)
    process.send_signal(getattr(signal, how))
    done = ended(process, 60)
    assert done.returncode == 130, done.stderr
    assert "error: stopped at a safe point" in done.stderr
    before = scored(run)
    assert 0 < before < 6
    again = command("neurofleet", *words(), cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    told = re.search(r"(\d+) simulated, (\d+) from the store", again.stderr)
    assert told, again.stderr
    assert int(told[1]) == scored(run) - before, "nothing was simulated twice"


def test_stop_after_asks_when_its_time_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safe_point, "_stop", safe_point._Stop())
    kept = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}
    kept[signal.SIGALRM] = signal.getsignal(signal.SIGALRM)
    safe_point.listen()
    try:
        safe_point.stop_after(0.2, limit_s=0.3)
        assert not safe_point.asked()
        wait_until(safe_point.asked)
        with pytest.raises(KeyboardInterrupt):  # its limit
            wait_until(lambda: False)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in kept.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("how", ["--stop-after", "SIGUSR1", "SIGTERM", "SIGTERM twice"])
def test_stop_takes_no_longer_than_its_limit(tmp_path: Path, how: str) -> None:
    """A unit that never ends is left; what was scored before would be kept."""
    write_model(tmp_path / "model", ENDLESS)
    limit = "600s" if how == "SIGTERM twice" else "1s"
    after = ["--stop-after=3s"] if how == "--stop-after" else []
    process = started(tmp_path, f"--stop-within={limit}", *after)
    wait_until(lambda: (tmp_path / "run" / "scores.sqlite").exists(), 60)
    time.sleep(1.5)  # it has begun a unit by then, or is about to: both must end
    since = time.monotonic()
    if how != "--stop-after":
        for _ in range(1 + how.endswith("twice")):
            process.send_signal(getattr(signal, how.split()[0]))
            time.sleep(0.3)
    done = ended(process, 30)
    assert done.returncode == 130, done.stderr
    assert time.monotonic() - since < 10
    assert len(re.findall("^error: ", done.stderr, re.MULTILINE)) == 1
    assert "Traceback" not in done.stderr


def test_sigterm_outside_of_any_work_ends_at_once(tmp_path: Path) -> None:
    """Somebody who waits for a queue or a controller is not kept."""
    write_model(tmp_path / "model", SLOW)
    env = {**os.environ, "IPYTHONDIR": str(tmp_path / "nothing")}
    process = subprocess.Popen(
        [Path(sys.executable).with_name("neurofleet"), *words("--backend=local")],
        cwd=tmp_path, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, env=env,
    )  # fmt: skip
    wait_until(lambda: (tmp_path / "run" / "engines").exists(), 60)
    since = time.monotonic()
    process.terminate()
    done = ended(process, 30)
    assert (done.returncode, time.monotonic() - since < 8) == (130, True), done.stderr


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), (" 1.5s ", 1.5)],
)
def test_duration_is_taken(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "0", "-5", "nan", "inf", "2 h", "h", "99999h", "1d", "m2"])
def test_duration_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no length of time"):
        Duration().convert(text, None, None)


def test_duration_on_the_command_line_is_refused_in_one_line(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    done = command("neurofleet", *words("--stop-after=soon"), cwd=tmp_path)
    assert_refused(done, 2, "--stop-after", "'soon' is no length of time")
