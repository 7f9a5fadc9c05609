"""A controller that is this process's own: it starts with it and never outlives it."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neurofleet.backends import tether
from neurofleet.engine.host_cache import cache_directory
from neurofleet.engine.warm_process import ONE_THREAD

#: What starts engines, and what these start, imports nothing from the person's directory.
SAFE_PATH = {"PYTHONSAFEPATH": "1"}
#: ipyparallel's engine itself puts its directory first; this takes it out.
NO_DIRECTORY = "--IPEngine.startup_command=import sys; sys.path[:] = filter(None, sys.path)"
#: What a cluster makes besides its logs; it has the key.
MADE = ("security", "pid", "startup")


def fresh_directory(above: Path) -> Path:
    """Make a directory for one start of engines, beside those of earlier ones.

    Parameters
    ----------
    above : Path
        Made if it is not there.
    """
    above.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        directory = above / str(number)
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
            return directory
    raise AssertionError("numbers do not end")


def tidy(directory: Path) -> None:
    """Remove what a cluster has left besides its logs."""
    for name in MADE:
        shutil.rmtree(directory / name, ignore_errors=True)
    for state in directory.glob("log/engines*.json"):
        state.unlink(missing_ok=True)
    for empty in (*directory.glob("*"), directory):
        with contextlib.suppress(OSError):
            empty.rmdir()


def working_directory(otherwise: Path) -> Path:
    """Return where engines of this computer work: where this process does."""
    try:
        return Path.cwd()
    except OSError:  # it was removed
        return otherwise


def make_cluster(
    engines: int,
    directory: Path,
    controller_args: Sequence[str] = (),
    controller: str = "ipyparallel.controller",
) -> Any:
    """Return an ``ipyparallel.Cluster``, not started, whose processes are tethered to this one.

    Parameters
    ----------
    engines : int
        Engines on this machine; one thread each.
    directory : Path
        For the cluster's profile and logs, of its own; see ``fresh_directory``.
    controller_args : sequence of str
        More of them.
    controller : str
        The module that is the controller.
    """
    import ipyparallel
    from traitlets.config import Config

    tethered = [sys.executable, "-I", "-S", tether.__file__, str(os.getpid())]
    module = [sys.executable, "-P", "-m"]
    config = Config()
    config.ControllerLauncher.controller_cmd = [*tethered, *module, controller]
    config.EngineLauncher.engine_cmd = [*tethered, *module, "ipyparallel.engine"]
    config.EngineLauncher.engine_args = [
        f"--work-dir={working_directory(directory)}",
        NO_DIRECTORY,
    ]
    cache = str(cache_directory())  # relative to this process's directory, not to an engine's
    config.BaseLauncher.environment = {**ONE_THREAD, **SAFE_PATH, "NEUROFLEET_CACHE": cache}
    log = logging.getLogger("neurofleet.backends.ipyparallel")
    log.setLevel(logging.ERROR)
    return ipyparallel.Cluster(
        n=engines,
        profile_dir=str(directory),
        controller_args=[
            "--IPController.db_class=NoDB",
            # The hub counts an engine two beats after it came [ms], and it out after 20 s of none.
            "--HeartMonitor.period=500",
            "--HeartMonitor.max_heartmonitor_misses=40",
            *controller_args,
        ],
        config=config,
        delay=0,
        load_profile=False,
        shutdown_atexit=False,
        log=log,
    )


def end_cluster(cluster: Any) -> None:
    """End controller and engines, whatever they are doing."""
    import psutil

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
    for launcher in [*launchers, cluster.controller]:
        if launcher is not None:
            launcher.output_file = ""  # ipyparallel would remove the log
    with contextlib.suppress(Exception):
        cluster.stop_cluster_sync()


def is_alive(launcher: Any) -> bool:
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
