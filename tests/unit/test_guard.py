"""The engine's guard and the controller's watch, with a hub that is a list of answers."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest

from neurofleet.controller import app
from neurofleet.engine import guard

Answer = dict[int, str] | None
KNOWN: Answer = {3: "mine", 4: "another"}
FORGOTTEN: Answer = {3: "another"}


class OutOfAnswers(Exception):
    pass


def _answers(given: Iterable[Answer]) -> Callable[[], Answer]:
    rest = iter(given)

    def ask() -> Answer:
        try:
            return next(rest)
        except StopIteration:
            raise OutOfAnswers from None

    return ask


def _leaves(answers: list[Answer]) -> bool:
    left: list[bool] = []
    try:
        guard.watch("mine", _answers(answers), lambda: left.append(True), lambda _: None)
    except OutOfAnswers:
        assert not left
    return bool(left)


@pytest.mark.parametrize(
    ("answers", "leaves"),
    [
        ([KNOWN] * 20, False),
        ([FORGOTTEN] * 2, False),
        ([FORGOTTEN] * 3, True),
        ([{}] * 3, True),
        ([None] * 50, False),
        ([FORGOTTEN, FORGOTTEN, KNOWN] * 5, False),
        ([FORGOTTEN, None, FORGOTTEN, None, FORGOTTEN], True),
        ([KNOWN, None, FORGOTTEN, FORGOTTEN, FORGOTTEN], True),
    ],
)
def test_guard_hub_says_so_three_times_leaves(answers: list[Answer], leaves: bool) -> None:
    assert _leaves(answers) is leaves


def test_guard_after_a_no_asks_again_soon() -> None:
    slept: list[float] = []
    guard.watch("mine", _answers([KNOWN, {}, {}, {}]), lambda: None, slept.append)
    assert slept == [guard.ASK_EVERY_S, guard.ASK_EVERY_S, guard.AGAIN_S, guard.AGAIN_S]


def _child(alive: list[bool]) -> SimpleNamespace:
    looks = iter(alive)
    return SimpleNamespace(is_alive=lambda: next(looks), exitcode=-9)


def test_watch_child_dies_gives_up_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(app, "notify", lambda *lines: told.append(lines[0]))
    children = {"hub": _child([True] * 9), "TaskScheduler": _child([True, True, False])}
    gone: list[tuple[str, int | None]] = []
    app.watch(children, dict, lambda *who: gone.append(who), lambda _: None)
    assert gone == [("TaskScheduler", -9)]
    assert told == ["READY=1"]


def test_watch_hub_silent_is_not_told_to_be_well(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(app, "notify", lambda *lines: told.append(lines[1]))
    looks = 2 * app.ASK_EVERY
    children = {"hub": _child([True] * looks + [False])}
    answers = _answers([None, None, {0: "a"}, *[None] * looks])
    app.watch(children, answers, lambda *_: None, lambda _: None)
    assert told == ["WATCHDOG=1"]


@pytest.mark.parametrize(
    ("message", "args", "news"),
    [
        ("client::client %r connected", (b"x",), False),
        ("client::client %r requested %r", (b"x", "connection_request"), False),
        ("task::task %r finished on %s", ("x", 1), False),
        ("Monitor message without topic: %r", (["iopub_welcome"],), False),
        ("Monitor message without topic: %r", (["else"],), True),
        ("client::client %r requested %r", (b"x", "registration_request"), True),
        ("registration::finished registering engine %s:%s", (1, "u"), True),
        ("heartbeat::missed %s", (1,), True),
    ],
)
def test_is_news_routine_questions_are_left_out(
    message: str, args: tuple[object, ...], news: bool
) -> None:
    record = logging.LogRecord("ipcontroller", logging.INFO, "f", 1, message, args, None)
    assert app.is_news(record) is news


def test_say_goodbye_killed_engine_is_unregistered_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = {
        "interface": "tcp://192.0.2.1",
        "location": "192.0.2.1",
        "pack": "json",
        "unpack": "json",
        "registration": 24100,
        "key": "k",
        "signature_scheme": "hmac-sha256",
    }
    (tmp_path / "engine.json").write_text(json.dumps(connection))
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("INVOCATION_ID", "abc")
    told: list[tuple[str, int]] = []
    monkeypatch.setattr(
        guard, "unregister_engine", lambda hub, engine: told.append((hub.url, engine))
    )
    note = tmp_path / "neurofleet-engine-abc.json"
    note.write_text(json.dumps({"engine": 5, "file": str(tmp_path / "engine.json")}))
    guard.say_goodbye()
    guard.say_goodbye()
    assert told == [("tcp://192.0.2.1:24100", 5)]
    assert not note.exists()
