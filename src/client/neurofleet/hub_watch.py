"""What a farm asks the hub when no result comes: is it the same, and what does it know.

A client is not told that its controller was started anew: what it had submitted is lost, and
its sockets connect to the new one as if nothing had happened. So the hub is asked, beside the
farm, in a thread: which engines it has, in one message, every few seconds; and after a longer
silence which tasks, by a client of its own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from neurofleet.errors import first_line
from neurofleet.hub import HubAddress, known_tasks, registered_engines

#: Without any result for so long, and again as often, the hub is asked who it has [s].
QUIET_S = 5.0
#: Without any result for so long it is asked which tasks it knows [s].
STALL_S = 30.0
#: What one answer of the hub may take [s].
PROBE_S = 10.0
#: So many answers that are missing, or of another hub, and it is gone; a busy one may be late.
MISSING, OTHER = 3, 2

logger = logging.getLogger(__name__)


class HubWatch:
    """Asks the hub of one client.

    Parameters
    ----------
    client : ipyparallel.Client
    connection_file : str
        The client's.
    tell : callable
        Called in another thread with the message ids of all tasks that the hub knows, or
        with ``None`` when the hub that had them is gone.
    """

    def __init__(
        self, client: Any, connection_file: str, tell: Callable[[set[str] | None], None]
    ) -> None:
        self._client = client
        self._address = HubAddress.of_client(client)
        self._connection_file = connection_file
        self._tell = tell
        self._asking = False
        self._next = 0.0
        self._missing = 0
        self._other = 0

    def quiet_since(self, moment: float) -> None:
        """Ask, if it is time.

        Parameters
        ----------
        moment : float
            When the last result came, by the monotonic clock [s].
        """
        now = time.monotonic()
        if now - moment < QUIET_S:
            self._missing = self._other = 0
        elif now > self._next and not self._asking:
            self._asking = True
            self._next = now + QUIET_S
            thorough = now - moment > STALL_S
            threading.Thread(target=self._ask, args=(thorough,), daemon=True).start()

    def _ask(self, thorough: bool) -> None:
        ours = set(self._client._engines.values())
        try:
            if self._is_gone(ours):
                self._tell(None)
            elif thorough:
                self._tell(known_tasks(self._connection_file, PROBE_S))
        except Exception as error:
            logger.warning("the hub does not answer: %s", first_line(error))
            if thorough:
                self._tell(None)
        finally:
            self._asking = False

    def _is_gone(self, ours: Collection[str]) -> bool:
        """Tell whether the hub has stopped answering, or is another one."""
        engines = registered_engines(self._address)
        self._missing = self._missing + 1 if engines is None else 0
        # A client whose controller was started anew may have missed all who registered since.
        theirs = set() if engines is None else set(engines.values())
        other = engines is not None and bool(ours or theirs) and theirs.isdisjoint(ours)
        self._other = self._other + 1 if other else 0
        return self._missing >= MISSING or self._other >= OTHER
