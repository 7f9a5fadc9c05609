"""One optimisation, from a model directory to a run directory with a report."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from neurofleet import checkpoint, engines_for_model
from neurofleet.engine import host_cache, tasks
from neurofleet.engine.outcome import Description, Outcome
from neurofleet.errors import FleetError, Interrupted, RunDirectoryError
from neurofleet.evolution import State, evolve
from neurofleet.farm import Farm, FarmState, Task
from neurofleet.model import Bundle, pack
from neurofleet.report import write_report
from neurofleet.request import Request
from neurofleet.rundir import RunDirectory, this_machine
from neurofleet.scoring import Individual, Progress, Scoring
from neurofleet.status import Status
from neurofleet.store import Store
from neurofleet.traces import simulate_traces

root_logger = logging.getLogger()
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What an optimisation came to.

    Attributes
    ----------
    directory : RunDirectory
    state : State
        After the last generation.
    simulated, from_store, penalised, verified : int
        Units simulated now, units found in the store, those of the former that got a
        penalty, and those that were scored twice with the same result.
    report : Path or None
    """

    directory: RunDirectory
    state: State
    simulated: int
    from_store: int
    penalised: int
    verified: int
    report: Path | None


class View(Protocol):
    """Somebody who watches an optimisation."""

    def says(self, text: str) -> None:
        """A line for a person."""

    def farm(self, state: FarmState) -> None:
        """Engines came, went, or changed what they do."""

    def progress(self, progress: Progress) -> None:
        """A unit was scored."""

    def generation(self, state: State) -> None:
        """A generation is complete."""


class _Reporting:
    """A view that keeps the run's ``status.json`` too."""

    def __init__(self, view: View, status: Status) -> None:
        self._view = view
        self._status = status
        self.says = view.says

    def farm(self, state: FarmState) -> None:
        self._status.farm(state)
        self._view.farm(state)

    def progress(self, progress: Progress) -> None:
        self._status.tell(
            generation=progress.generation,
            units_done=progress.units_done,
            units_total=progress.units_total,
            simulated=progress.simulated,
        )
        self._view.progress(progress)

    def generation(self, state: State) -> None:
        record = state.logbook[-1]
        self._status.tell(
            generations_done=state.generation, best=float(record["min"]), mean=float(record["avg"])
        )
        self._view.generation(state)


@dataclass
class _Run:
    """One optimisation under way."""

    request: Request
    view: View
    bundle: Bundle = field(init=False)
    description: Description = field(init=False)
    store: Store = field(init=False)
    scoring: Scoring = field(init=False)
    about: dict[str, Any] = field(init=False)
    engines: dict[str, Any] = field(default_factory=dict)
    #: Began from a checkpoint, so the store alone cannot replay it.
    continued: bool = False

    @property
    def directory(self) -> RunDirectory:
        return self.request.directory

    @property
    def checkpoint(self) -> Path:
        return (self.request.checkpoint or self.directory.checkpoint).absolute()

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must match to be this run's."""
        return {
            "model": self.bundle.digest,
            "versions": host_cache.versions(),
            "settings": asdict(self.request.settings),
            "continued": self.continued,
        }


def optimise(request: Request, view: View) -> Result:
    """Run an optimisation, or what is left of it.

    Raises
    ------
    FleetError
        See its subclasses; what was scored is kept whatever is raised.
    """
    run = _Run(request, view)
    run.bundle = pack(request.model, request.spec, exclude=request.exclude)
    run.directory.create()
    _refuse_other_run(run)
    with Store(run.directory.path, run.bundle.digest, host_cache.versions()) as run.store:
        resume = _checked_checkpoint(run)
        run.continued = resume is not None
        with Status(run.directory.path, request.name) as status:
            run.view = _Reporting(view, status)
            status.tell(max_ngen=request.max_ngen)
            try:
                run.description = engines_for_model.describe(run.bundle)
                if request.engines.backend != "serial":
                    tasks.close()  # the engines hold the model, this process need not
                state = _evolve(run, resume)
                report = _finish(run, state)
            finally:
                tasks.close()
    scoring = run.scoring
    return Result(
        run.directory,
        state,
        scoring.simulated,
        scoring.from_store,
        scoring.penalised,
        scoring.verified,
        report,
    )


def _evolve(run: _Run, resume: dict[str, Any] | None) -> State:
    request = run.request
    run.scoring = Scoring(
        run.bundle.digest,
        run.description,
        run.store,
        lambda: _open_farm(run),
        decision_file=engines_for_model.decision_file(run.bundle),
        unit_limit_s=request.unit_timeout_s,
        watch=run.view.progress,
        verify=request.verify,
        score_here=lambda task: _score_here(run.bundle, task),
    )

    def scores(generation: int, individuals: Sequence[Individual]) -> list[list[float]]:
        started = time.monotonic()
        found = run.scoring.score(generation, individuals)
        if request.engines.backend != "serial":
            root_logger.debug("Generation took %s", timedelta(seconds=time.monotonic() - started))
        return found

    def after_generation(state: State) -> None:
        checkpoint.write(run.checkpoint, state.as_dict(), run.identity)
        logging.getLogger("__main__").debug("Wrote checkpoint to %s", run.checkpoint)
        run.view.generation(state)

    with _recorded(run), contextlib.closing(run.scoring):
        return evolve(
            request.settings,
            run.description,
            scores,
            max_ngen=request.max_ngen,
            after_generation=after_generation,
            resume=resume,
        )


