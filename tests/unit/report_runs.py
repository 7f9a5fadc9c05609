"""Makes run directories such as an optimisation leaves behind, without running one."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import deap.tools
import numpy as np
from bluepyopt.deapext.optimisations import WSListIndividual

from neurofleet import checkpoint
from neurofleet.engine.outcome import Description, Outcome, Parameter
from neurofleet.rundir import RunDirectory
from neurofleet.store import Phase, Store, _checksum, pack_floats
from neurofleet.units import WHOLE, Unit

DIGEST = "3f" * 32
VERSIONS = {"neuron": "9.0.2", "bluepyopt": "1.14.26", "efel": "5.7.34"}
#: When the run began [s since 1970].
EPOCH = 1_760_000_000.0
PENALTY = 250.0
_SOMA = (
    "AP_height", "AHP_slow_time", "ISI_CV", "doublet_ISI", "adaptation_index2",
    "mean_frequency", "AHP_depth_abs_slow", "AP_width", "time_to_first_spike", "AHP_depth_abs",
)  # fmt: skip
L5PC_OBJECTIVES = (
    "bAP.soma.AP_width", "bAP.soma.AP_height", "bAP.soma.Spikecount",
    "bAP.dend1.AP_amplitude_from_voltagebase", "bAP.dend2.AP_amplitude_from_voltagebase",
    *(f"{step}.soma.{name}" for step in ("Step1", "Step2", "Step3") for name in _SOMA),
)  # fmt: skip
L5PC_PARAMETERS = tuple(
    f"{name}.{place}"
    for place, names in {
        "apical": ("gNaTs2_tbar_NaTs2_t", "gSKv3_1bar_SKv3_1", "gImbar_Im"),
        "axonal": ("gNaTa_tbar_NaTa_t", "gNap_Et2bar_Nap_Et2", "gK_Pstbar_K_Pst",
                   "gK_Tstbar_K_Tst", "gSK_E2bar_SK_E2", "gSKv3_1bar_SKv3_1",
                   "gCa_HVAbar_Ca_HVA", "gCa_LVAstbar_Ca_LVAst", "gamma_CaDynamics_E2",
                   "decay_CaDynamics_E2"),
        "somatic": ("gNaTs2_tbar_NaTs2_t", "gSKv3_1bar_SKv3_1", "gSK_E2bar_SK_E2",
                    "gCa_HVAbar_Ca_HVA", "gCa_LVAstbar_Ca_LVAst", "gamma_CaDynamics_E2",
                    "decay_CaDynamics_E2"),
    }.items()
    for name in names
)  # fmt: skip


@dataclass
class Shape:
    """What kind of run it was; the defaults are a small L5PC.

    Attributes
    ----------
    protocols : tuple of str
        Each is a unit of its own; none makes one unit, ``whole``.
    durations : tuple of float
        Mean duration of each unit [s].
    failures : tuple
        (status, reason) that units end with now and then.
    """

    name: str = "l5pc"
    generations: int = 12
    offspring: int = 10
    engines: int = 6
    hosts: int = 2
    protocols: tuple[str, ...] = ("bAP", "Step1", "Step2", "Step3")
    durations: tuple[float, ...] = (9.0, 14.0, 15.0, 17.0)
    objectives: tuple[str, ...] = L5PC_OBJECTIVES
    parameters: tuple[str, ...] = L5PC_PARAMETERS
    penalised: tuple[int, ...] = (7,)
    failures: tuple[tuple[str, str], ...] = ()
    state: str = "finished"
    traces: str | None = "ok"
    compared: bool = True
    pause_s: float = 0.0
    seed: int = 7
    about: dict[str, Any] = field(default_factory=dict)


#: With two of L5PC's protocols, and a few of its objectives and parameters.
SMALL = Shape(
    generations=3, offspring=4, engines=2, protocols=("bAP", "Step1"),
    objectives=L5PC_OBJECTIVES[:8], parameters=L5PC_PARAMETERS[:5],
)  # fmt: skip


def describe(shape: Shape) -> Description:
    """Return the description of the model that a shape is of."""
    everything = tuple(range(len(shape.objectives)))
    whole = Unit(WHOLE, shape.protocols, everything)
    units = tuple(
        Unit(name, (name,), tuple(i for i in everything if shape.objectives[i].startswith(name)))
        for name in shape.protocols
    )
    return Description(
        parameters=tuple(Parameter(name, 0.5 * i, 0.5 * i + 2.0 ** (i % 9 - 5))
                         for i, name in enumerate(shape.parameters)),
        objectives=shape.objectives,
        penalties=(PENALTY,) * len(shape.objectives),
        whole=whole,
        units=units if len(units) > 1 else (whole,),
        versions=VERSIONS,
    )  # fmt: skip


def make_run(directory: Path, shape: Shape | None = None) -> Path:
    """Make a run directory and return it."""
    shape = shape or Shape()
    random.seed(shape.seed)
    files = RunDirectory(directory)
    files.create()
    description = describe(shape)
    ended = _fill_store(directory, shape, description)
    best = write_checkpoint(files.checkpoint, shape, description)
    running = shape.state == "running"
    files.write_about({
        "name": shape.name,
        "model": {
            "digest": DIGEST,
            "directory": f"/home/someone/models/{shape.name}",
            "evaluator": {"factory": "l5pc_evaluator:create", "search": ["."], "kwargs": {},
                          "mechanisms": None},
        },
        "versions": {**VERSIONS, "ipyparallel": "9.2.0", "deap": "1.4.4"},
        "settings": {"seed": 42, "offspring_size": shape.offspring,
                     "max_ngen": shape.generations, "selector": "IBEA", "eta": 10.0,
                     "mutpb": 1.0, "cxpb": 1.0},
        "command": f"opt_l5pc --start --offspring_size {shape.offspring}"
                   f" --max_ngen {shape.generations} --seed 42 --checkpoint checkpoint.pkl",
        "machine": {"host": "head", "processor": "AMD EPYC 9R14", "cores": 8,
                    "system": "Linux-6.1.0-x86_64-with-glibc2.36", "python": "3.11.2",
                    "neurofleet": "1.0.0"},
        "engines": {"backend": "profile", "count": shape.engines},
        "units": {"mode": "split" if len(description.units) > 1 else "whole",
                  "why": "2 individual(s) gave the same bits whole and by units"},
        "description": description.as_json(),
        "started": EPOCH,
        "ended": None if running else ended + 1.5,
        "state": shape.state,
        **shape.about,
    })  # fmt: skip
    if shape.traces is not None:
        write_traces(files.best, best, shape)
    return directory


def write_checkpoint(path: Path, shape: Shape, description: Description) -> list[float]:
    """Write a checkpoint of real deap objects; return the best individual."""
    chance = random.Random(shape.seed)
    logbook = deap.tools.Logbook()
    logbook.header = ["gen", "nevals", "avg", "std", "min", "max"]
    for generation in range(1, shape.generations + 1):
        level = 40 + 3000 * math.exp(-generation / (0.22 * shape.generations + 1))
        logbook.record(
            gen=generation, nevals=shape.offspring, avg=np.float64(1.6 * level),
            std=np.float64(0.5 * level), min=np.float64(0.8 * level * chance.uniform(0.9, 1.05)),
            max=np.float64(2.9 * level),
        )  # fmt: skip
    population = []
    centres = [chance.random() for _ in description.parameters]
    for _ in range(2 * shape.offspring):
        values = [
            p.lower + (p.upper - p.lower) * min(1.0, max(0.0, chance.gauss(centre, 0.09)))
            for p, centre in zip(description.parameters, centres, strict=True)
        ]
        individual = WSListIndividual(values, obj_size=len(shape.objectives))
        individual.fitness.values = [
            PENALTY if i in shape.penalised else abs(chance.gauss(0, 1.8))
            for i in range(len(shape.objectives))
        ]
        population.append(individual)
    hall = deap.tools.HallOfFame(10)
    hall.update(population)
    history = deap.tools.History()
    checkpoint.write(
        path,
        {
            "population": population, "generation": shape.generations,
            "parents": population[: shape.offspring], "halloffame": hall, "history": history,
            "logbook": logbook, "rndstate": random.getstate(),
            "param_names": list(shape.parameters),
        },
        {"model": DIGEST, "versions": VERSIONS, "settings": {}},
    )  # fmt: skip
    return list(hall[0])


def write_traces(path: Path, parameters: Sequence[float], shape: Shape) -> None:
    """Write ``best.json``."""
    names = [f"{protocol}.soma.v" for protocol in shape.protocols]
    if "bAP" in shape.protocols:
        names += ["bAP.dend1.v", "bAP.dend2.v"]
    content: dict[str, Any] = {"parameters": list(parameters), "status": shape.traces,
                               "reason": ""}  # fmt: skip
    if shape.traces == "ok":
        content["responses"] = {name: _spikes(name) for name in names}
    else:
        content["reason"] = "the simulation's process died of signal 11"
    path.write_text(json.dumps(content))


def _period_ms(name: str) -> float:
    return 3000.0 if name.startswith("bAP") else 400.0 / (1 + sum(map(ord, name)) % 5)


def _spikes(name: str) -> list[list[float]]:
    """Return a current step's response, at 10 kHz."""
    length, onset, offset, period = 3000, 700, 2700, _period_ms(name)
    times = np.arange(0, length, 0.1)
    level = np.full_like(times, -80.0)
    inside = (times > onset) & (times < offset)
    level[inside] = -60 - 9 * np.exp(-((times[inside] - onset) % period) / 30)
    first = 1 if name.startswith("bAP") else 60
    for spike in np.arange(onset + 12, offset, period)[:first]:
        level += (85 if "dend" not in name else 45) * np.exp(-(((times - spike) / 1.8) ** 2))
    level += 0.3 * np.sin(times / 3)
    return [times.round(3).tolist(), level.round(4).tolist()]


