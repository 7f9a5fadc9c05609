"""A fork's answer and its prints reach the parent whatever the fork does, within the limit."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable

import pytest

from neurofleet.engine.inbox import Inbox

pytestmark = pytest.mark.timeout(60)


def heard(
    work: Callable[[Inbox], None], limit_s: float = 20.0, engine_gone: bool = False
) -> tuple[str, object, str]:
    """Run a fork and return how it ended, what it told, and its last words."""
    ours, theirs = multiprocessing.Pipe()
    box = Inbox(ours)
    child = os.fork()
    if child == 0:
        try:
            theirs.close()
            box.take_output()
            work(box)
        finally:
            os._exit(0)
    if engine_gone:
        theirs.close()
    try:
        came = box.wait(child, limit_s)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        box.close()
        ours.close()
    return came, box.told() if came == "whole" else None, box.last_words()


def test_inbox_of_a_large_answer_has_all_of_it() -> None:
    told = ("ok", "x" * 3_000_000, "", "")
    assert heard(lambda box: box.send(told))[:2] == ("whole", told)


def test_inbox_of_an_answer_that_is_cut_off_in_the_middle_says_ended() -> None:
    def cut(box: Inbox) -> None:
        os.write(box._to_answer, (10_000).to_bytes(8, "big") + b"x" * 100)

    assert heard(cut)[0] == "ended"


def test_inbox_of_an_answer_that_stops_in_the_middle_ends_at_the_limit() -> None:
    def stop(box: Inbox) -> None:
        os.write(box._to_answer, (10_000).to_bytes(8, "big") + b"x" * 100)
        signal.pause()

    started = time.monotonic()
    assert heard(stop, limit_s=0.3)[0] == "timeout"
    assert time.monotonic() - started < 10


def test_inbox_of_a_fork_that_prints_without_end_is_not_blocked_and_keeps_the_end() -> None:
    def chatter(box: Inbox) -> None:
        for _ in range(2000):
            os.write(1, b"y" * 1000)
        os.write(2, b" and so to bed\n")
        box.send(("ok", 1, "", ""))

    came, told, words = heard(chatter)
    assert (came, told) == ("whole", ("ok", 1, "", ""))
    assert words.endswith("and so to bed")
    assert len(words) < 700


def test_inbox_of_a_fork_whose_child_holds_the_pipes_says_that_it_ended() -> None:
    def crash(_box: Inbox) -> None:
        if os.fork() == 0:
            time.sleep(5)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)

    started = time.monotonic()
    assert heard(crash)[0] == "ended"
    assert time.monotonic() - started < 4


def test_inbox_says_that_the_engine_is_gone() -> None:
    assert heard(lambda _box: signal.pause(), engine_gone=True)[0] == "engine"
