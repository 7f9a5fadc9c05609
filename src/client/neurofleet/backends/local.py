"""Engines on this machine's cores, started for one run and ended with it."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from neurofleet.backends import tether
from neurofleet.engine.warm_process import ONE_THREAD
from neurofleet.errors import EnginesUnreachable, TooFewEngines, UsageError

#: How long the controller has to come up [s].
CONTROLLER_TIMEOUT_S = 60
#: Replacements per engine after which the cause is something that replacing does not cure.
MOST_REPLACEMENTS = 20

logger = logging.getLogger(__name__)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class LocalEngines:
    """One ipyparallel cluster of this process's own.

    Parameters
    ----------
    count : int
        Number of engines; one thread each.
    directory : Path
        For the cluster's profile and logs; emptied first.
    """

    def __init__(self, count: int, directory: Path) -> None:
        if count < 1:
            raise UsageError(
                f"{count} engines cannot compute anything", remedy="Ask for at least one"
            )
        self.name = "local"
        self.expected = count
        self._directory = directory
        self._cluster: Any = None
        self._replacements = 0
        self.connection_file = ""

    def connect(self) -> Any:
        """Start a controller and the engines, and return a client."""
        import ipyparallel
        from traitlets.config import Config

        self.close()
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir(parents=True)
        tethered = [sys.executable, "-I", "-S", tether.__file__, str(os.getpid())]
        module = [sys.executable, "-m"]
        config = Config()
        config.ControllerLauncher.controller_cmd = [*tethered, *module, "ipyparallel.controller"]
        config.EngineLauncher.engine_cmd = [*tethered, *module, "ipyparallel.engine"]
        config.EngineLauncher.engine_args = [f"--work-dir={self._directory}"]
        config.BaseLauncher.environment = ONE_THREAD
        log = logging.getLogger("neurofleet.backends.ipyparallel")
        log.setLevel(logging.ERROR)
        try:
            self._cluster = ipyparallel.Cluster(
                n=self.expected,
                profile_dir=str(self._directory),
                controller_args=[
                    "--IPController.db_class=NoDB",
                    "--HeartMonitor.period=2000",
                    "--HeartMonitor.max_heartmonitor_misses=10",
                ],
                config=config,
                delay=0,
                load_profile=False,
                shutdown_atexit=False,
                log=log,
            )
            self._cluster.start_cluster_sync()
            client = self._cluster.connect_client_sync()
        except (OSError, RuntimeError, TimeoutError) as error:
            self.close()
            raise EnginesUnreachable(
                f"the local controller did not start ({error})",
                remedy=f"See the logs in {str(self._directory / 'log')!r}",
            ) from error
        self.connection_file = self._cluster.controller.connection_files["client"]
        self.client = client
        return client

    def tend(self, engines: int) -> bool:
        """Start engines in the place of those that died."""
        if not _is_alive(self._cluster.controller):
            self._count_replacements(self.expected)
            return False
        if engines >= self.expected:
            return True
        alive = sum(
            _is_alive(launcher)
            for engine_set in self._cluster.engines.values()
            for launcher in engine_set.launchers.values()
        )
        missing = self.expected - alive
        if missing > 0:
            self._count_replacements(missing)
            logger.warning("%d local engine(s) died; starting as many", missing)
            self._cluster.start_engines_sync(n=missing)
        return True

    def _count_replacements(self, more: int) -> None:
        self._replacements += more
        if self._replacements > MOST_REPLACEMENTS * self.expected:
            raise TooFewEngines(
                f"local engines have been replaced {self._replacements} times",
                remedy=f"See the logs in {str(self._directory / 'log')!r}",
            )

    def close(self) -> None:
        """End controller and engines, whatever they are doing."""
        cluster, self._cluster = self._cluster, None
        if cluster is None:
            return
        launchers = [
            launcher
            for engine_set in cluster.engines.values()
            for launcher in engine_set.launchers.values()
        ]
        processes = [
            launcher.process
            for launcher in [*launchers, cluster.controller]
            if launcher is not None and launcher.process is not None
        ]
        import psutil

        below: list[Any] = []
        for process in processes:
            with contextlib.suppress(psutil.Error):
                below += process.children(recursive=True)
                process.terminate()  # the tether ends the whole group
        _, alive = psutil.wait_procs(processes, timeout=2 * tether.GRACE_S + 2)
        # An engine's nanny has a session of its own and would linger for 3 s.
        for process in [*alive, *below]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        with contextlib.suppress(Exception):
            cluster.stop_cluster_sync()


def _is_alive(launcher: Any) -> bool:
    """Tell whether a launcher's process runs.

    Its ``state`` does not: ipyparallel changes it in an event loop, which only runs
    during calls of ``*_sync``.
    """
    import psutil

    try:
        process = launcher.process
        return process.is_running() and bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
