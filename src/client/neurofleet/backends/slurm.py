"""Engines from Slurm: a job of engines for a controller beside this process.

The controller runs where the client does, because results are meant for the client only:
its ports for clients stay on loopback, and what crosses the cluster's network is encrypted
(CURVE). On a login node the engines are a job that is submitted; inside an allocation (in
the script that ``neurofleet slurm script`` prints) they are a step of it. Engines find the
controller by a file of mode 0600 on the shared file system, never by the job's environment.

ipyparallel's own launcher of Slurm jobs puts the key into the environment, says nothing of a
job's state, and drops what sbatch complains of; so sbatch and squeue are called here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurofleet import safe_point
from neurofleet.backends.own_cluster import end_cluster, is_alive, make_cluster
from neurofleet.engine.warm_process import ONE_THREAD
from neurofleet.errors import EnginesUnreachable, FleetError, TooFewEngines, UsageError, first_line

#: What one call of a Slurm command may take [s].
COMMAND_S = 60.0
#: How often the job's state is asked for [s], and how often a pending one is told of.
ASK_EVERY_S, TELL_EVERY_S = 2.0, 60.0
#: How often engines are counted while the first one is waited for [s].
LOOK_S = 0.2
#: Jobs that are submitted for one run, the first included, when its controller dies.
MOST_JOBS = 3
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
#: How long such a reason has to stay [s].
SURE_S = 5.0
RUNNING = ("RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SlurmRequest:
    """What is asked of Slurm.

    Attributes
    ----------
    partition, time, account : str or None
        As sbatch takes them; ``None`` is the site's default.
    options : tuple of str
        More options of sbatch, such as ``--mem-per-cpu=2G``.
    queue_timeout_s : float
        How long the job may be pending [s].
    """

    partition: str | None = None
    time: str | None = None
    account: str | None = None
    options: tuple[str, ...] = ()
    queue_timeout_s: float = 86400.0

    def words(self) -> list[str]:
        """Return the request as options of sbatch."""
        named = {"partition": self.partition, "time": self.time, "account": self.account}
        return [f"--{name}={value}" for name, value in named.items() if value] + [*self.options]


def tasks(count: int | None) -> int:
    """Return how many engines are meant.

    Raises
    ------
    UsageError
        Nothing says how many, or there is no Slurm here.
    """
    if shutil.which("srun") is None or shutil.which("sbatch") is None:
        raise UsageError(
            f"there is no Slurm on {socket.gethostname()} (no sbatch, no srun)",
            remedy="Run it on the cluster's login node, for example with"
            " neurofleet --head user@login",
        )
    allocated = os.environ.get("SLURM_NTASKS", "") if "SLURM_JOB_ID" in os.environ else ""
    if count is None and not allocated.isdigit():
        raise UsageError("how many engines is not said", remedy="Give --engines, one for each core")
    return int(allocated) if count is None else count


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


class SlurmEngines:
    """Engines of a Slurm job of this process's own.

    Parameters
    ----------
    count : int or None
        Engines, one core each; ``None`` is all tasks of the allocation that this process is in.
    request : SlurmRequest
    directory : Path
        For connection files and logs, on a file system that the compute nodes share;
        emptied first.
    engine_timeout_s : float
        How long the first engine of a running job may take to register [s].
    """

    def __init__(
        self, count: int | None, request: SlurmRequest, directory: Path, engine_timeout_s: float
    ) -> None:
        self._allocation = os.environ.get("SLURM_JOB_ID")
        self.name = "slurm"
        self.expected = tasks(count)
        self.connection_file = ""
        self._request = request
        self._directory = directory
        self._engine_timeout_s = engine_timeout_s
        self._cluster: Any = None
        self._job: _Job | None = None
        self._jobs = 0

    def connect(self) -> Any:
        """Start a controller here and engines by Slurm; return a client when one is there.

        Raises
        ------
        UsageError
            Slurm rejects the job, or the partition has fewer cores.
        EnginesUnreachable
            The controller does not start.
        TooFewEngines
            The job is pending for too long, ends, or no engine registers.
        """
        self.close()
        self._jobs += 1
        if self._jobs > MOST_JOBS:
            raise EnginesUnreachable(
                f"the controller ended {MOST_JOBS} times",
                remedy=f"See the logs in {str(self._directory / 'log')!r}",
            )
        if self._allocation is None:
            _refuse_too_many(self.expected, self._request.partition)
        client = self._start_controller()
        try:
            self._job = self._start_engines()
            self._wait_for_first(client)
        except BaseException:
            client.close(linger=0)
            self.close()
            raise
        return client

    def _start_controller(self) -> Any:
        address = _address(_some_node(self._request.partition))
        try:
            self._cluster = make_cluster(
                0,
                self._directory,
                [
                    "--IPController.enable_curve=True",
                    f"--IPController.engine_ip={address}",
                    f"--IPController.location={address}",
                    "--IPController.client_ip=127.0.0.1",
                    "--IPController.monitor_ip=127.0.0.1",
                ],
            )
            self._cluster.start_controller_sync()
            client = self._cluster.connect_client_sync()
        except (OSError, RuntimeError, TimeoutError) as error:
            self.close()
            raise EnginesUnreachable(
                f"the controller on {socket.gethostname()} did not start ({first_line(error)})",
                remedy=f"See the logs in {str(self._directory / 'log')!r}, and whether there is"
                " room",
            ) from error
        self.connection_file = self._cluster.controller.connection_files["client"]
        return client

    def _start_engines(self) -> _Job:
        engine_file = self._cluster.controller.connection_files["engine"]
        task = [
            *(sys.executable, "-m", "neurofleet.backends.slurm_task"),
            f"--file={engine_file}",
            f"--profile-dir={self._directory}",
        ]
        step = ["srun", f"--ntasks={self.expected}", "--kill-on-bad-exit=0", *task]
        log = self._directory / "log" / "engines.log"
        log.parent.mkdir(exist_ok=True)
        if self._allocation is not None:
            return _Step(step, log)
        script = self._directory / "engines.sh"
        script.write_text(f"#!/bin/sh\nexec {shlex.join(step)}\n")
        words = [
            *("sbatch", "--parsable", "--job-name=neurofleet-engines"),
            *(f"--ntasks={self.expected}", f"--output={log}", "--open-mode=append"),
            *self._request.words(),
            str(script),
        ]
        try:
            told = _call(words, env={**os.environ, **ONE_THREAD})
        except _Refused as error:
            raise UsageError(
                f"Slurm rejects the job ({error})",
                remedy="Change --partition, --time, --account, --engines or --slurm-option;"
                " sinfo shows what there is",
            ) from error
        number = told.strip().partition(";")[0]
        logger.warning("submitted job %s: %d engines", number, self.expected)
        return _Job(number)

    def _wait_for_first(self, client: Any) -> None:
        """Return when an engine has registered; the farm waits for the others."""
        assert self._job is not None
        told, told_at = "", 0.0
        waiting_since, running_since = time.monotonic(), None
        while not client.ids:
            if safe_point.asked():
                raise safe_point.reached()
            now, job = time.monotonic(), self._job.state
            if job.over:
                raise self._ended(job)
            if job.state in WAITING:
                running_since = None
                if str(job) != told or now - told_at > TELL_EVERY_S:
                    logger.warning("job %s is %s", self._job.number, job)
                    told, told_at = str(job), now
                if job.reason in NEVER and now - told_at > SURE_S:
                    raise UsageError(
                        f"Slurm job {self._job.number} would be pending for ever: {job.reason}",
                        remedy="Change --time, --partition, --engines or --account; sinfo shows"
                        " the limits. The job was cancelled",
                    )
                if now - waiting_since > self._request.queue_timeout_s:
                    raise TooFewEngines(
                        f"Slurm job {self._job.number} has been {job} for"
                        f" {self._request.queue_timeout_s:.0f} s",
                        remedy="Ask for fewer --engines, another --partition or less --time, or"
                        " wait longer (--queue-timeout); the job was cancelled",
                    )
            else:
                running_since = running_since or now
                if now - running_since > self._engine_timeout_s:
                    raise TooFewEngines(
                        f"Slurm job {self._job.number} runs, but no engine has registered for"
                        f" {self._engine_timeout_s:.0f} s{self._last_words()}",
                        remedy="The nodes must see this directory and this installation, and"
                        f" reach {socket.gethostname()}; see"
                        f" {str(self._directory / 'log' / 'engines.log')!r}",
                    )
            time.sleep(LOOK_S)

    def tend(self, _engines: int) -> bool:
        """Notice that the job has ended; Slurm and its tasks do the rest."""
        assert self._job is not None
        if not is_alive(self._cluster.controller):
            return False
        state = self._job.state
        if state.over:
            raise self._ended(state)
        return True

    def _ended(self, job: JobState) -> FleetError:
        assert self._job is not None
        remedies = {
            "TIMEOUT": "Give more --time, or use neurofleet slurm script, which goes on by itself",
            "CANCELLED": "Somebody ended it; run the same command again to go on",
            "OUT_OF_MEMORY": "Ask for more, --slurm-option=--mem-per-cpu=4G",
            "NODE_FAIL": "Run the same command again to go on",
            "PREEMPTED": "Run the same command again to go on",
        }
        log = self._directory / "log" / "engines.log"
        remedy = remedies.get(
            job.state, f"The nodes must see this directory and this installation; see {str(log)!r}"
        )
        return TooFewEngines(
            f"Slurm job {self._job.number} is {job}{self._last_words()}",
            remedy=f"{remedy}. What was computed is kept",
        )

    def _last_words(self) -> str:
        """Return the last line that engines or Slurm wrote which tells of something wrong."""
        with contextlib.suppress(OSError):
            text = (self._directory / "log" / "engines.log").read_text(errors="replace")
            telling = [
                line.strip()
                for line in text.splitlines()
                if re.search(r"error|CRITICAL|cannot|No such|denied|Killed", line)
            ]
            if telling:
                return f"; its last words: {telling[-1][:300]}"
        return ""

    def close(self) -> None:
        """End the job and the controller."""
        job, self._job = self._job, None
        if job is not None:
            job.end()
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            end_cluster(cluster)


class _Job:
    """A submitted job; a thread follows its state, so that a slow Slurm stops nobody.

    Parameters
    ----------
    number : str
    """

    def __init__(self, number: str) -> None:
        self.number = number
        self._state = JobState("PENDING")
        self._over = threading.Event()
        threading.Thread(target=self._follow, name=f"job {number}", daemon=True).start()

    @property
    def state(self) -> JobState:
        """What Slurm said last."""
        return self._state

    def end(self) -> None:
        """Cancel the job."""
        self._over.set()
        if not self._state.over:
            with contextlib.suppress(_Refused):
                _call(["scancel", self.number])

    def _follow(self) -> None:
        while not self._over.is_set() and not self._state.over:
            with contextlib.suppress(_Refused):  # a busy Slurm answers next time
                self._state = job_state(self.number)
            self._over.wait(ASK_EVERY_S)


class _Step(_Job):
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

    def end(self) -> None:
        """End the step."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
                return


