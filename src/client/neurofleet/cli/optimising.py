"""What both commands that optimise do with a request: watch it, and tell what came out."""

from __future__ import annotations

import contextlib
import math
import sys
from pathlib import Path
from typing import Any

import click

from neurofleet.errors import RunDirectoryError, one_line
from neurofleet.files import dump_json, texts, words
from neurofleet.findings import Findings, best_words, not_finite_words
from neurofleet.model import EvaluatorSpec, pack
from neurofleet.optimise import Result, optimise
from neurofleet.planning import plan
from neurofleet.progress import Watcher
from neurofleet.request import Request
from neurofleet.rundir import RunDirectory
from neurofleet.traces import simulate_traces


def optimise_and_tell(
    request: Request, *, dry_run: bool = False, as_json: bool = False, live: bool = True
) -> None:
    """Optimise, show progress on stderr, and print the outcome."""
    if dry_run:
        with contextlib.redirect_stdout(sys.stderr):
            planned = plan(request)
        click.echo(dump_json(planned, indent=2))
        return
    with Watcher(request.name, request.max_ngen, live=live) as watcher:
        # Libraries print (ipyparallel does of late results); stdout is for data only.
        with contextlib.redirect_stdout(sys.stderr):
            result = optimise(request, watcher)
        for line in best_words(result.found, result.state.param_names, result.objectives):
            watcher.says(one_line(line) if line[0] != " " else f"  {one_line(line)}")
        remark = not_finite_words(result.found)
        if remark:
            watcher.says(f"warning: {one_line(remark)}")
        watcher.says(_summary(result))
        if result.report is not None:
            watcher.says(f"report: {result.report}")
    if as_json:
        click.echo(dump_json(_outcome(result), indent=2))


def trace_best(run_dir: Path) -> None:
    """Simulate the traces of a finished generation's best individual."""
    from neurofleet import checkpoint

    directory = RunDirectory(run_dir.absolute())
    about = directory.read_about()
    if about is None:
        raise RunDirectoryError(
            f"{str(run_dir)!r} is not a run directory", remedy="Name one that neurofleet wrote"
        )
    directory.refuse_foreign()  # the model that it names is code
    try:
        model, where = about["model"], Path(about["model"]["directory"])
        spec, digest = EvaluatorSpec.from_json(model["evaluator"]), model["digest"]
        exclude = texts(model, "exclude")
        name = words(about, "name")
    except (KeyError, ValueError) as error:
        raise RunDirectoryError(
            f"{str(directory.about)!r} does not describe the model ({error})",
            remedy="Run the same command again: it replays from the scores and writes it anew",
        ) from error
    bundle = pack(where, spec, exclude=exclude)
    if bundle.digest != digest:
        raise RunDirectoryError(
            f"the model in {str(where)!r} has changed since the run",
            remedy="Put its files back as they were",
        )
    best = Findings.of(checkpoint.read(directory.checkpoint_of(about)), ()).best
    if best is None:
        raise RunDirectoryError(
            f"the run in {str(run_dir)!r} has no best individual", remedy="Run its command again"
        )
    with Watcher(name, 0, live=False) as watcher:
        simulate_traces(directory, bundle, [float(value) for value in best], watcher.says)


def _summary(result: Result) -> str:
    text = f"{result.simulated} simulated, {result.from_store} from the store"
    if result.penalised:
        text += f", {result.penalised} of them penalised"
    if result.verified:
        text += f", {result.verified} scored twice with the same result"
    return f"{text}; run directory: {result.directory.path}"


def _outcome(result: Result) -> dict[str, Any]:
    """Return what ``--json`` prints; a number that is not finite is null, and named beside."""
    best = result.found.best
    scores = [float(value) for value in best.fitness.values]
    return {
        "schema_version": 1,
        "run_dir": str(result.directory.path),
        "report": None if result.report is None else str(result.report),
        "simulated": result.simulated,
        "from_store": result.from_store,
        "penalised": result.penalised,
        "verified": result.verified,
        "logbook": [_row(record) for record in result.state.logbook],
        "not_finite": result.found.not_finite,
        "best": {
            "parameters": dict(zip(result.state.param_names, map(float, best), strict=True)),
            "fitness": result.found.fitness,
            "objectives": list(result.objectives),
            "scores": scores,
            "not_finite": {
                name: str(score)
                for name, score in zip(result.objectives, scores, strict=True)
                if not math.isfinite(score)
            },
        },
    }


def _row(record: dict[str, Any]) -> dict[str, Any]:
    """Return BluePyOpt's record of a generation; what is not finite in it, as text, beside it."""
    row = {name: float(record[name]) for name in ("gen", "nevals", "avg", "std", "min", "max")}
    odd = {name: str(value) for name, value in row.items() if not math.isfinite(value)}
    return {**row, **({"not_finite": odd} if odd else {})}
