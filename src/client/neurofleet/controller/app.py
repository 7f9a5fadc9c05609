"""``ipcontroller`` as a service: it says when it is ready, and ends when a part of it died.

    python -m neurofleet.controller.app --profile-dir=DIR

ipyparallel's controller is a main process, the hub, and eight children. When one of them
dies the rest goes on, and what went through the dead one hangs. Here a thread looks at
all of them and asks the hub over the network, as an engine would. Told by it, systemd
starts the whole anew: same keys, same ports.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import zmq
from ipyparallel.controller.app import IPController

from neurofleet.controller import steady
from neurofleet.hub import HubAddress, registered_engines
from neurofleet.systemd import notify

#: How often children are looked at [s], and at every which look the hub is asked.
LOOK_EVERY_S = 2.0
ASK_EVERY = 5
#: Exit code when a child died (sysexits: an internal software error).
CHILD_DIED = 70
#: The largest part of a message to the hub itself [bytes]; a client that asks for a million
#: tasks by name sends 40 MB. Tasks and results have other ports.
LARGEST_QUESTION = 64 * 2**20


class FleetController(IPController):  # type: ignore[misc]
    """The controller, watched."""

    name = "ipcontroller"
    _stopping = False

    def initialize(self, argv: list[str] | None = None) -> None:
        """Set up, with daily work left out of the log, and before there are children."""
        steady.install()
        self.log.addFilter(is_news)
        super().initialize(argv)

    def start(self) -> None:
        """Run until told to stop, or until the watch ends the process."""
        self.loop.add_callback(self._begin_to_watch)  # when the loop runs, the children do
        super().start()

    def bind(self, socket: Any, url: str) -> None:
        """Bind a socket; whoever sends the hub more than it can be asked is cut off unread.

        The hub is one thread: reading and checking a few hundred megabytes would keep it from
        answering for longer than the watch waits.
        """
        if url in (self.client_url("registration"), self.engine_url("registration")):
            socket.setsockopt(zmq.MAXMSGSIZE, LARGEST_QUESTION)
        super().bind(socket, url)

    def handle_signal(self, sig: int, frame: Any) -> None:
        """Stop in an orderly way; children that end now are no surprise."""
        self._stopping = True
        notify("STOPPING=1")
        super().handle_signal(sig, frame)

    def _begin_to_watch(self) -> None:
        address = HubAddress.from_connection(
            {"curve_serverkey": self.curve_publickey.decode(), **self.client_info}
        )
        processes = {
            child.name: getattr(child, "launcher", child)
            for child in [*self.children, self.heartmonitor_process]
        }
        assert len(processes) == len(self.children) + 1, "two children have the same name"
        threading.Thread(
            target=watch,
            args=(processes, lambda: registered_engines(address), self._give_up),
            name="watch",
            daemon=True,
        ).start()

    def _give_up(self, name: str, exit_code: int | None) -> None:
        if self._stopping:
            return
        self.log.critical(
            "%s, a child of the controller, ended (code %s): leaving, to be started anew",
            name,
            exit_code,
        )
        sys.stderr.flush()
        os._exit(CHILD_DIED)


def watch(
    processes: Mapping[str, Any],
    ask: Callable[[], Mapping[int, str] | None],
    give_up: Callable[[str, int | None], None],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Look at the children, ask the hub, and tell systemd of both. Returns if one died.

    Parameters
    ----------
    processes : mapping
        The children, ``multiprocessing.Process``, by name.
    ask : callable
        The hub's registered engines, ``None`` if it does not answer.
    give_up : callable
        Called with the name and exit code of a child that died.
    sleep : callable
    """
    ready, look = False, 0
    while True:
        for name, process in processes.items():
            if not process.is_alive():
                give_up(name, process.exitcode)
                return
        if look % ASK_EVERY == 0 or not ready:
            engines = ask()
            if engines is not None:
                ready = True
                notify("READY=1", "WATCHDOG=1", f"STATUS={len(engines)} engines registered")
        look += 1
        sleep(LOOK_EVERY_S)


def is_news(record: logging.LogRecord) -> bool:
    """Tell whether a line of the controller's log is more than daily work."""
    text = record.getMessage()
    if record.levelno <= logging.INFO and text.startswith(("queue::", "task::task ")):
        return False
    if text.startswith("client::client ") and text.endswith(("connected", "'connection_request'")):
        return False
    # IPython wants the directory of the connection files to be the controller's alone.
    if text.startswith("Could not set permissions on "):
        return False
    # ipykernel 7 greets every subscriber, and ipyparallel's monitor does not expect it.
    return not ("without topic" in text and "iopub_welcome" in text)


if __name__ == "__main__":
    FleetController.launch_instance()
