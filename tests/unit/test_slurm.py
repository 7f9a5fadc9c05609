"""What is asked of Slurm, and the batch script as bash runs it; without any Slurm."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from neurofleet.backends import slurm_jobs, slurm_script
from neurofleet.backends.slurm import SlurmRequest
from neurofleet.backends.slurm_jobs import ASK_EVERY_S, ASK_SELDOM_S, Job, JobState, Refused
from neurofleet.backends.slurm_script import ScriptRequest, script
from neurofleet.errors import UsageError
from unit.support import assert_refused, command, wait_until


@pytest.mark.parametrize(
    "time",
    ["90", "0", "90:30", "4:00:00", "1-12", "1-12:30", "2-00:00:00", "UNLIMITED", "infinite", "-1"],
)
def test_time_as_sbatch_has_it_is_taken(time: str) -> None:
    assert SlurmRequest(time=time).words() == [f"--time={time}"]
    SlurmRequest(options=(f"--time={time}",))


@pytest.mark.parametrize(
    "time", ["banana", "2h", "1:2:3:4", "1-", "-5", "1-2-3", "4:", ":30", "1.5", "1 2", "\u0663"]
)
def test_time_that_sbatch_would_not_take_is_refused(time: str) -> None:
    for request in ({"time": time}, {"options": (f"--time={time}",)}):
        with pytest.raises(UsageError, match=r"is no --time that Slurm takes\. Give minutes"):
            SlurmRequest(**request)  # type: ignore[arg-type]


def test_script_with_a_time_that_is_none_is_refused(tmp_path: Path) -> None:
    done = command(
        "neurofleet", "slurm", "script", "--engines=2", "--time=banana", "--", "opt_l5pc",
        cwd=tmp_path,
    )  # fmt: skip
    assert_refused(done, 2, "'banana' is no --time that Slurm takes")
    assert done.stdout == ""


# -- how often a job is asked for --------------------------------------------------------


class FakeEvent:
    """Lets the time pass that somebody wants to wait, and notes it."""

    def __init__(self, at: dict[int, str]) -> None:
        self.waits: list[float] = []
        self.at = at
        self.job: Job

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        what = self.at.get(len(self.waits))
        if what == "end":
            self.job._over = True
        return what is not None

    def set(self) -> None: ...

    def clear(self) -> None: ...


def asked(
    monkeypatch: pytest.MonkeyPatch, states: list[JobState], at: dict[int, str]
) -> list[float]:
    """Return how long a job's follower waits between its questions."""
    answers = iter(states)
    last = states[-1]
    monkeypatch.setattr(slurm_jobs, "job_state", lambda _number: next(answers, last))
    job = Job.__new__(Job)
    event = FakeEvent(at)
    event.job = job
    job.number, job._over = "7", False
    job._state, job._wake = JobState("PENDING"), event  # type: ignore[assignment]
    job._follow()
    return event.waits


def test_job_that_does_not_change_is_asked_for_less_and_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = JobState("RUNNING")
    waits = asked(monkeypatch, [running], {9: "end"})
    assert waits[:5] == [ASK_EVERY_S, 4.0, 8.0, 16.0, 32.0]
    assert waits[5:] == [ASK_SELDOM_S] * 4


def test_job_that_changes_or_loses_engines_is_asked_for_often_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pending, running = JobState("PENDING", "Resources"), JobState("RUNNING")
    waits = asked(monkeypatch, [pending] * 4 + [running] * 9, {7: "soon", 9: "end"})
    assert waits == [2.0, 4.0, 8.0, 16.0, 2.0, 4.0, 8.0, 4.0, 8.0]


def test_job_that_can_never_start_is_looked_at_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    never = JobState("PENDING", "PartitionTimeLimit")
    assert asked(monkeypatch, [never], {4: "end"}) == [ASK_EVERY_S] * 4


def test_job_of_a_busy_slurm_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(_number: str) -> JobState:
        raise Refused("Socket timed out")

    monkeypatch.setattr(slurm_jobs, "job_state", busy)
    job = Job("7")
    try:
        assert job.state == JobState("PENDING")
    finally:
        monkeypatch.setattr(slurm_jobs, "call", lambda _words: "")
        job.end()


# -- the script, near the limit of its job -----------------------------------------------

#: Stands for scontrol: Slurm ends a job that it queues again.
SCONTROL = """#!/bin/sh
echo "$@" >> scontrol.log
kill -KILL "$PPID"
"""
#: A program that does not know of any stop.
PLAIN = "import time; {begun}; time.sleep({takes}); open('done', 'w').close()"
#: One that maps with a fleet: it listens for a stop once it has come so far.
LISTENING = """
import sys, time
{begun}
time.sleep(1.5)
from neurofleet import safe_point
with safe_point.listening():
    while not safe_point.asked():
        time.sleep(0.05)
sys.exit(130)
"""
BEGUN = "open('begun', 'w').close()"


@contextlib.contextmanager
def job_asked_to_stop(
    here: Path, program: str, scontrol: str, stop_before_s: int
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the script for a program, and ask it to stop once the program has begun.

    What the script says is in the file ``err``.
    """
    (here / "mine.py").write_text(program)
    (here / "scontrol").write_text(scontrol)
    (here / "scontrol").chmod(0o755)
    request = ScriptRequest(
        [sys.executable, "mine.py"], 1, SlurmRequest(), stop_before_s=stop_before_s
    )
    (here / "job.sh").write_text(script(request))
    path = f"{here}:{os.environ['PATH']}"
    with (here / "err").open("wb") as err:
        job = subprocess.Popen(
            ["bash", "job.sh"],
            cwd=here,
            env={**os.environ, "PATH": path, "SLURM_JOB_ID": "7"},
            stderr=err,
            start_new_session=True,
        )
    try:
        wait_until((here / "begun").exists)
        job.send_signal(signal.SIGUSR1)
        yield job
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("program", "code", "finished", "again"),
    [
        (PLAIN.format(begun=BEGUN, takes=1.5), 0, True, False),
        (PLAIN.format(begun=BEGUN, takes=60), 128 + signal.SIGTERM, False, False),
        (LISTENING.format(begun=BEGUN), -signal.SIGKILL, False, True),
    ],
    ids=["plain, done in time", "plain, too long", "listens late"],
)
def test_script_near_the_limit_stops_who_listens_and_leaves_others_until_the_end(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    code: int,
    finished: bool,
    again: bool,
) -> None:
    monkeypatch.setattr(slurm_script, "LAST_S", 25)  # 5 s to stop
    with job_asked_to_stop(tmp_path, program, SCONTROL, 30) as job:
        since = time.monotonic()
        assert job.wait(30) == code
        assert time.monotonic() - since < 20
    assert (tmp_path / "done").exists() == finished
    log = tmp_path / "scontrol.log"
    assert (log.read_text() if log.exists() else "") == ("requeue 7\n" if again else "")


#: Slurm ends what a job's script runs, and only then the script.
SCONTROL_SLOW = """#!/bin/sh
(while kill -0 "$PPID" && ! pkill -TERM -P "$PPID" -x sleep; do :; done) >/dev/null 2>&1 &
"""


def test_script_that_outlives_what_slurm_ends_when_it_queues_again_reports_nothing(
    tmp_path: Path,
) -> None:
    program = LISTENING.format(begun=BEGUN)
    with job_asked_to_stop(tmp_path, program, SCONTROL_SLOW, 60) as job:
        job.wait(40)
    assert "error:" not in (tmp_path / "err").read_text()
