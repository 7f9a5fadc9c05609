"""A thousand damaged or hostile inputs at least; comes after the files that give them."""

from __future__ import annotations

from unit.hostile import (
    test_arguments,
    test_bundles,
    test_checkpoints,
    test_json_files,
    test_run_directories,
    test_stores,
)
from unit.hostile.inputs import GIVEN, WANTED

FILES = (
    test_arguments,
    test_bundles,
    test_checkpoints,
    test_json_files,
    test_run_directories,
    test_stores,
)


def test_inputs_are_a_thousand_at_least() -> None:
    assert len(FILES) == 6
    assert sum(WANTED.values()) >= 1000


def test_every_kind_that_ran_was_given_all_its_inputs() -> None:
    assert {kind: GIVEN[kind] for kind in GIVEN if GIVEN[kind] < WANTED[kind]} == {}
