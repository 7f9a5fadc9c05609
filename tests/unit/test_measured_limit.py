"""A limit follows what was measured, also while nothing was."""

from __future__ import annotations

import itertools

from neurofleet.measured_limit import FIRST_S, MOST_FIRST_S, MeasuredLimit


def test_limit_before_anything_ended_is_moderate_and_then_follows_the_longest() -> None:
    limits = MeasuredLimit(factor=20.0, least_s=120.0)
    assert limits.limit_s("Step1") == FIRST_S < MOST_FIRST_S
    limits.ended("Step1", 1.0)
    assert limits.limit_s("Step1") == 120.0
    limits.ended("Step1", 50.0)
    limits.ended("Step1", 2.0)
    assert limits.limit_s("Step1") == 1000.0
    assert limits.limit_s("bAP") == FIRST_S, "each kind has its own"


def test_limit_reached_after_others_ended_is_final() -> None:
    limits = MeasuredLimit()
    begun_with = limits.limit_s("Step1")
    limits.ended("Step1", 0.5)
    assert not limits.timed_out("Step1", begun_with)


def test_limit_reached_before_others_turned_out_slower_is_tried_again() -> None:
    limits = MeasuredLimit()
    limits.ended("Step1", 1.0)
    begun_with = limits.limit_s("Step1")
    limits.ended("Step1", 100.0)
    assert limits.timed_out("Step1", begun_with)
    assert limits.limit_s("Step1") == 2000.0


def test_limit_reached_while_nothing_ends_is_doubled_up_to_an_end() -> None:
    limits = MeasuredLimit()
    tried = [FIRST_S]
    while limits.timed_out("Step1", tried[-1]):
        tried.append(limits.limit_s("Step1"))
    assert all(
        later == min(2 * earlier, MOST_FIRST_S) for earlier, later in itertools.pairwise(tried)
    )
    assert tried[-1] == MOST_FIRST_S
    assert limits.limit_s("Step1") == MOST_FIRST_S


def test_limit_doubled_by_one_is_the_next_ones_and_not_doubled_again_by_those_before() -> None:
    limits = MeasuredLimit()
    assert limits.timed_out("Step1", FIRST_S)
    assert limits.timed_out("Step1", FIRST_S), "it began with the shorter one"
    assert limits.limit_s("Step1") == 2 * FIRST_S


def test_limit_of_a_least_above_the_first_is_no_shorter() -> None:
    assert MeasuredLimit(least_s=7200.0).limit_s("Step1") == 7200.0
