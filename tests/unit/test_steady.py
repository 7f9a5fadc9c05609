"""The controller's heartbeats when the clock is set."""

from __future__ import annotations

import time

import pytest
from tornado.ioloop import IOLoop, PeriodicCallback

from neurofleet.controller import steady


@pytest.mark.parametrize("jump_s", [-3600.0, 3600.0])
def test_periodic_callback_goes_on_when_the_clock_jumps(
    monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    jumped_s = 0.0
    monkeypatch.setattr(IOLoop, "time", lambda _loop: time.monotonic() + jumped_s)
    monkeypatch.setattr(PeriodicCallback, "_update_next", PeriodicCallback._update_next)
    steady.install()
    calls = 0
    loop = IOLoop(make_current=False)

    def beat() -> None:
        nonlocal calls, jumped_s
        calls += 1
        if calls == 3:
            jumped_s = jump_s
        if calls == 6:
            loop.stop()

    async def begin() -> None:
        PeriodicCallback(beat, 20).start()

    loop.add_callback(begin)
    loop.call_later(20, loop.stop)
    loop.start()
    loop.close(all_fds=True)
    assert calls == 6
