"""A stop that loses nothing: what engines have begun is finished and kept, nothing else begins.

Asked for by SIGUSR1 (which Slurm sends some time before a job's limit), by SIGTERM, by a
connection or terminal that is lost, and by the clock of ``--stop-after``. What has begun may
take so long and no longer; then the run is left as Ctrl-C leaves it. A thread keeps that limit,
wherever the run is: it interrupts the main thread by a signal. The process's one alarm is left
to whoever else wants it.
"""

from __future__ import annotations

import _thread
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from neurofleet import streams
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
        self.runs = 0
        self.timer: threading.Timer | None = None


_stop = _Stop()


def listen() -> None:
    """Have the signals that ask for a stop handled, from now on; in the main thread."""
    signal.signal(signal.SIGUSR1, _asked_to_stop)
    signal.signal(signal.SIGTERM, _terminated)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # not after nohup
        signal.signal(signal.SIGHUP, _hung_up)


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Have these signals handled while a block lasts; for what a person's program calls.

    A program that handles one itself goes on doing so. Outside of the main thread, where
    Python lets nobody handle a signal, nothing changes.
    """
    ours = {
        signal.SIGUSR1: _asked_to_stop,
        signal.SIGTERM: _terminated,
        signal.SIGHUP: _hung_up,
    }
    handled = []
    try:
        if threading.current_thread() is threading.main_thread():
            for number, handler in ours.items():
                if signal.getsignal(number) is signal.SIG_DFL:
                    signal.signal(number, handler)
                    handled.append(number)
        yield
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)
        if handled and _stop.timer is not None:
            _stop.timer.cancel()


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
        _set_timer(seconds, ask)


def ask() -> None:
    """Have the run that is under way stop, within the limit."""
    if not _stop.asked:
        _begin(_stop.limit_s)


def unheard() -> bool:
    """Ask for a stop because nobody sees any more what is said: the connection is lost.

    Returns
    -------
    bool
        Whether there is something to stop: a run, or engines that have work.
    """
    under_way = _stop.runs + _stop.working > 0
    if under_way and not _stop.asked:
        _stop.for_good = True
        _begin(_stop.limit_s)
    return under_way


def asked() -> bool:
    """Tell whether to begin nothing more."""
    return _stop.asked


@contextlib.contextmanager
def running() -> Iterator[None]:
    """Say that a run is under way, which goes to a safe point when nobody hears it any more."""
    _stop.runs += 1
    try:
        yield
    finally:
        _stop.runs -= 1


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
    if _is_listening():
        stop = _stop
        _set_timer(limit_s, lambda: _limit_reached(stop))


def _is_listening() -> bool:
    return signal.getsignal(signal.SIGTERM) is _terminated


def _set_timer(seconds: float, call: Callable[[], None]) -> None:
    if _stop.timer is not None:
        _stop.timer.cancel()
    _stop.timer = threading.Timer(seconds, call)
    _stop.timer.daemon = True
    _stop.timer.start()


def _limit_reached(stop: _Stop) -> None:
    """End what the main thread does; called in another one."""
    if stop is not _stop:
        return
    main = threading.main_thread().ident
    if _is_listening() and main is not None:
        signal.pthread_kill(main, signal.SIGTERM)  # ends what it waits for, too
    else:
        _thread.interrupt_main()


def _asked_to_stop(_number: int, _frame: FrameType | None) -> None:
    ask()


def _hung_up(_number: int, _frame: FrameType | None) -> None:
    streams.leave_terminal()
    if not unheard():
        raise KeyboardInterrupt


def _terminated(_number: int, _frame: FrameType | None) -> None:
    if _stop.asked or not _stop.working:
        raise KeyboardInterrupt
    _stop.for_good = True
    _begin(min(TERM_LIMIT_S, _stop.limit_s))
