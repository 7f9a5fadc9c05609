"""Errors say what is wrong and what to do, in one line, wherever they travel."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from neurofleet import errors
from unit.support import assert_refused, command

EXIT_CODES = {
    errors.WorkloadFailed: 1,
    errors.UsageError: 2,
    errors.ModelError: 2,
    errors.RunDirectoryError: 2,
    errors.EnginesUnreachable: 3,
    errors.TooFewEngines: 4,
    errors.Interrupted: 130,
}


@pytest.mark.parametrize(("kind", "code"), EXIT_CODES.items())
def test_error_of_each_kind_has_the_documented_exit_code(
    kind: type[errors.FleetError], code: int
) -> None:
    assert kind("this", remedy="that").exit_code == code


def test_errors_all_kinds_are_listed_with_their_code() -> None:
    found = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.FleetError)
    }
    assert found - {errors.FleetError} == EXIT_CODES.keys()


def test_error_of_several_lines_is_told_in_one() -> None:
    told = str(errors.ModelError("a\n  b\r\n\tc", remedy="do\nthis"))
    assert told == "a b c. do this."


def test_error_without_remedy_ends_in_one_full_stop() -> None:
    assert str(errors.ModelError("it is broken", remedy="")) == "it is broken."


@pytest.mark.parametrize("kind", EXIT_CODES)
def test_error_pickled_comes_back_whole(kind: type[errors.FleetError]) -> None:
    back = pickle.loads(pickle.dumps(kind("what", remedy="how")))
    assert (type(back), back.what, back.remedy, str(back)) == (kind, "what", "how", "what. how.")


def test_refusal_shows_its_traceback_to_who_asks_for_it(tmp_path: Path) -> None:
    words = ("map", "absent:f", "items.jsonl")
    (tmp_path / "items.jsonl").write_text("1\n")
    plain = command("neurofleet", *words, cwd=tmp_path)
    assert_refused(plain, 2, "absent")
    told = command("neurofleet", *words, cwd=tmp_path, env={"NEUROFLEET_DEBUG": "1"})
    assert told.returncode == 2
    assert "ModuleNotFoundError" in told.stderr
    assert "direct cause" in told.stderr
    assert told.stderr.splitlines()[-1] == plain.stderr.strip()
