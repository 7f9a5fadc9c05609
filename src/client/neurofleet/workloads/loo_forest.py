"""``neurofleet run loo-forest``: random forest regression, cross-validated leaving one out.

Each held-out observation is predicted by a forest that was fitted to all others. The data
travel once to each host. The forest of index ``i`` (0 is the first observation) has
``random_state = seed + i``, so a serial loop with scikit-learn gives the same predictions bit
for bit.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurofleet.backends.choice import EngineChoice
from neurofleet.errors import UsageError, WorkloadFailed
from neurofleet.files import dump_json, name_part
from neurofleet.itemrun import ItemRun, View, run
from neurofleet.jobs import Job, pickled
from neurofleet.rundir import GO_ON, write_file
from neurofleet.workloads.csv_form import Form
from neurofleet.workloads.csv_table import read_table

if TYPE_CHECKING:
    import numpy as np

#: What the run is called.
NAME = "loo-forest"
#: Packages whose versions decide a prediction.
DECIDING = ("numpy", "scikit-learn", "scipy")
#: The most trees of a forest: more would fill any memory.
MOST_TREES = 1_000_000
#: So many of the lines that are left out are named on the terminal.
SHOWN_LINES = 20
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
    left_out : tuple of int
        Lines of the file that were left out because a value is missing there.
    """

    features: np.ndarray
    target: np.ndarray
    name: str
    left_out: tuple[int, ...] = ()

    @functools.cached_property
    def digest(self) -> str:
        """A hash of all numbers."""
        shape = repr(self.features.shape).encode()
        content = shape + self.features.tobytes() + self.target.tobytes()
        return hashlib.sha256(content).hexdigest()[:12]


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
    separator, decimal : str
        Between two columns; before a number's fraction.
    drop_missing : bool
        Whether lines without a value are left out.
    held_out : int or None
        Observations to hold out, from the first; ``None`` is all of a file's, 50 else.
    trees : int
    seed : int
    run_dir : Path or None
        ``None`` derives it from all of the above and from the data, below
        ``neurofleet-runs``: so two inputs never share one.
    """

    engines: EngineChoice
    csv: Path | None = None
    target: str = ""
    drop: Sequence[str] = ()
    separator: str = ","
    decimal: str = "."
    drop_missing: bool = False
    held_out: int | None = None
    trees: int = 100
    seed: int = 0
    run_dir: Path | None = None

    def data(self) -> Data:
        """Read the file, or make the data."""
        if self.csv is None:
            return made_data()
        return read_csv(
            self.csv,
            self.target,
            self.drop,
            separator=self.separator,
            decimal=self.decimal,
            drop_missing=self.drop_missing,
        )

    def directory(self, data: Data) -> Path:
        """Return the run directory."""
        if self.run_dir is not None:
            return self.run_dir.absolute()
        name = "loo-forest"
        if self.csv is not None:
            name += f"-{name_part(self.csv.stem)}-{name_part(self.target)}-{data.digest}"
        return Path("neurofleet-runs", f"{name}-trees{self.trees}-seed{self.seed}").absolute()


@dataclass(frozen=True)
class Report:
    """What came out.

    Attributes
    ----------
    observed, predicted : list of float
        Of the held-out observations.
    measures : dict
        ``rmse``, ``mae`` (both in the target's unit) and ``r2``, which is not a number for
        one observation.
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


def versions() -> dict[str, str]:
    """Return the versions that decide a prediction, besides Python's."""
    return {name: importlib.metadata.version(name) for name in DECIDING}


def _left_out(data: Data) -> str:
    """Return which lines are not used."""
    lines = ", ".join(map(str, data.left_out[:SHOWN_LINES]))
    more = len(data.left_out) - SHOWN_LINES
    if more > 0:
        lines += f" and {more} more"
    of = len(data.left_out) + len(data.target)
    return f"{len(data.left_out)} of {of} lines are left out for missing values: {lines}"


def loo_forest(request: Request, view: View) -> Report:
    """Predict the held-out observations on engines; write predictions, measures and plot.

    Raises
    ------
    UsageError
        The file, a column or a number cannot be used.
    FleetError
        See its subclasses; what was computed is kept.
    """
    if not 1 <= request.trees <= MOST_TREES:
        raise UsageError(
            f"--trees must be from 1 to {MOST_TREES}, not {request.trees}",
            remedy="Give another number",
        )
    if not 0 <= request.seed < 2**31:
        raise UsageError(
            f"--seed must be from 0 to {2**31 - 1}, not {request.seed}",
            remedy="Give another number",
        )
    data = request.data()
    if data.left_out:
        view.says(_left_out(data))
    count = _held_out(request, len(data.target))
    # scikit-learn takes a second to import: not before something is refused.
    from neurofleet.workloads.left_out import predict_left_out

    shared = {
        "features": data.features,
        "target": data.target,
        "trees": request.trees,
        "seed": request.seed,
    }
    directory = request.directory(data)
    wanted = ItemRun(
        job=replace(Job.of(predict_left_out, shared), name=NAME, versions=versions()),
        about={
            "data": data.digest,
            "trees": str(request.trees),
            "seed": str(request.seed),
            "versions": ", ".join(f"{name} {which}" for name, which in versions().items()),
        },
        items=pickled(range(count)),
        directory=directory,
        engines=request.engines,
    )
    outcome = run(wanted, view)
    if outcome.failed:
        first = outcome.failed[0]
        reason = outcome.results[first].ended.reason
        raise WorkloadFailed(
            f"{len(outcome.failed)} of {count} observations could not be predicted; the first,"
            f" observation {first + 1}: {reason}",
            remedy="Run the same command again; what was computed is kept",
        )
    predicted = [result.value() for result in outcome.results]
    observed = [float(value) for value in data.target[:count]]
    measures = error_measures(observed, predicted)
    files = _write(directory, data, observed, predicted, measures)
    return Report(observed, predicted, measures, files, outcome.computed, outcome.from_store)


def made_data() -> Data:
    """Return the data of the statistics department's tutorial: numpy's generator, seed 0."""
    import numpy as np

    generator = np.random.RandomState(0)
    x = generator.normal(0, 1, size=(OBSERVATIONS, FEATURES))
    noise = generator.normal(0, 1, OBSERVATIONS)
    y = x[:, 0] + np.abs(x[:, 1] * x[:, 2]) ** 0.5 + x[:, 1] - x[:, 2] + noise
    return Data(x, y, "made data")


def read_csv(
    path: Path,
    target: str,
    drop: Sequence[str] = (),
    *,
    separator: str = ",",
    decimal: str = ".",
    drop_missing: bool = False,
) -> Data:
    """Return a file's numbers; see ``csv_table``.

    Raises
    ------
    UsageError
        There is no such file or column, a value is missing or not a number; says where.
    """
    import numpy as np

    table = read_table(path, target, Form(separator, decimal, drop, drop_missing))
    at = table.names.index(target)
    return Data(np.delete(table.values, at, axis=1), table.values[:, at], path.name, table.left_out)


def _held_out(request: Request, observations: int) -> int:
    count = request.held_out
    if count is None:
        count = observations if request.csv else HELD_OUT
    if not 1 <= count <= observations:
        raise UsageError(
            f"--held-out must be from 1 to {observations}, the number of observations, not {count}",
            remedy="Give another number",
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
    pairs = enumerate(zip(observed, predicted, strict=True), 1)
    lines += [f"{number},{known!r},{guess!r}" for number, (known, guess) in pairs]
    write_file(files["predictions"], ("\n".join(lines) + "\n").encode(), remedy=GO_ON)
    told = {"schema_version": 1, "data": data.name, "held_out": len(observed), **measures}
    told |= {"left_out_lines": list(data.left_out), "versions": versions()}
    write_file(files["measures"], dump_json(told, indent=2).encode() + b"\n", remedy=GO_ON)
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
