"""Batches of items: engines that may have them, and items that reach a limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from neurofleet import __version__
from neurofleet.batches import JobPreparation, Result, python_version, run_items
from neurofleet.engine import job as on_engine
from neurofleet.engine import tasks
from neurofleet.engine.job_content import BatchEnded, Calls, Ended, Place
from neurofleet.errors import WorkloadFailed
from neurofleet.farm import SerialFarm
from neurofleet.itemlimit import ItemLimit
from neurofleet.jobs import Job


class Engine:
    """In an engine's place: items need some time, or more than there is."""

    def __init__(self, need_s: Mapping[int, float]) -> None:
        self.need_s = need_s
        self.limits: list[tuple[int, float | None]] = []

    def run_batch(
        self, _digest: str, items: Sequence[tuple[int, bytes]], calls: Calls
    ) -> BatchEnded:
        ended, took_s = [], 0.0
        for number, _ in items:
            self.limits.append((number, calls.limit_s))
            need_s = self.need_s[number]
            late = calls.limit_s is not None and need_s > calls.limit_s
            took_s += calls.limit_s if late and calls.limit_s else need_s
            ended.append(Ended("timeout", reason="late") if late else Ended("ok"))
        return BatchEnded(tuple(ended), took_s, "host", 1)


def ran(
    monkeypatch: pytest.MonkeyPatch, need_s: Mapping[int, float], limit: ItemLimit
) -> tuple[dict[int, str], Engine, list[Any]]:
    engine = Engine(need_s)
    monkeypatch.setattr(on_engine, "run_batch", engine.run_batch)
    results: dict[int, Result] = {}
    again: list[Any] = []
    run_items(
        SerialFarm(lambda: None, lambda: None),
        Job.of(abs),
        dict.fromkeys(need_s, b""),
        results.update,
        Calls(),
        limit,
        lambda *told: again.append(told),
    )
    return {n: result.ended.status for n, result in results.items()}, engine, again


def test_item_that_hangs_first_is_judged_by_those_that_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    statuses, engine, again = ran(monkeypatch, {0: 1e9, 1: 1.0, 2: 2.0}, ItemLimit())
    assert statuses == {0: "timeout", 1: "ok", 2: "ok"}
    assert engine.limits == [(0, 600.0), (1, 1200.0), (2, 120.0)]
    assert again == []


def test_item_that_is_slow_and_first_is_tried_again_with_more_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    statuses, engine, again = ran(monkeypatch, {0: 2000.0}, ItemLimit())
    assert statuses == {0: "ok"}
    assert [limit for _, limit in engine.limits] == [600, 1200, 2400]
    assert again == [([0], 600.0, 1200.0), ([0], 1200.0, 2400.0)]


def test_item_is_ended_once_at_the_limit_that_a_person_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    statuses, engine, _ = ran(monkeypatch, {0: 1e9, 1: 1.0}, ItemLimit(30))
    assert statuses == {0: "timeout", 1: "ok"}
    assert engine.limits == [(0, 30.0), (1, 30.0)]


def test_items_have_no_limit_if_a_person_says_none(monkeypatch: pytest.MonkeyPatch) -> None:
    statuses, engine, _ = ran(monkeypatch, {0: 1e9}, ItemLimit("none"))
    assert statuses == {0: "ok"}
    assert engine.limits == [(0, None)]


@pytest.mark.parametrize(
    ("theirs", "says"),
    [({"numpy": "1.0"}, "has numpy 1.0, this machine has 2.1"), ({}, "has no numpy, this machine")],
)
def test_engine_with_other_versions_of_what_the_function_uses_is_left_out(
    theirs: dict[str, str], says: str
) -> None:
    job = replace(Job.of(abs), versions={"numpy": "2.1"})
    preparation = JobPreparation(job)
    assert preparation.request(None) == (tasks.probe, ("numpy",))
    about = {"host": "h", "neurofleet": __version__, "python": python_version()}
    with pytest.raises(WorkloadFailed, match=says):
        preparation.request({**about, "versions": theirs})
    assert preparation.request({**about, "versions": {"numpy": "2.1"}}) is not None


def test_engine_is_asked_for_versions_and_told_where_the_person_works() -> None:
    assert tasks.probe(("numpy", "not-installed-anywhere"))["versions"] == {
        **tasks.probe()["versions"],  # type: ignore[dict-item]
        "numpy": __import__("numpy").__version__,
    }
    place = Place("/home/me", "/home/me/.token", "secret")
    preparation = JobPreparation(Job.of(abs), place)
    about = {"host": "h", "neurofleet": __version__, "python": python_version(), "versions": {}}
    for answer in (about, on_engine.Missing("h")):
        call = preparation.request(answer)
        assert call is not None
        assert call[-1] == place