def _fill_store(directory: Path, shape: Shape, description: Description) -> float:
    """Keep a score for each unit, as a farm of engines would have; return when it ended."""
    chance = random.Random(shape.seed)
    engines = [(f"worker{1 + index % shape.hosts}", 4000 + index) for index in range(shape.engines)]
    now = EPOCH + 6.0
    rows: list[tuple[str, tuple[float, ...], Outcome]] = []
    with Store(directory, DIGEST, VERSIONS) as store:
        generations = range(0 if shape.compared and shape.protocols else 1, shape.generations + 1)
        for generation in generations:
            if shape.pause_s and generation == shape.generations // 2 + 1:
                now += shape.pause_s
            begun = now
            free = [begun] * len(engines)
            units = description.units
            individuals = shape.offspring
            if generation == 0:
                units, individuals = (description.whole, *units), 2
            ordered = sorted(units, key=lambda unit: -_mean(shape, unit))
            for unit in ordered:
                for individual in range(individuals):
                    engine = min(range(len(engines)), key=free.__getitem__)
                    duration = _mean(shape, unit) * chance.uniform(0.75, 1.3)
                    status, reason = "ok", ""
                    if shape.failures and chance.random() < 0.05:
                        status, reason = chance.choice(shape.failures)
                    rows.append((
                        unit.name,
                        (float(generation), float(individual)),
                        Outcome(status, (1.0,) * len(unit.objectives), reason,
                                free[engine] + 0.01, duration, *engines[engine]),
                    ))  # fmt: skip
                    free[engine] += duration + 0.03
            now = max(free) + 0.05
            simulated = individuals * len(units)
            store.add_phase(Phase(generation, begun, now, len(engines), simulated,
                                  8 if generation == 1 and shape.protocols else 0))  # fmt: skip
            now += 0.4
        put_all(store, rows)
    return now


def _mean(shape: Shape, unit: Unit) -> float:
    if unit.name == WHOLE:
        return sum(shape.durations) if shape.durations else 5.0
    return shape.durations[shape.protocols.index(unit.name) % len(shape.durations)]


def put_all(store: Store, rows: Sequence[tuple[str, tuple[float, ...], Outcome]]) -> None:
    """Do what ``Store.put`` does, in one transaction: one each would take minutes."""
    store._db.execute("BEGIN")
    store._db.executemany(
        "INSERT OR IGNORE INTO score VALUES (?,?,?,?,?,?,?,?,?,?,?)",
        (
            (
                store._context, unit, pack_floats(values), pack_floats(outcome.scores),
                outcome.status, outcome.reason, outcome.started, outcome.duration_s,
                outcome.host, outcome.pid,
                _checksum(unit, pack_floats(values), pack_floats(outcome.scores), outcome.status),
            )
            for unit, values, outcome in rows
        ),
    )  # fmt: skip
    store._db.execute("COMMIT")
