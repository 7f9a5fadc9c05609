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
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurofleet import safe_point
from neurofleet.backends.own_cluster import (
    end_cluster,
    fresh_directory,
    is_alive,
    make_cluster,
    tidy,
)
from neurofleet.backends.slurm_jobs import (
    NEVER,
    WAITING,
    Job,
    JobState,
    Refused,
    Step,
    address_towards,
    call,
    refuse_too_many,
    some_node,
)
from neurofleet.engine.warm_process import ONE_THREAD
from neurofleet.errors import EnginesUnreachable, FleetError, TooFewEngines, UsageError, first_line

#: How often a job that stays pending is told of [s].
TELL_EVERY_S = 60.0
#: How long a reason for which a job can never start has to stay [s].
SURE_S = 5.0
#: How often engines are counted while the first one is waited for [s].
LOOK_S = 0.2
#: Jobs that are submitted for one run, the first included, when its controller dies.
MOST_JOBS = 3
#: A limit as sbatch takes it: minutes, or hours, minutes and seconds, or with days before.
TIME = re.compile(
    r"[0-9]+(:[0-9]+){0,2}|[0-9]+-[0-9]+(:[0-9]+){0,2}|-1|unlimited|infinite", re.IGNORECASE
)
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

    Raises
    ------
    UsageError
        The time is none that sbatch would take.
    """

    partition: str | None = None
    time: str | None = None
    account: str | None = None
    options: tuple[str, ...] = ()
    queue_timeout_s: float = 86400.0

    def __post_init__(self) -> None:
        for option in (self.time and f"--time={self.time}", *self.options):
            name, _, value = (option or "").partition("=")
            if name == "--time" and not TIME.fullmatch(value):
                raise UsageError(
                    f"{value!r} is no --time that Slurm takes",
                    remedy="Give minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS,"
                    " such as 90, 4:00:00 or 1-12",
                )

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
        self._above = self._directory = directory
        self._engine_timeout_s = engine_timeout_s
        self._cluster: Any = None
        self._job: Job | None = None
        self._jobs = 0
        self._engines = 0

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
            refuse_too_many(self.expected, self._request.partition)
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
        address = address_towards(some_node(self._request.partition))
        try:
            self._directory = fresh_directory(self._above)
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
                "neurofleet.backends.signed_controller",
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

    def _start_engines(self) -> Job:
        engine_file = self._cluster.controller.connection_files["engine"]
        task = [
            *(sys.executable, "-P", "-m", "neurofleet.backends.slurm_task"),
            f"--file={engine_file}",
            f"--profile-dir={self._directory}",
        ]
        step = ["srun", f"--ntasks={self.expected}", "--kill-on-bad-exit=0", *task]
        log = self._directory / "log" / "engines.log"
        log.parent.mkdir(exist_ok=True)
        if self._allocation is not None:
            return Step(step, log)
        script = self._directory / "engines.sh"
        script.write_text(f"#!/bin/sh\nexec {shlex.join(step)}\n")
        words = [
            *("sbatch", "--parsable", "--job-name=neurofleet-engines"),
            *(f"--ntasks={self.expected}", f"--output={log}", "--open-mode=append"),
            *self._request.words(),
            str(script),
        ]
        try:
            told = call(words, env={**os.environ, **ONE_THREAD})
        except Refused as error:
            raise UsageError(
                f"Slurm rejects the job ({error})",
                remedy="Change --partition, --time, --account, --engines or --slurm-option;"
                " sinfo shows what there is",
            ) from error
        number = told.strip().partition(";")[0]
        logger.warning("submitted job %s: %d engines", number, self.expected)
        return Job(number)

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
                if job.reason and (str(job) != told or now - told_at > TELL_EVERY_S):
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

    def tend(self, engines: int) -> bool:
        """Notice that the job has ended; Slurm and its tasks do the rest."""
        assert self._job is not None
        if engines < self._engines:
            self._job.ask_soon()
        self._engines = engines
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
            tidy(self._directory)