class _Refused(Exception):
    """A Slurm command failed; its first words."""


def job_state(number: str) -> JobState:
    """Ask Slurm for a job's state."""
    try:
        told = _call(["squeue", f"--jobs={number}", "--states=all", "--noheader", "--format=%T|%r"])
    except _Refused as error:
        if "Invalid job id" in str(error):
            return JobState("")
        raise
    state, _, reason = told.strip().partition("|")
    return JobState(state, reason)


def _call(words: list[str], env: dict[str, str] | None = None) -> str:
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
        raise _Refused(first_line(error)) from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        text = "; ".join(said) or f"{words[0]} ended with code {done.returncode}"
        raise _Refused(re.sub(r"\b(sbatch|squeue|srun): (error: )?", "", text))
    return done.stdout


def _refuse_too_many(engines: int, partition: str | None) -> None:
    """Raise if the partition, full or not, cannot have so many engines, or is not there."""
    where = [f"--partition={partition}"] if partition else []
    with contextlib.suppress(_Refused, ValueError):
        told = _call(["sinfo", "--noheader", *where, "--format=%R|%C"])
        cores = {
            name: int(counts.split("/")[-1])
            for name, counts in (line.strip().split("|") for line in told.splitlines())
        }
        if partition and not cores:
            listed = _call(["sinfo", "--noheader", "--format=%R"]).split()
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


def _some_node(partition: str | None) -> str:
    """Return the name of a node that engines may run on."""
    with contextlib.suppress(_Refused):
        listed = os.environ.get("SLURM_JOB_NODELIST")
        if listed:
            names = _call(["scontrol", "show", "hostnames", listed]).split()
        else:
            where = [f"--partition={partition}"] if partition else []
            names = _call(["sinfo", "--noheader", "--Node", *where, "--format=%N"]).split()
        here = socket.gethostname().partition(".")[0]
        others = [name for name in names if name != here]
        for name in [*others, *names][:1]:
            told = _call(["scontrol", "show", "node", name, "--oneliner"])
            found = re.search(r"\bNodeAddr=(\S+)", told)
            return found[1] if found else name
    return socket.gethostname()


def _address(towards: str) -> str:
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
