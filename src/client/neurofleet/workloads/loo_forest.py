"""``neurofleet run loo-forest``: random forest regression, cross-validated leaving one out.

Each held-out observation is predicted by a forest that was fitted to all others. The data
travel once to each host. The forest of observation ``i`` has ``random_state = seed + i``,
so a serial loop with scikit-learn gives the same predictions bit for bit.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurofleet.backends.choice import EngineChoice
from neurofleet.errors import UsageError, WorkloadFailed
from neurofleet.files import open_input
from neurofleet.itemrun import ItemRun, View, run
from neurofleet.jobs import Job, pickled
from neurofleet.rundir import GO_ON, write_file

if TYPE_CHECKING:
    import numpy as np

#: Size of the data that are made when there is no file: observations, features.
OBSERVATIONS, FEATURES = 500, 50
#: Observations that are held out of them, one after the other.
HELD_OUT = 50


@dataclass(frozen=True)
class Data:
    """What is predicted from what.

    Attributes
    ----------
    features : numpy.ndarray
        float64, (observations, features).
    target : numpy.ndarray
        float64, (observations,).
    name : str
        For people.
    """

    features: np.ndarray
    target: np.ndarray
    name: str


@dataclass(frozen=True)
class Request:
    """What to cross-validate.

    Attributes
    ----------
    engines : EngineChoice
    csv : Path or None
        ``None`` makes data, see ``made_data``.
    target : str
        Name of the column to predict.
    drop : sequence of str
        Columns that are left out.
    held_out : int or None
        Observations to hold out, from the first; ``None`` is all of a file's, 50 else.
    trees : int
    seed : int
    run_dir : Path or None
        ``None`` derives it, below ``neurofleet-runs``.
    """

    engines: EngineChoice
    csv: Path | None = None
    target: str = ""
    drop: Sequence[str] = ()
    held_out: int | None = None
    trees: int = 100
    seed: int = 0
    run_dir: Path | None = None

    @property
    def directory(self) -> Path:
        """The run directory."""
        name = "loo-forest" + (f"-{self.csv.stem}-{self.target}" if self.csv else "")
        default = f"{name}-trees{self.trees}-seed{self.seed}"
        return (self.run_dir or Path("neurofleet-runs") / default).absolute()


@dataclass(frozen=True)
class Report:
    """What came out.

    Attributes
    ----------
    observed, predicted : list of float
        Of the held-out observations.
    measures : dict
        ``rmse``, ``mae`` (both in the target's unit) and ``r2``.
    files : dict
        Paths of ``predictions``, ``measures`` and ``plot``.
    computed, from_store : int
    """

    observed: list[float]
    predicted: list[float]
    measures: dict[str, float]
    files: dict[str, Path]
    computed: int
    from_store: int


def predict_left_out(
    index: int, *, features: np.ndarray, target: np.ndarray, trees: int, seed: int
) -> float:
    """Predict one observation from a forest fitted to all others; runs on an engine."""
    import numpy as np
    from sklearn.ensemble import RandomForestRegressor

    forest = RandomForestRegressor(n_estimators=trees, random_state=seed + index)
    forest.fit(np.delete(features, index, axis=0), np.delete(target, index))
    return float(forest.predict(features[index : index + 1])[0])


def loo_forest(request: Request, view: View) -> Report:
    """Predict the held-out observations on engines; write predictions, measures and plot.

    Raises
    ------
    UsageError
        The file, a column or a number cannot be used.
    FleetError
        See its subclasses; what was computed is kept.
    """
    if request.trees < 1:
        raise UsageError(
            f"{request.trees} trees are no forest", remedy="Give --trees of at least 1"
        )
    if not 0 <= request.seed < 2**31:
        raise UsageError(f"{request.seed} is no seed", remedy="Give --seed of 0 or more")
    data = read_csv(request.csv, request.target, request.drop) if request.csv else made_data()
    count = _held_out(request, len(data.target))
    shared = {
        "features": data.features,
        "target": data.target,
        "trees": request.trees,
        "seed": request.seed,
    }
    content = hashlib.sha256(data.features.tobytes() + data.target.tobytes()).hexdigest()[:12]
    wanted = ItemRun(
        job=Job.of(predict_left_out, shared),
        about={"data": content, "trees": str(request.trees), "seed": str(request.seed)},
        items=pickled(range(count)),
        directory=request.directory,
        engines=request.engines,
    )
    outcome = run(wanted, view)
    if outcome.failed:
        first = outcome.failed[0]
        raise WorkloadFailed(
            f"observation {first} could not be predicted: {outcome.results[first].ended.reason}",
            remedy="Run the same command again; what was computed is kept",
        )
    predicted = [result.value() for result in outcome.results]
    observed = [float(value) for value in data.target[:count]]
    measures = error_measures(observed, predicted)
    files = _write(request.directory, data, observed, predicted, measures)
    return Report(observed, predicted, measures, files, outcome.computed, outcome.from_store)


def made_data() -> Data:
    """Return the data of the statistics department's tutorial: numpy's generator, seed 0."""
    import numpy as np

    generator = np.random.RandomState(0)
    x = generator.normal(0, 1, size=(OBSERVATIONS, FEATURES))
    noise = generator.normal(0, 1, OBSERVATIONS)
    y = x[:, 0] + np.abs(x[:, 1] * x[:, 2]) ** 0.5 + x[:, 1] - x[:, 2] + noise
    return Data(x, y, "made data")


def read_csv(path: Path, target: str, drop: Sequence[str] = ()) -> Data:
    """Return a file's numbers.

    Raises
    ------
    UsageError
        There is no such file or column, a value is missing or no number; says where.
    """
    import numpy as np

    try:
        with open_input(path, "utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) else f"it is no CSV: {error}"
        raise UsageError(
            f"{str(path)!r} cannot be read ({why})", remedy="Name a CSV file with a header line"
        ) from error
    header = [name.strip() for name in rows[0]] if rows else []
    for name in (target, *drop):
        if name not in header:
            raise UsageError(
                f"{str(path)!r} has no column {name!r}",
                remedy=f"It has {', '.join(header) or 'none'}"[:300],
            )
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise UsageError(
            f"{str(path)!r} has two columns {twice!r}", remedy="Give each column its own name"
        )
    kept = [name for name in header if name not in drop]
    if len(kept) < 2 or len(rows) < 3:
        raise UsageError(
            f"{str(path)!r} has {len(rows) - 1} observations of {len(kept)} columns",
            remedy="A forest needs at least two observations, the target and another column",
        )
    values = np.array([_numbers(path, header, kept, n, row) for n, row in enumerate(rows[1:], 2)])
    at = kept.index(target)
    return Data(np.delete(values, at, axis=1), values[:, at], path.name)


def _numbers(
    path: Path, header: list[str], kept: list[str], number: int, row: list[str]
) -> list[float]:
    if len(row) != len(header):
        raise UsageError(
            f"line {number} of {str(path)!r} has {len(row)} values, the header has {len(header)}",
            remedy="Mend that line",
        )
    numbers = []
    for name in kept:
        text = row[header.index(name)].strip()
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            what = f"{text!r}, which is no number," if text else "no value"
            raise UsageError(
                f"line {number} of {str(path)!r} has {what} in column {name!r}",
                remedy=f"Mend or remove that line, or leave the column out with --drop {name}",
            )
        numbers.append(value)
    return numbers


def _held_out(request: Request, observations: int) -> int:
    count = request.held_out
    if count is None:
        count = observations if request.csv else HELD_OUT
    if not 1 <= count <= observations:
        raise UsageError(
            f"{count} observations cannot be held out of {observations}",
            remedy=f"Give --held-out from 1 to {observations}",
        )
    return count


def error_measures(observed: Sequence[float], predicted: Sequence[float]) -> dict[str, float]:
    """Return root mean square error, mean absolute error, and R2 (nan for one observation)."""
    from sklearn import metrics

    return {
        "rmse": float(metrics.root_mean_squared_error(observed, predicted)),
        "mae": float(metrics.mean_absolute_error(observed, predicted)),
        "r2": float(metrics.r2_score(observed, predicted)) if len(observed) > 1 else math.nan,
    }


def _write(
    directory: Path,
    data: Data,
    observed: list[float],
    predicted: list[float],
    measures: dict[str, float],
) -> dict[str, Path]:
    files = {
        "predictions": directory / "predictions.csv",
        "measures": directory / "measures.json",
        "plot": directory / "predicted.svg",
    }
    lines = ["observation,observed,predicted"]
    pairs = enumerate(zip(observed, predicted, strict=True))
    lines += [f"{index},{known!r},{guess!r}" for index, (known, guess) in pairs]
    write_file(files["predictions"], ("\n".join(lines) + "\n").encode(), remedy=GO_ON)
    told = {"schema_version": 1, "data": data.name, "held_out": len(observed), **measures}
    write_file(files["measures"], json.dumps(told, indent=2).encode() + b"\n", remedy=GO_ON)
    write_file(files["plot"], _plot(data.name, observed, predicted, measures), remedy=GO_ON)
    return files


def _plot(
    name: str, observed: list[float], predicted: list[float], measures: dict[str, float]
) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes: Any = figure.subplots()
    ends = [min(observed + predicted), max(observed + predicted)]
    axes.plot(ends, ends, color="0.6", linewidth=1, zorder=1)
    axes.scatter(observed, predicted, s=16, zorder=2)
    axes.set(
        xlabel="observed",
        ylabel="predicted, left out of the fit",
        title=f"{name}: {len(observed)} held out, RMSE {measures['rmse']:.3g}",
        aspect="equal",
    )
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()
