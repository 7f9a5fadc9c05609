"""A stop that loses nothing: what engines have begun is finished and kept, nothing else begins.

Asked for by SIGUSR1 (which Slurm sends some time before a job's limit), by SIGTERM, and by
the clock of ``--stop-after``. What has begun may take so long and no longer; then the run
is left as Ctrl-C leaves it. A timer of the system keeps that limit, wherever the run is.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from neurofleet.errors import FleetError, Interrupted, TooFewEngines

#: What had begun may take so long, unless ``--stop-within`` says otherwise [s].
LIMIT_S = 120.0
#: The same after SIGTERM: who sends it sends SIGKILL soon [s].
TERM_LIMIT_S = 8.0


class _Stop:
    """Whether a stop was asked for, and how long it may take."""

    def __init__(self) -> None:
        self.asked = False
        self.for_good = False
        self.limit_s = LIMIT_S
        self.working = 0


_stop = _Stop()


def listen() -> None:
    """Have the signals that ask for a stop handled; in the main thread."""
    signal.signal(signal.SIGUSR1, lambda _number, _frame: ask())
    signal.signal(signal.SIGTERM, _terminated)
    signal.signal(signal.SIGALRM, _timer_ended)


def stop_after(seconds: float | None, limit_s: float) -> None:
    """Ask for a stop when so much time has passed.

    Parameters
    ----------
    seconds : float or None
        From now [s]; ``None`` is never.
    limit_s : float
        How long what has begun by then may take [s].
    """
    _stop.limit_s = limit_s
    if seconds is not None:
        signal.setitimer(signal.ITIMER_REAL, seconds)


def ask() -> None:
    """Have the run that is under way stop, within the limit."""
    if not _stop.asked:
        _begin(_stop.limit_s)


def asked() -> bool:
    """Tell whether to begin nothing more."""
    return _stop.asked


@contextlib.contextmanager
def working() -> Iterator[None]:
    """Say that engines have work, which SIGTERM may let them finish."""
    _stop.working += 1
    try:
        yield
    finally:
        _stop.working -= 1


def reached(finished: int = 1) -> FleetError:
    """Return what a run raises when it has stopped.

    Parameters
    ----------
    finished : int
        Tasks that have ended since the run began. With none, going on by itself would go
        on for ever, so that is another error; unless it was ended for good.
    """
    if finished or _stop.for_good:
        return Interrupted(
            "stopped at a safe point; all that engines had begun is finished and kept",
            remedy="Run the same command again to go on",
        )
    return TooFewEngines(
        "nothing could be finished before the stop that was asked for",
        remedy="Give more time; engines need some of it to start",
    )


def _begin(limit_s: float) -> None:
    _stop.asked = True
    if signal.getsignal(signal.SIGALRM) is _timer_ended:
        signal.setitimer(signal.ITIMER_REAL, limit_s)


def _terminated(_number: int, _frame: FrameType | None) -> None:
    if _stop.asked or not _stop.working:
        raise KeyboardInterrupt
    _stop.for_good = True
    _begin(min(TERM_LIMIT_S, _stop.limit_s))


def _timer_ended(_number: int, _frame: FrameType | None) -> None:
    if _stop.asked:
        raise KeyboardInterrupt
    ask()
