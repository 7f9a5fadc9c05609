"""BluePyOpt's evolutionary algorithm, generation by generation, with our scores.

Population, operators, selectors, statistics and history are BluePyOpt's and DEAP's
own (``bluepyopt.deapext``). The loop around them is ours because BluePyOpt's writes
its first checkpoint after the second generation, overwrites it in place, and cannot
be left between two generations. The identity tests hold it to upstream's bits.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import bluepyopt
import bluepyopt.deapext.optimisations
import deap.tools
import numpy as np
from bluepyopt.deapext import utils

from neurofleet.engine.outcome import Description
from neurofleet.errors import UsageError

#: BluePyOpt logs its table under this name when it is run as a script.
upstream_logger = logging.getLogger("__main__")

Individual = tuple[float, ...]
Scores = Callable[[int, Sequence[Individual]], list[list[float]]]


#: Individuals of a generation; more than this are a slip of the finger, and fill the memory.
MOST_OFFSPRING = 1_000_000


@dataclass(frozen=True)
class Settings:
    """What decides an evolution's course, besides the scores.

    Attributes
    ----------
    seed : int or str
        Of Python's generator. BLUEPYOPT_SEED gives a str, and ``random.seed`` takes
        "42" and 42 for different seeds; upstream does the same.
    offspring_size : int
        Individuals per generation.
    selector : str
        ``IBEA`` or ``NSGA2``.
    eta : float
        Crowding of crossover and mutation; larger keeps children closer.
    mutpb, cxpb : float
        Probabilities of mutation and crossover.
    """

    seed: int | str = 42
    offspring_size: int = 2
    selector: str = "IBEA"
    eta: float = 10.0
    mutpb: float = 1.0
    cxpb: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.offspring_size <= MOST_OFFSPRING:
            raise UsageError(
                f"--offspring-size must be from 1 to {MOST_OFFSPRING}, not {self.offspring_size}",
                remedy="Give another number",
            )
        for name in ("mutpb", "cxpb"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UsageError(
                    f"--{name} must be from 0 to 1, not {getattr(self, name):g}",
                    remedy="Give a probability",
                )
        if not 0 < self.eta < float("inf"):
            raise UsageError(
                f"--eta must be above 0 and finite, not {self.eta:g}", remedy="Give another number"
            )


@dataclass
class State:
    """An evolution after a generation; what a checkpoint holds."""

    generation: int
    population: list[Any]
    parents: list[Any]
    halloffame: Any
    history: Any
    logbook: Any
    rndstate: Any
    param_names: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return the keys of BluePyOpt's checkpoint."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class _Scored(bluepyopt.evaluators.Evaluator):  # type: ignore[misc]
    """Stands where BluePyOpt expects an evaluator; scores come from elsewhere."""

    def __init__(self, description: Description) -> None:
        super().__init__(
            objectives=[bluepyopt.objectives.Objective(name) for name in description.objectives],
            params=[
                bluepyopt.parameters.Parameter(p.name, bounds=(p.lower, p.upper))
                for p in description.parameters
            ],
        )
        self.param_names = [p.name for p in description.parameters]

    def init_simulator_and_evaluate_with_lists(self, _parameters: Sequence[float]) -> None:
        raise AssertionError("individuals are scored by the generation, not one by one")


def evolve(
    settings: Settings,
    description: Description,
    scores: Scores,
    *,
    max_ngen: int,
    after_generation: Callable[[State], None],
    resume: dict[str, Any] | None = None,
) -> State:
    """Run an evolution.

    Parameters
    ----------
    settings : Settings
    description : Description
        Of the model.
    scores : callable
        Takes the generation's number and individuals, returns a list of scores each,
        in the order of the evaluator's objectives.
    max_ngen : int
        Generations to run, the first included. As upstream, the first is always run.
    after_generation : callable
        Called with the state after every generation that was computed.
    resume : dict or None
        A checkpoint's content to go on from, instead of a first generation.

    Returns
    -------
    State
    """
    evaluator = _Scored(description)
    optimisation = bluepyopt.deapext.optimisations.DEAPOptimisation(
        evaluator=evaluator,
        selector_name=settings.selector,
        **{k: v for k, v in asdict(settings).items() if k != "selector"},
    )
    toolbox = optimisation.toolbox
    statistics = deap.tools.Statistics(key=lambda individual: individual.fitness.sum)
    for name, function in (("avg", np.mean), ("std", np.std), ("min", np.min), ("max", np.max)):
        statistics.register(name, function)

    def assign(generation: int, individuals: Sequence[Any]) -> int:
        invalid = [individual for individual in individuals if not individual.fitness.valid]
        wanted = [tuple(map(float, individual)) for individual in invalid]
        # The evolution owns Python's generator. Libraries draw from it too while they
        # score (ipyparallel names its clusters by it), which must not steer the evolution.
        generator = random.getstate()
        found = scores(generation, wanted)
        random.setstate(generator)
        for individual, values in zip(invalid, found, strict=True):
            individual.fitness.values = values
        return len(invalid)

    def keep(generation: int, individuals: list[Any], evaluated: int) -> None:
        utils.update_history_and_hof(state.halloffame, state.history, individuals)
        with _as_they_are():
            utils.record_stats(statistics, state.logbook, generation, individuals, evaluated)

    if resume is None:
        population = toolbox.population(n=settings.offspring_size)
        logbook = deap.tools.Logbook()
        logbook.header = ["gen", "nevals", *statistics.fields]
        state = State(
            1,
            population,
            population[:],
            optimisation.hof,
            deap.tools.History(),
            logbook,
            random.getstate(),
            evaluator.param_names,
        )
        keep(1, population, assign(1, population))
        state.rndstate = random.getstate()
        after_generation(state)
    else:
        state = _resumed(resume, len(evaluator.objectives))
        random.setstate(state.rndstate)
        assign(state.generation, state.parents)
        assign(state.generation, state.population)

    while state.generation < max_ngen:
        generation = state.generation + 1
        offspring = toolbox.variate(state.parents, toolbox, settings.cxpb, settings.mutpb)
        population = state.parents + offspring
        keep(generation, population, assign(generation, offspring))
        with _as_they_are():
            state.parents = toolbox.select(population, settings.offspring_size)
        upstream_logger.info(state.logbook.stream)
        state.population = population
        state.generation = generation
        state.rndstate = random.getstate()
        after_generation(state)
    return state


def _as_they_are() -> np.errstate:
    """Have numpy take scores that are NaN or infinite without a word; we say which they are."""
    return np.errstate(invalid="ignore", divide="ignore", over="ignore")


def _resumed(checkpoint: dict[str, Any], objectives: int) -> State:
    """Return a checkpoint's state, with fitness to be assigned anew, as upstream does."""
    individual = bluepyopt.deapext.optimisations.WSListIndividual
    kept = {name: checkpoint[name] for name in State.__dataclass_fields__}
    for group in ("population", "parents"):
        kept[group] = [individual(list(values), obj_size=objectives) for values in kept[group]]
    return State(**kept)