@contextlib.contextmanager
def _recorded(run: _Run) -> Iterator[None]:
    """Keep in the run directory what is run, and how it ended."""
    request = run.request
    earlier = run.directory.read_about() or {}
    run.about = {
        "name": request.name,
        "model": {
            "digest": run.bundle.digest,
            "directory": str(request.model.absolute()),
            "evaluator": run.bundle.spec.as_json(),
            "exclude": list(request.exclude),
        },
        "versions": engines_for_model.versions(),
        "settings": {**asdict(request.settings), "max_ngen": request.max_ngen},
        "command": request.command,
        "machine": this_machine(),
        "checkpoint": str(run.checkpoint),
        "description": run.description.as_json(),
        "started": earlier.get("started", time.time()),
        "ended": None,
        "state": "running",
        "engines": earlier.get("engines", {}),
        "units": earlier.get("units", {}),
        "reported": earlier.get("reported"),
    }
    run.directory.write_about(run.about)
    state = "failed"
    try:
        yield
        state = "finished"
    except (KeyboardInterrupt, Interrupted):
        state = "interrupted"
        raise
    finally:
        if run.scoring.simulated or earlier.get("state") != "finished":
            run.about["ended"] = time.time()
        else:
            run.about["ended"] = earlier.get("ended")
        run.about["state"] = state
        run.about["engines"] = run.engines or run.about["engines"]
        run.about["units"] = _units(run)
        with contextlib.suppress(RunDirectoryError):
            run.directory.write_about(run.about)


def _units(run: _Run) -> dict[str, str]:
    with contextlib.suppress(FleetError):
        units = run.scoring.units
        mode = "split" if units is not None and len(units) > 1 else "whole"
        return {"mode": mode, "why": run.scoring.why}
    return {}


def _score_here(bundle: Bundle, task: Task) -> Outcome:
    """Score a unit in this process's own warm process."""
    engines_for_model.prepare_here(bundle)
    outcome = task.function(*task.args)
    assert isinstance(outcome, Outcome)
    return outcome


def _open_farm(run: _Run) -> Farm:
    farm, backend = engines_for_model.open_farm(
        run.request.engines, run.bundle, run.directory.engines, run.view.farm
    )
    try:
        farm.open()
    except BaseException:
        farm.close()
        raise
    run.engines = {"backend": backend, "count": farm.size}
    if backend != "serial":
        root_logger.debug("Using ipyparallel with %d engines", farm.size)
        run.view.says(f"engines ready: {farm.size} ({backend})")
    return farm


def _refuse_other_run(run: _Run) -> None:
    """Raise if the run directory is another model's, other settings', other versions'."""
    about = run.directory.read_about()
    if about is None:
        return
    where = f"the run directory {str(run.directory.path)!r}"
    elsewhere = "Name another with --run-dir; nothing was changed"
    digest = about.get("model", {}).get("digest", "")
    if digest != run.bundle.digest:
        raise RunDirectoryError(
            f"{where} is of model {digest[:12]}, this is model {run.bundle.digest[:12]}"
            " (files, evaluator or arguments differ)",
            remedy=elsewhere,
        )
    for what, ours in (
        ("settings", asdict(run.request.settings)),
        ("versions", host_cache.versions()),
    ):
        for name, value in ours.items():
            theirs = about.get(what, {}).get(name)
            if theirs != value:
                raise RunDirectoryError(
                    f"{where} was run with {name} {theirs}, this is {value}", remedy=elsewhere
                )


def _checked_checkpoint(run: _Run) -> dict[str, Any] | None:
    """Refuse a checkpoint that is another run's; return the one to go on from, if any.

    A run goes on from the store, which replays it without a simulation. A checkpoint
    is needed only where there is no store: BluePyOpt's own, or one that was copied.
    """
    path = run.checkpoint
    if not path.parent.is_dir():
        raise RunDirectoryError(
            f"there is no directory {str(path.parent)!r} to write the checkpoint into",
            remedy="Make it, or name another file with --checkpoint",
        )
    has_scores = bool(run.store.durations())
    if not path.exists():
        if run.request.go_on and not has_scores:
            raise RunDirectoryError(
                f"there is nothing to continue: no checkpoint {str(path)!r} and no scores in"
                f" {str(run.directory.path)!r}",
                remedy="Use --start",
            )
        return None
    state = checkpoint.read(path)
    names = [p.name for p in engines_for_model.describe(run.bundle).parameters]
    why = checkpoint.belongs_elsewhere(state, run.identity, names)
    if why is None:
        needed = state["neurofleet"].get("continued") or (run.request.go_on and not has_scores)
        return state if needed else None
    if run.request.go_on and "neurofleet" not in state and list(state["param_names"]) == names:
        return state
    raise RunDirectoryError(
        f"the checkpoint {str(path)!r} is not this run's: {why}; it was left as it is",
        remedy="Name another with --checkpoint, or --continu to go on from one of BluePyOpt's",
    )


def _finish(run: _Run, state: State) -> Path | None:
    if not run.request.report:
        return None
    best = [float(value) for value in state.halloffame[0]]
    directory = run.directory
    shown = {"generation": state.generation, "best": best}
    if run.about["reported"] != shown or run.scoring.simulated or not directory.report.exists():
        simulate_traces(directory, run.bundle, best, run.view.says)
        run.view.says("writing the report")
        write_report(directory.path)
        run.about["reported"] = shown
        directory.write_about(run.about)
    return directory.report
