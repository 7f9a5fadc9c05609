"""Factories that give no evaluator."""

import bluepyopt.evaluators


def create() -> dict[str, str]:
    """Return something else."""
    return {"this": "is no evaluator"}


def without_parameters() -> bluepyopt.evaluators.Evaluator:
    """Return an evaluator that has nothing to vary."""
    return bluepyopt.evaluators.Evaluator(objectives=[], params=[])


def leaves() -> None:
    """Do what a script does that was not meant to be imported."""
    raise SystemExit("usage: evaluator.py CONFIG")
