"""Engines on this machine's cores, started for one run and ended with it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from neurofleet.backends.own_cluster import (
    end_cluster,
    fresh_directory,
    is_alive,
    make_cluster,
    tidy,
)
from neurofleet.engine.limits import usable_cpus
from neurofleet.errors import EnginesUnreachable, TooFewEngines, UsageError

#: How long the controller has to come up [s].
CONTROLLER_TIMEOUT_S = 60
#: Replacements per engine after which the cause is something that replacing does not cure.
MOST_REPLACEMENTS = 20

logger = logging.getLogger(__name__)


def usable_cores() -> int:
    """Return how many engines this process may keep busy: one for each CPU that it may use."""
    return usable_cpus()


class LocalEngines:
    """One ipyparallel cluster of this process's own.

    Parameters
    ----------
    count : int
        Number of engines; one thread each.
    directory : Path
        Each start of engines has a directory below it, for its profile and logs.
    """

    def __init__(self, count: int, directory: Path) -> None:
        if count < 1:
            raise UsageError(
                f"there must be at least 1 engine, not {count}", remedy="Ask for at least one"
            )
        self.name = "local"
        self.expected = count
        self._above = self._directory = directory
        self._cluster: Any = None
        self._replacements = 0
        self.connection_file = ""

    def connect(self) -> Any:
        """Start a controller and the engines, and return a client."""
        self.close()
        try:
            self._directory = fresh_directory(self._above)
            self._cluster = make_cluster(self.expected, self._directory)
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
        if not is_alive(self._cluster.controller):
            self._count_replacements(self.expected)
            return False
        if engines >= self.expected:
            return True
        alive = sum(
            is_alive(launcher)
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
        if cluster is not None:
            end_cluster(cluster)
            tidy(self._directory)
