"""Heartbeats that a clock which is set back does not stop.

Tornado's periodic callbacks follow the time of day. When that jumps back by an hour, the next
callback comes after an hour: the controller sends no heartbeat until then, engines leave because
they hear none, and none that comes can register.
"""

from __future__ import annotations

from tornado.ioloop import PeriodicCallback

_update_next = PeriodicCallback._update_next


def install() -> None:
    """Have all periodic callbacks of this process, and of its forks, come within their period."""
    PeriodicCallback._update_next = _next_within_a_period  # type: ignore[assignment, method-assign]


def _next_within_a_period(callback: PeriodicCallback, now: float) -> None:
    _update_next(callback, now)
    callback._next_timeout = min(callback._next_timeout, now + callback.callback_time / 1000)
