"""What a run has found: the best means one thing, and scores that are not finite are named."""

from __future__ import annotations

import math
from typing import Any

import deap.tools
import pytest

from neurofleet.errors import RunDirectoryError
from neurofleet.findings import Findings, best_words, not_finite_words
from unit.support import scored

NAMES = ("first", "second")


def hall_of(*generations: list[Any]) -> Any:
    hall = deap.tools.HallOfFame(10)
    for population in generations:
        hall.update(population)
    return hall


def test_best_of_finite_scores_is_the_head_of_bluepyopts_hall_of_fame() -> None:
    # Of two that are equal BluePyOpt names the later one first.
    one = [scored(0.1, 1.0, 2.0), scored(0.2, 2.0, 1.0), scored(0.3, 5.0, 5.0)]
    found, hall = Findings(NAMES), hall_of(one)
    found.add(one, hall)
    assert list(found.best) == list(hall[0])
    assert found.fitness == 3.0


def test_best_is_the_best_so_far_and_the_population_has_its_own() -> None:
    one, two = [scored(0.1, 1.0, 1.0)], [scored(0.2, 2.0, 2.0), scored(0.3, 3.0, 5.0)]
    found = Findings(NAMES)
    found.add(one, hall_of(one))
    found.add(two, hall_of(one, two))
    assert (found.fitness, found.population_min, found.population_mean) == (2.0, 4.0, 6.0)


def test_best_behind_scores_that_are_nan_is_found_though_the_hall_of_fame_has_it_not() -> None:
    # Ten that are NaN fill the hall of fame: nothing is better than they are.
    full = [scored(x, math.nan, 1.0) for x in range(10)]
    later = [scored(0.5, 1.0, 1.0), scored(0.6, 0.5, 1.0), scored(0.7, -math.inf, 1.0)]
    found = Findings(NAMES)
    found.add(full, hall_of(full))
    assert math.isnan(found.fitness)
    assert math.isnan(found.population_min)
    found.add(later, hall_of(full, later))
    assert list(found.best) == [0.6]
    assert (found.fitness, found.unranked, found.population_size) == (1.5, 1, 3)


def test_scores_that_are_not_finite_are_counted_once_an_individual() -> None:
    population = [scored(0.1, math.nan, 1.0), scored(0.2, math.inf, math.nan), scored(0.3, 1, 1)]
    found = Findings(NAMES)
    found.add(population, hall_of(population))
    found.add([*population, scored(0.1, math.nan, 1.0)], hall_of(population))
    assert found.not_finite == {"first": 2, "second": 1}
    assert not_finite_words(found) == (
        "NaN or infinite scores among 3 individuals: first (2), second (1)"
    )


def test_findings_of_a_checkpoint_are_those_of_its_run() -> None:
    one = [scored(0.1, math.nan, 1.0), scored(0.2, 1.0, 1.0)]
    two = [scored(0.3, math.inf, 0.0), scored(0.4, 2.0, 2.0)]
    hall, history, followed = hall_of(one, two), deap.tools.History(), Findings(NAMES)
    for number, population in enumerate((one, two), 1):
        history.update(population)
        followed.add(population, hall_of(*(one, two)[:number]))
    read = Findings.of({"history": history, "population": two, "halloffame": hall}, NAMES)
    assert read.not_finite == followed.not_finite == {"first": 2}
    assert (list(read.best), read.individuals) == (list(followed.best), 4)


def test_findings_of_what_are_no_individuals_are_refused() -> None:
    checkpoint = {"history": deap.tools.History(), "population": [[0.1]], "halloffame": []}
    with pytest.raises(RunDirectoryError, match="lacks individuals with their scores"):
        Findings.of(checkpoint, NAMES)


def test_best_in_words_has_every_parameter_to_the_last_digit_and_the_worst_scores() -> None:
    best = scored(0.1 + 0.2, 1.0, math.nan)
    found = Findings(NAMES)
    found.add([best], hall_of([best]))
    assert best_words(found, ["g_na"], NAMES) == [
        "best individual: sum of scores not finite, worst objectives: second nan, first 1",
        "  g_na = 0.30000000000000004",
    ]
