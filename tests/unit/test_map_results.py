"""The lines of results.jsonl, and names that are made of what people call things."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurofleet.batches import Result
from neurofleet.engine.job_content import Ended
from neurofleet.items_wanted import PENDING, Outcome
from neurofleet.plain_names import plain_name
from neurofleet.workloads.map_results import results_text


def returned(value: Any) -> Result:
    """A result as an engine sends it: Python's JSON, which has more than JSON."""
    return Result(Ended("ok", pickle.dumps(json.dumps(value))), "host", 1)


def lines(outcome: Outcome) -> list[dict[str, Any]]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    text = results_text(outcome).text
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_results_that_are_not_finite_are_null_named_and_counted() -> None:
    value = {"a/b": [1.5, float("nan")], "c": float("-inf"), "NaN": "Infinity"}
    outcome = Outcome((returned(float("inf")), returned(value), returned("NaN")), 3, 0)
    assert lines(outcome) == [
        {"result": None, "not_finite": {"": "inf"}},
        {
            "result": {"a/b": [1.5, None], "c": None, "NaN": "Infinity"},
            "not_finite": {"/a~1b/1": "nan", "/c": "-inf"},
        },
        {"result": "NaN"},
    ]
    written = results_text(outcome)
    assert (written.not_finite, written.with_not_finite) == (3, 2)


def test_results_say_what_failed_what_is_missing_and_what_was_left_behind() -> None:
    failed = Result(Ended("raised", reason='ValueError: "no" (mine.py, line 3)'), "host", 1)
    pending = Result(Ended(PENDING), "", 0)
    outcome = Outcome(
        (returned(1), failed, pending), 2, 0, (1, 1, 0), left_behind={1: ("large.dat",)}
    )
    assert lines(outcome) == [
        {"result": 1},
        {"error": 'ValueError: "no" (mine.py, line 3)', "left_behind": ["large.dat"]},
        {"pending": True},
    ]
    assert (outcome.failed, outcome.pending) == ([1], [2])


def test_results_of_several_codes_say_of_which() -> None:
    outcome = Outcome((returned(1), returned(2)), 1, 1, (1, 2), several_codes=True)
    assert lines(outcome) == [{"result": 1, "code": 1}, {"result": 2, "code": 2}]


@pytest.mark.parametrize("name", ["items", "my-cells.v2", "a_b", "größe", "a+b@c"])
def test_name_that_is_plain_stays(name: str) -> None:
    assert plain_name(name) == name


@given(st.text(max_size=300), st.text(max_size=300))
def test_name_is_one_part_of_a_path_and_no_other_texts(text: str, other: str) -> None:
    name = plain_name(text)
    assert name
    assert name not in (".", "..")
    assert not set(name) & set("/\0\n ")
    assert not name.startswith((".", "-"))
    assert len(name.encode()) < 130
    assert (plain_name(other) == name) == (other == text)
