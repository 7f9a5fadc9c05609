"""Two conflicting distances in the plane, and one term that couples them. No simulator."""

import math
from collections.abc import Sequence

import bluepyopt


class Distances(bluepyopt.evaluators.Evaluator):
    """Scores a point by its distances to two others."""

    def __init__(self) -> None:
        super().__init__(
            objectives=[bluepyopt.objectives.Objective(name) for name in ("left", "right", "wave")],
            params=[
                bluepyopt.parameters.Parameter("x", bounds=(-2.0, 2.0)),
                bluepyopt.parameters.Parameter("y", bounds=(-1.0, 3.0)),
            ],
        )

    def evaluate_with_lists(self, params: Sequence[float]) -> list[float]:
        """Return the three scores of a point."""
        x, y = params
        return [math.hypot(x + 1, y), math.hypot(x - 1, y - 1), math.sin(x * y) ** 2]


def create() -> Distances:
    """Return the evaluator."""
    return Distances()
