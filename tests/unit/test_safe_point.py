"""A stop that was asked for loses nothing, and takes no longer than its limit."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from neurofleet import safe_point
from neurofleet.cli.common import Duration
from neurofleet.errors import Interrupted
from neurofleet.farm import SerialFarm, Task
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
    assert re.search(r"^stopped at a safe point; .* to go on\.$", done.stderr, re.MULTILINE)
    assert "error:" not in done.stderr, "it was asked for"
    before = scored(run)
    assert 0 < before < 6
    again = command("neurofleet", *words(), cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    told = re.search(r"(\d+) simulated, (\d+) from the store", again.stderr)
    assert told, again.stderr
    assert int(told[1]) == scored(run) - before, "nothing was simulated twice"


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No stop was asked for; handlers are afterwards what they were."""
    monkeypatch.setattr(safe_point, "_stop", safe_point._Stop())
    kept = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)
    if safe_point._stop.timer is not None:
        safe_point._stop.timer.cancel()


def test_stop_after_asks_when_its_time_has_come(fresh: None) -> None:
    safe_point.listen()
    safe_point.stop_after(0.2, limit_s=0.3)
    assert not safe_point.asked()
    wait_until(safe_point.asked)
    with pytest.raises(KeyboardInterrupt):  # its limit
        wait_until(lambda: False)


def test_stop_after_leaves_the_alarm_of_the_process_to_others(fresh: None) -> None:
    rung: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _frame: rung.append(number))
    try:
        safe_point.listen()
        safe_point.stop_after(0.3, limit_s=30.0)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        wait_until(lambda: rung)
        signal.setitimer(signal.ITIMER_REAL, 0)
        wait_until(safe_point.asked)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_stop_after_holds_beside_a_limit_of_items(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text("0.2\n0.21\n" * 200)
    done = command(
        "neurofleet", "map", "time:sleep", "items.jsonl", "--backend=serial", "--item-timeout=30",
        "--stop-after=8s", "--run-dir=run", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert "stopped at a safe point" in done.stderr


def test_stop_asked_for_by_sigterm_between_two_tasks_loses_neither(fresh: None) -> None:
    safe_point.listen()
    kept: list[object] = []

    def keep(task: Task, _result: object) -> None:
        kept.append(task.key)
        os.kill(os.getpid(), signal.SIGTERM)

    farm = SerialFarm(lambda: None, lambda: None)
    with pytest.raises(Interrupted, match="stopped at a safe point"):
        farm.run([Task(i, abs, (i,)) for i in range(3)], keep)
    assert kept == [0]


def test_stop_listened_for_by_a_program_ends_its_wait_at_the_limit(fresh: None) -> None:
    safe_point._stop.limit_s = 0.2
    with safe_point.listening():
        os.kill(os.getpid(), signal.SIGUSR1)
        assert safe_point.asked()
        with pytest.raises(KeyboardInterrupt):
            time.sleep(30)
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_stop_that_a_program_has_reached_has_no_limit_any_more(fresh: None) -> None:
    safe_point._stop.limit_s = 0.2
    with safe_point.listening():
        os.kill(os.getpid(), signal.SIGUSR1)
    time.sleep(0.4)  # SIGTERM would end this process
    assert safe_point.asked(), "nothing more begins"


def test_signals_that_a_program_handles_itself_stay_its_own(fresh: None) -> None:
    told: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _frame: told.append(number))
    with safe_point.listening():
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert told == [signal.SIGUSR1]
    assert not safe_point.asked()


def test_signals_in_another_thread_are_left_alone(fresh: None) -> None:
    seen: list[object] = []

    def work() -> None:
        with safe_point.listening():
            seen.append(signal.getsignal(signal.SIGUSR1))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]


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
    with pytest.raises(click.BadParameter, match="is not a length of time"):
        Duration().convert(text, None, None)


def test_duration_on_the_command_line_is_refused_in_one_line(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    done = command("neurofleet", *words("--stop-after=soon"), cwd=tmp_path)
    assert_refused(done, 2, "--stop-after", "'soon' is not a length of time")
