"""Reads a run directory; changes nothing in it and takes no lock."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurofleet import checkpoint
from neurofleet.engine.outcome import Description
from neurofleet.errors import RunDirectoryError, WorkloadFailed
from neurofleet.files import read_object
from neurofleet.findings import Findings
from neurofleet.report import scores
from neurofleet.rundir import RunDirectory
from neurofleet.store import FILE as STORE_FILE

#: A recording: times [ms] and values ([mV] where it is a voltage).
Trace = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class Progress:
    """Fitness (sum of the scores) of each generation's population.

    Attributes
    ----------
    generation, evaluated : ndarray of int
        Number of the generation, counted from 1, and individuals evaluated in it.
    minimum, mean, std, maximum : ndarray of float
        NaN where the logbook does not tell.
    """

    generation: NDArray[np.int64]
    evaluated: NDArray[np.int64]
    minimum: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    maximum: NDArray[np.float64]


@dataclass(frozen=True)
class Best:
    """The best individual of the whole run.

    Attributes
    ----------
    parameters : tuple of float
        In the model's own units.
    scores : tuple of float
        One per objective; lower is better.
    not_finite : mapping
        For objectives that had such scores: how many individuals scored NaN or infinite.
    individuals : int
        Distinct individuals that have been scored.
    """

    parameters: tuple[float, ...]
    scores: tuple[float, ...]
    not_finite: Mapping[str, int] = field(default_factory=dict)
    individuals: int = 0

    @property
    def fitness(self) -> float:
        """Sum of the scores, what BluePyOpt minimises."""
        return float(sum(self.scores))

    @property
    def is_ranked(self) -> bool:
        """Whether the sum is a number by which individuals can be ordered."""
        return math.isfinite(self.fitness)


@dataclass(frozen=True, eq=False)
class Traces:
    """The best individual's recordings.

    Attributes
    ----------
    state : str
        ``ok``; ``absent`` (not simulated); ``stale`` (another individual's); or the
        status of the simulation that failed.
    reason : str
    recordings : mapping
        Trace of each recording that has one.
    empty : tuple of str
        Recordings without a value.
    """

    state: str
    reason: str = ""
    recordings: Mapping[str, Trace] = field(default_factory=dict)
    empty: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Record:
    """What a run directory tells.

    Attributes
    ----------
    directory : str
        Name of the run directory, without its place.
    about : mapping
        ``neurofleet-run.json``.
    description : Description
    generation : int
        The last that is complete.
    progress : Progress
    best : Best
    population : ndarray, shape (individuals, parameters)
        Parameter values of the last population.
    evaluations : scores.Evaluations
    traces : Traces
    """

    directory: str
    about: Mapping[str, Any]
    description: Description
    generation: int
    progress: Progress
    best: Best
    population: NDArray[np.float64]
    evaluations: scores.Evaluations
    traces: Traces


def read(directory: Path) -> Record:
    """Read a run directory.

    Raises
    ------
    RunDirectoryError
        There is no run, no finished generation, or a file is damaged or another user's.
    WorkloadFailed
        BluePyOpt, which the checkpoint needs, is not installed.
    """
    files = RunDirectory(directory)
    about = files.read_about() if directory.is_dir() else None
    if about is None:
        raise RunDirectoryError(
            f"there is no run in {str(directory)!r}",
            remedy="Name the directory that an optimisation wrote (its --run-dir)",
        )
    try:
        description = Description.from_json(about["description"])
        digest = str(about["model"]["digest"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunDirectoryError(
            f"{str(files.about)!r} does not describe the model ({type(error).__name__}: {error})",
            remedy="Run the same command again: it replays from the scores and writes it anew",
        ) from error
    state = _read_checkpoint(files, about)
    generation, progress, best, population = _population(files, state, description)
    evaluations = scores.read(
        directory / STORE_FILE,
        digest,
        about.get("versions") or description.versions,
        [unit.name for unit in (*description.units, description.whole)],
    )
    return Record(
        directory=directory.resolve().name,
        about=about,
        description=description,
        generation=generation,
        progress=progress,
        best=best,
        population=population,
        evaluations=evaluations,
        traces=_traces(files.best, best.parameters),
    )


def _read_checkpoint(files: RunDirectory, about: Mapping[str, Any]) -> Mapping[str, Any]:
    path = files.checkpoint_of(about)
    if not path.exists():
        raise RunDirectoryError(
            f"the run in {str(files.path)!r} has finished no generation yet",
            remedy="Try again when one is complete; an interrupted run goes on when its command"
            " is run again",
        )
    try:
        return checkpoint.read(path)
    except ImportError as error:
        raise WorkloadFailed(
            f"the checkpoint {str(path)!r} cannot be read here: {error}",
            remedy="Write the report where BluePyOpt is installed, for example on the head",
        ) from error


def _population(
    files: RunDirectory, state: Mapping[str, Any], description: Description
) -> tuple[int, Progress, Best, NDArray[np.float64]]:
    try:
        found = Findings.of(state, description.objectives)
        best = Best(
            _floats(found.best),
            _floats(found.best.fitness.values),
            found.not_finite,
            found.individuals,
        )
        population = np.array([_floats(item) for item in state["population"]], dtype=np.float64)
        generation = int(state["generation"])
        progress = _progress(state["logbook"])
    except Exception as error:  # whatever a pickle of another program's objects raises
        raise RunDirectoryError(
            f"the checkpoint of {str(files.path)!r} lacks a best individual, a population or a"
            f" logbook ({type(error).__name__}: {error})",
            remedy="Move it away and run the same command again; the scores are kept",
        ) from error
    width = len(description.parameters)
    if (
        len(best.parameters) != width
        or len(best.scores) != len(description.objectives)
        or population.shape[1:] != (width,)
    ):
        raise RunDirectoryError(
            f"the checkpoint of {str(files.path)!r} is another model's: it has"
            f" {len(best.parameters)} parameters and {len(best.scores)} objectives, the model"
            f" has {width} and {len(description.objectives)}",
            remedy="Move it away and run the same command again; the scores are kept",
        )
    return generation, progress, best, population


def _progress(logbook: Sequence[Mapping[str, Any]]) -> Progress:
    def column(name: str) -> NDArray[np.float64]:
        values = [entry.get(name) for entry in logbook]
        return np.array([math.nan if v is None else float(v) for v in values], dtype=np.float64)

    return Progress(
        generation=np.array([int(entry["gen"]) for entry in logbook], dtype=np.int64),
        evaluated=np.array([int(entry.get("nevals", 0)) for entry in logbook], dtype=np.int64),
        minimum=column("min"),
        mean=column("avg"),
        std=column("std"),
        maximum=column("max"),
    )


def _traces(path: Path, parameters: tuple[float, ...]) -> Traces:
    """Read the recordings, if they are of the individual with these parameters."""
    try:
        data = read_object(path)
        if _floats(data["parameters"]) != parameters:
            return Traces("stale")
        if data["status"] != "ok":
            return Traces(str(data["status"]), str(data.get("reason", "")))
        responses = data.get("responses") or {}
        found = {str(name): _trace(values) for name, values in responses.items()}
    except FileNotFoundError:
        return Traces("absent")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return Traces("unreadable", f"best.json: {type(error).__name__}: {error}")
    return Traces(
        "ok",
        recordings={name: trace for name, trace in found.items() if trace is not None},
        empty=tuple(name for name, trace in found.items() if trace is None),
    )


def _trace(values: Any) -> Trace | None:
    """Return the finite part of a recording, ``None`` if there is none."""
    if not isinstance(values, list) or len(values) != 2:
        return None
    length = min(len(values[0] or ()), len(values[1] or ()))
    times = np.array(values[0][:length] if length else (), dtype=np.float64)
    levels = np.array(values[1][:length] if length else (), dtype=np.float64)
    finite = np.isfinite(times) & np.isfinite(levels)
    return (times[finite], levels[finite]) if finite.sum() > 1 else None


def _floats(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
