"""The engine's guard: a thread that notices that the hub has forgotten this engine.

An engine whose controller was started anew, or that was stopped for a while, is alive
and will never be given work again; ipyparallel leaves it so. The guard asks the hub, and
when the hub has said three times that it does not know this engine the process ends with
exit code 75 (a temporary failure), to be started anew by systemd. No answer is not a no:
a hub that is gone is the heartbeat's business.

Started inside the engine by ``IPEngine.startup_command``. An engine that was killed is
not able to tell the hub; systemd then runs, in its place,

    python -m neurofleet.engine.guard

so that its work is given to others at once, not when its heartbeat has been missed.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from neurofleet.hub import HubAddress, registered_engines, unregister_engine

#: How often the hub is asked, and how soon again after a no [s].
ASK_EVERY_S = 8.0
AGAIN_S = 1.0
#: So many noes in a row, and the engine leaves.
NOES = 3
#: What ipykernel, through which output goes, needs to write the last line [s].
ECHO_S = 0.5
#: Exit code of an engine that leaves (sysexits: temporary failure).
FORGOTTEN = 75


def start() -> None:
    """Guard the engine that this process is."""
    from ipykernel.kernelapp import IPKernelApp

    engine: Any = IPKernelApp.instance().parent
    address = HubAddress.from_connection(engine.connection_info)

    def leave() -> None:
        engine.log.critical("the hub does not know this engine: leaving, to be started anew")
        note.unlink(missing_ok=True)
        time.sleep(ECHO_S)
        os._exit(FORGOTTEN)

    note = _note()
    with contextlib.suppress(OSError):  # then only a killed engine is noticed later
        note.write_text(json.dumps({"engine": engine.id, "file": engine.url_file}))
    atexit.register(say_goodbye)
    threading.Thread(
        target=watch,
        args=(engine.ident, lambda: registered_engines(address), leave),
        name="guard",
        daemon=True,
    ).start()


def watch(
    name: str,
    ask: Callable[[], Mapping[int, str] | None],
    leave: Callable[[], None],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Ask until the hub has forgotten the engine, then leave.

    Parameters
    ----------
    name : str
        The engine's name (its UUID; numbers are given out again after a restart).
    ask : callable
        The hub's registered engines, ``None`` if it does not answer.
    leave : callable
    sleep : callable
    """
    noes = 0
    while noes < NOES:
        sleep(AGAIN_S if noes else ASK_EVERY_S)
        engines = ask()
        if engines is not None:
            noes = 0 if name in engines.values() else noes + 1
    leave()


def say_goodbye() -> None:
    """Tell the hub that this service's engine has ended, unless that has been done."""
    note = _note()
    # The nanny would, but systemd ends it as soon as the engine has ended.
    with contextlib.suppress(Exception):
        left = json.loads(note.read_text())
        note.unlink()
        unregister_engine(HubAddress.from_file(Path(left["file"])), left["engine"])


def _note() -> Path:
    """Return where the engine's number is written down while it runs."""
    return Path(os.environ.get("RUNTIME_DIRECTORY", ".")) / f"neurofleet-engine-{_service()}.json"


def _service() -> str:
    # The same for the engine and for what systemd runs after it.
    return os.environ.get("INVOCATION_ID") or str(os.getpid())


if __name__ == "__main__":
    say_goodbye()
