"""Slurm's commands: what a job is doing, how it ends, which nodes there are."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

from neurofleet.engine.warm_process import ONE_THREAD
from neurofleet.errors import UsageError, first_line

#: What one call of a Slurm command may take [s].
COMMAND_S = 60.0
#: A job's state is asked for so soon, and less and less often while nothing changes [s].
ASK_EVERY_S, ASK_SELDOM_S = 2.0, 60.0
#: States of a job that may still give engines.
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED", "RESIZING")
#: Reasons for being pending that no waiting cures.
NEVER = (
    "AccountNotAllowed",
    "BadConstraints",
    "InvalidAccount",
    "InvalidQOS",
    "PartitionNodeLimit",
    "PartitionTimeLimit",
    "QOSNotAllowed",
)
RUNNING = ("RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED")


@dataclass(frozen=True)
class JobState:
    """What Slurm says of a job.

    Attributes
    ----------
    state : str
        ``PENDING``, ``RUNNING``, ...; empty when Slurm does not know the job any more.
    reason : str
    """

    state: str
    reason: str = ""

    @property
    def over(self) -> bool:
        """Whether it will give no engines any more."""
        return self.state not in WAITING + RUNNING

    def __str__(self) -> str:
        """For people."""
        reason = f" ({self.reason})" if self.reason not in ("", "None") else ""
        return (self.state or "forgotten").lower() + reason


class Job:
    """A submitted job; a thread follows its state, so that a slow Slurm stops nobody.

    Parameters
    ----------
    number : str
    """

    def __init__(self, number: str) -> None:
        self.number = number
        self._state = JobState("PENDING")
        self._over = False
        self._wake = threading.Event()
        threading.Thread(target=self._follow, name=f"job {number}", daemon=True).start()

    @property
    def state(self) -> JobState:
        """What Slurm said last."""
        return self._state

    def ask_soon(self) -> None:
        """Something happened to the job: ask for its state now."""
        self._wake.set()

    def end(self) -> None:
        """Cancel the job."""
        self._over = True
        self._wake.set()
        if not self._state.over:
            with contextlib.suppress(Refused):
                call(["scancel", self.number])

    def _follow(self) -> None:
        wait_s = ASK_EVERY_S
        while not self._over and not self._state.over:
            before = self._state
            with contextlib.suppress(Refused):  # a busy Slurm answers next time
                self._state = job_state(self.number)
            # A reason that is no good has to be seen again before it is believed.
            changing = self._state != before or self._state.reason in NEVER
            wait_s = ASK_EVERY_S if changing else min(2 * wait_s, ASK_SELDOM_S)
            if self._wake.wait(wait_s):
                self._wake.clear()
                wait_s = ASK_EVERY_S


class Step(Job):
    """A step of the allocation that this process is in.

    Parameters
    ----------
    words : list of str
        Beginning with srun.
    log : Path
    """

    def __init__(self, words: list[str], log: Path) -> None:
        self.number = os.environ["SLURM_JOB_ID"]
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                words,
                env={**os.environ, **ONE_THREAD},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    @property
    def state(self) -> JobState:
        """Running for as long as srun does."""
        code = self._process.poll()
        return JobState("RUNNING") if code is None else JobState("FAILED", f"srun ended, {code}")

    def ask_soon(self) -> None:
        """It is asked each time."""

    def end(self) -> None:
        """End the step."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
                return


class Refused(Exception):
    """A Slurm command failed; its first words."""


def job_state(number: str) -> JobState:
    """Ask Slurm for a job's state."""
    try:
        told = call(["squeue", f"--jobs={number}", "--states=all", "--noheader", "--format=%T|%r"])
    except Refused as error:
        if "Invalid job id" in str(error):
            return JobState("")
        raise
    state, _, reason = told.strip().partition("|")
    return JobState(state, reason)


def call(words: list[str], env: dict[str, str] | None = None) -> str:
    """Return what a Slurm command prints.

    Raises
    ------
    Refused
        It fails, or takes too long.
    """
    try:
        done = subprocess.run(
            words,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Refused(first_line(error)) from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        text = "; ".join(said) or f"{words[0]} ended with code {done.returncode}"
        raise Refused(re.sub(r"\b(sbatch|squeue|srun): (error: )?", "", text))
    return done.stdout


def refuse_too_many(engines: int, partition: str | None) -> None:
    """Raise if the partition, full or not, cannot have so many engines, or is not there."""
    where = [f"--partition={partition}"] if partition else []
    with contextlib.suppress(Refused, ValueError):
        told = call(["sinfo", "--noheader", *where, "--format=%R|%C"])
        cores = {
            name: int(counts.split("/")[-1])
            for name, counts in (line.strip().split("|") for line in told.splitlines())
        }
        if partition and not cores:
            listed = call(["sinfo", "--noheader", "--format=%R"]).split()
            raise UsageError(
                f"there is no partition {partition!r}",
                remedy=f"There are {', '.join(dict.fromkeys(listed))}",
            )
        most = max(cores.values(), default=engines)
        if engines > most:
            named = f"partition {partition}" if partition else "the largest partition"
            raise UsageError(
                f"{named} has {most} cores, {engines} engines were asked for",
                remedy=f"Ask for --engines {most} or fewer, or for another --partition",
            )


def some_node(partition: str | None) -> str:
    """Return the name of a node that engines may run on."""
    with contextlib.suppress(Refused):
        listed = os.environ.get("SLURM_JOB_NODELIST")
        if listed:
            names = call(["scontrol", "show", "hostnames", listed]).split()
        else:
            where = [f"--partition={partition}"] if partition else []
            names = call(["sinfo", "--noheader", "--Node", *where, "--format=%N"]).split()
        here = socket.gethostname().partition(".")[0]
        others = [name for name in names if name != here]
        for name in [*others, *names][:1]:
            told = call(["scontrol", "show", "node", name, "--oneliner"])
            found = re.search(r"\bNodeAddr=(\S+)", told)
            return found[1] if found else name
    return socket.gethostname()


def address_towards(towards: str) -> str:
    """Return the address by which this machine is seen from another.

    ``NEUROFLEET_ADDRESS`` says it where the network is more than one.
    """
    told = os.environ.get("NEUROFLEET_ADDRESS")
    if told:
        return told
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((towards, 9))  # sends nothing: it asks for the route
        return str(probe.getsockname()[0])
    return socket.gethostbyname(socket.gethostname())
