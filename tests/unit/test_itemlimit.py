"""How long an item may take: said by a person, or measured."""

from __future__ import annotations

from typing import Any

import pytest

from neurofleet.errors import UsageError
from neurofleet.itemlimit import ItemLimit


@pytest.mark.parametrize(
    "limit",
    [0, -1, float("inf"), float("-inf"), float("nan"), True, "0", "-1", "inf", "nan", "banana",
     "1_0", "\uff11\uff10", "", "1e999"],
)  # fmt: skip
def test_limit_that_is_no_time_is_refused_in_words(limit: Any) -> None:
    with pytest.raises(UsageError, match="must be a number of seconds above 0"):
        ItemLimit(limit)


@pytest.mark.parametrize(
    ("limit", "seconds"), [(5, 5.0), (0.5, 0.5), ("2.5", 2.5), ("1e3", 1000.0), ("none", None)]
)
def test_limit_that_a_person_gives_stays(limit: float | str, seconds: float | None) -> None:
    found = ItemLimit(limit)
    found.ended(1000.0)
    assert found.now_s == seconds
    assert not found.deserves_more(seconds)


def test_limit_follows_the_longest_item_that_ended() -> None:
    limit = ItemLimit()
    assert limit.now_s == 600
    limit.ended(1.0)
    assert limit.now_s == 120
    limit.ended(30.0)
    limit.ended(2.0)
    assert limit.now_s == 600


def test_limit_while_no_item_has_ended_is_doubled_up_to_a_day() -> None:
    limit = ItemLimit()
    had = []
    while True:
        had.append(limit.now_s)
        if not limit.deserves_more(had[-1]):
            break
    assert had[:3] == [600, 1200, 2400]
    assert had[-1] == 86400


def test_item_that_reached_a_guess_is_judged_by_those_that_ended_meanwhile() -> None:
    limit = ItemLimit()
    assert limit.deserves_more(600.0)
    limit.ended(100.0)
    assert limit.now_s == 2000
    assert limit.deserves_more(600.0)
    assert not limit.deserves_more(2000.0)
