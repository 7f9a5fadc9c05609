"""What both commands that optimise do with a request: watch it, and tell what came out."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from neurofleet.errors import RunDirectoryError
from neurofleet.files import texts, words
from neurofleet.model import EvaluatorSpec, pack
from neurofleet.optimise import Result, optimise
from neurofleet.progress import Watcher
from neurofleet.request import Request
from neurofleet.rundir import RunDirectory
from neurofleet.traces import simulate_traces


def optimise_and_tell(
    request: Request, *, dry_run: bool = False, as_json: bool = False, live: bool = True
) -> None:
    """Optimise, show progress on stderr, and print the outcome."""
    if dry_run:
        click.echo(json.dumps(_plan(request), indent=2))
        return
    with Watcher(request.name, request.max_ngen, live=live) as watcher:
        # Libraries print (ipyparallel does of late results); stdout is for data only.
        with contextlib.redirect_stdout(sys.stderr):
            result = optimise(request, watcher)
        watcher.says(_summary(result))
        if result.report is not None:
            watcher.says(f"report: {result.report}")
    if as_json:
        click.echo(json.dumps(_outcome(result), indent=2))


def trace_best(run_dir: Path) -> None:
    """Simulate the traces of a finished generation's best individual."""
    from neurofleet import checkpoint

    directory = RunDirectory(run_dir.absolute())
    about = directory.read_about()
    if about is None:
        raise RunDirectoryError(
            f"{str(run_dir)!r} is no run directory", remedy="Name one that neurofleet wrote"
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
    best = checkpoint.read(directory.checkpoint_of(about))["halloffame"]
    if not len(best):
        raise RunDirectoryError(
            f"the run in {str(run_dir)!r} has no best individual", remedy="Run its command again"
        )
    with Watcher(name, 0, live=False) as watcher:
        simulate_traces(directory, bundle, [float(value) for value in best[0]], watcher.says)


def _summary(result: Result) -> str:
    text = f"{result.simulated} simulated, {result.from_store} from the store"
    if result.penalised:
        text += f", {result.penalised} of them penalised"
    if result.verified:
        text += f", {result.verified} scored twice with the same result"
    return f"{text}; run directory: {result.directory.path}"


def _plan(request: Request) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "name": request.name,
        "model": str(request.model),
        "digest": pack(request.model, request.spec, exclude=request.exclude).digest,
        "evaluator": request.spec.as_json(),
        "settings": asdict(request.settings),
        "max_ngen": request.max_ngen,
        "engines": asdict(request.engines),
        "run_dir": str(request.directory.path),
    }


def _outcome(result: Result) -> dict[str, Any]:
    best = result.state.halloffame[0]
    return {
        "schema_version": 1,
        "run_dir": str(result.directory.path),
        "report": None if result.report is None else str(result.report),
        "simulated": result.simulated,
        "from_store": result.from_store,
        "penalised": result.penalised,
        "verified": result.verified,
        "logbook": [
            {name: float(record[name]) for name in ("gen", "nevals", "avg", "std", "min", "max")}
            for record in result.state.logbook
        ],
        "best": {
            "parameters": dict(zip(result.state.param_names, map(float, best), strict=True)),
            "scores": [float(value) for value in best.fitness.values],
        },
    }
