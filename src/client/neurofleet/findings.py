"""What a run has found so far: its best individual, and scores that are not finite.

"Best" has one meaning wherever it is shown: the lowest sum of scores of any individual so
far, which is the head of BluePyOpt's hall of fame. A sum that is NaN compares as neither
lower nor higher, so it can hold any place there, and keeps better ones out; where it does,
the best is looked for among all individuals that have a finite sum.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from neurofleet.errors import RunDirectoryError
from neurofleet.store import pack_floats

#: So many of the best individual's objectives are named, the highest scores first.
WORST = 3


class Findings:
    """Follows a run, generation by generation.

    Parameters
    ----------
    objectives : sequence of str
        Names, in the order of an individual's scores.

    Attributes
    ----------
    not_finite : dict
        For each objective that had one, by name: how many individuals have a score in it
        that is NaN or infinite. An individual counts once, however often it comes back.
    individuals : int
        Distinct individuals that have been scored.
    best : list or None
        The best individual, with BluePyOpt's ``fitness``; ``None`` before the first.
    population_min, population_mean : float
        Lowest and mean sum of scores in the last population, among those that are finite;
        NaN if none is.
    unranked, population_size : int
        Individuals of the last population whose sum of scores is not finite, and all.
    """

    def __init__(self, objectives: Sequence[str]) -> None:
        self._objectives = tuple(objectives)
        self._seen: set[bytes] = set()
        self._lowest: Any = None
        self.not_finite: dict[str, int] = {}
        self.best: Any = None
        self.population_min = self.population_mean = math.nan
        self.unranked = self.population_size = 0

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any], objectives: Sequence[str]) -> Findings:
        """Return what a checkpoint's content tells.

        Raises
        ------
        RunDirectoryError
            Something in it is no scored individual.
        """
        found = cls(objectives)
        try:
            found.add_history(checkpoint["history"])
            found.add(checkpoint["population"], checkpoint["halloffame"])
        except Exception as error:  # whatever a pickle of another program's objects raises
            raise RunDirectoryError(
                "the checkpoint lacks individuals with their scores"
                f" ({type(error).__name__}: {error}); it was left as it is",
                remedy="Move it away and run the same command again; the scores are kept",
            ) from error
        return found

    @property
    def individuals(self) -> int:
        """Distinct individuals that have been scored."""
        return len(self._seen)

    @property
    def fitness(self) -> float:
        """The best individual's sum of scores; NaN before the first."""
        return math.nan if self.best is None else float(self.best.fitness.sum)

    def add_history(self, history: Any) -> None:
        """Take in all individuals that BluePyOpt's history has."""
        self._look_at(history.genealogy_history.values())

    def add(self, population: Sequence[Any], halloffame: Sequence[Any]) -> None:
        """Take in a generation.

        Parameters
        ----------
        population : sequence
            Scored individuals, those of earlier generations among them.
        halloffame : sequence
            BluePyOpt's, with this generation in it.
        """
        self._look_at(population)
        sums = [float(one.fitness.sum) for one in population if one.fitness.valid]
        finite = [value for value in sums if math.isfinite(value)]
        self.population_size, self.unranked = len(sums), len(sums) - len(finite)
        self.population_min = min(finite, default=math.nan)
        self.population_mean = float(np.mean(finite)) if finite else math.nan
        self.best = self._best_of(halloffame)

    def _best_of(self, halloffame: Sequence[Any]) -> Any:
        finite = [one for one in halloffame if math.isfinite(one.fitness.sum)]
        if not finite and self._lowest is None:
            return halloffame[0] if len(halloffame) else None
        if len(finite) == len(halloffame) or self._lowest is None:
            return min(finite, key=lambda one: one.fitness.sum)
        return min([*finite, self._lowest], key=lambda one: one.fitness.sum)

    def _look_at(self, individuals: Iterable[Any]) -> None:
        for one in individuals:
            key = pack_floats(one)
            if not one.fitness.valid or key in self._seen:
                continue
            self._seen.add(key)
            total = -sum(one.fitness.wvalues)  # as ``fitness.sum``, without a division each
            if math.isfinite(total):
                if self._lowest is None or total < self._lowest.fitness.sum:
                    self._lowest = copy.deepcopy(one)
                continue
            for name, score in zip(self._objectives, one.fitness.values, strict=False):
                if not math.isfinite(score):
                    self.not_finite[name] = self.not_finite.get(name, 0) + 1


def shown(value: float) -> str:
    """Return a sum of scores for a line."""
    return f"{value:.6g}" if math.isfinite(value) else "not finite"


def not_finite_words(found: Findings) -> str:
    """Return which objectives had scores that are not finite, and how often; else nothing."""
    if not found.not_finite:
        return ""
    names = ", ".join(f"{name} ({count})" for name, count in found.not_finite.items())
    return f"NaN or infinite scores among {found.individuals} individuals: {names}"


def best_words(found: Findings, param_names: Sequence[str], objectives: Sequence[str]) -> list[str]:
    """Return the best individual for a person: its sum, its worst scores, its parameters."""
    if found.best is None:
        return []
    scored = zip(objectives, found.best.fitness.values, strict=True)
    worst = sorted(scored, key=lambda item: _rank(item[1]), reverse=True)[:WORST]
    told = ", ".join(f"{name} {score:.6g}" for name, score in worst)
    return [
        f"best individual: sum of scores {shown(found.fitness)}, worst objectives: {told}",
        *(
            f"  {name} = {float(value)!r}"
            for name, value in zip(param_names, found.best, strict=True)
        ),
    ]


def _rank(score: float) -> float:
    return math.inf if math.isnan(score) else score
