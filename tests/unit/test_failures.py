"""Units that fail: said in a line, once, and stopped for where nothing else can come of them."""

from __future__ import annotations

import pytest

from neurofleet.engine.outcome import Outcome
from neurofleet.errors import WorkloadFailed
from neurofleet.failures import in_short, nothing_works, refuse_always_failing

NAMES, PENALTIES = ("a", "b"), (250.0, 250.0)
RAISES = "RuntimeError: Unknown feature name: AP_amplitud (my_evaluator.py, line 7)"


def outcome(status: str, reason: str = "", scores: tuple[float, ...] = (1.0, 2.0)) -> Outcome:
    return Outcome(status, scores, reason, 1.0, 1.0, "here", 1)


def failing_a(score_b: float = 2.0) -> Outcome:
    return outcome("raised", f"objective a: {RAISES}", (250.0, score_b))


FINE = outcome("ok")
BOTH = outcome("raised", f"objective a: {RAISES}; objective b: KeyError: 'v'", (250.0, 250.0))
CRASHED = outcome("crashed", "the simulation's process was ended by SIGSEGV", (250.0, 250.0))
NOTHING = outcome(
    "raised", "objective a: nothing was recorded (TypeError: 'NoneType' ...)", (250.0, 2.0)
)
#: As eFEL has it: a recording that is not there, or has no spikes, scores the penalty.
PENALTY = outcome("ok", "", (250.0, 2.0))
WHOLE = outcome("raised", "OSError: no such file (my_protocol.py, line 3)", (250.0, 250.0))


@pytest.mark.parametrize(
    ("outcomes", "words"),
    [
        ([failing_a(), failing_a()], rf"^objective a raises for every .*: {RAISES[:30]}"),
        ([failing_a(), BOTH], "^objective a raises"),
        ([BOTH, BOTH], r"^objective a raises .*\(so do b\): RuntimeError"),
        ([failing_a(), PENALTY], "^objective a raises"),
        ([failing_a(), failing_a(), CRASHED], "^objective a raises"),
        ([WHOLE, WHOLE], "^unit Step raises .*: OSError: no such file"),
    ],
    ids=["a", "a-and-b-once", "both", "beside-penalties", "beside-a-crash", "whole-unit"],
)
def test_objective_that_raises_for_every_individual_is_named_with_its_cause(
    outcomes: list[Outcome], words: str
) -> None:
    with pytest.raises(WorkloadFailed, match=words) as told:
        refuse_always_failing("Step", NAMES, PENALTIES, outcomes)
    assert "--allow-failing" in told.value.remedy


@pytest.mark.parametrize(
    "outcomes",
    [
        [FINE, FINE],
        [failing_a(), FINE],
        [PENALTY, PENALTY],
        [NOTHING, NOTHING],
        [NOTHING, PENALTY],
        [CRASHED, CRASHED],
        [failing_a(), CRASHED, PENALTY],
        [WHOLE, FINE],
        [WHOLE, CRASHED],
        [],
    ],
    ids=["fine", "one-fine", "penalties", "nothing-recorded", "nothing-recorded-2", "crashes",
         "too-few", "one-unit-fine", "raised-and-crashed", "none"],
)  # fmt: skip
def test_objective_that_may_be_sound_does_not_stop_a_run(outcomes: list[Outcome]) -> None:
    refuse_always_failing("Step", NAMES, PENALTIES, outcomes)


def test_failure_in_short_has_each_part_once() -> None:
    assert in_short(WHOLE) == WHOLE.reason
    assert in_short(CRASHED) == "crashed, the simulation's process was ended by SIGSEGV"
    assert in_short(BOTH) == f"objective a: {RAISES} (and 1 more objective)"
    debugging = outcome("raised", f"{RAISES}\nTraceback (most recent call last):\n  File")
    assert in_short(debugging) == RAISES


def test_nothing_works_names_one_cause_and_counts_the_others() -> None:
    told = str(nothing_works([WHOLE, WHOLE, CRASHED, WHOLE]))
    assert told.count(WHOLE.reason) == 1
    assert "(and 1 other cause)" in told
