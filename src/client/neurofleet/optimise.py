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

from neurofleet import checkpoint, engines_for_model, going_on, safe_point
from neurofleet.engine import tasks
from neurofleet.engine.outcome import Description, Outcome
from neurofleet.errors import FleetError, Interrupted, RunDirectoryError, one_line
from neurofleet.evolution import State, evolve
from neurofleet.farm import Farm, FarmState, Task
from neurofleet.findings import Findings
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
    found : Findings
        Best individual, and scores that are not finite.
    objectives : tuple of str
    simulated, from_store, penalised, verified : int
        Units simulated now, units found in the store, those of the former that got a
        penalty, and those that were scored twice with the same result.
    report : Path or None
    """

    directory: RunDirectory
    state: State
    found: Findings
    objectives: tuple[str, ...]
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

    def generation(self, state: State, found: Findings) -> None:
        """A generation is complete."""


class _Reporting:
    """A view that keeps the run's ``status.json`` too."""

    def __init__(self, view: View, status: Status, generations: int) -> None:
        self._view = view
        self._status = status
        self._generations = generations
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

    def generation(self, state: State, found: Findings) -> None:
        self._generations = max(self._generations, state.generation)
        self._status.tell(
            generations_done=self._generations,
            best=found.fitness,
            population_min=found.population_min,
            mean=found.population_mean,
            not_finite=dict(found.not_finite),
        )
        self._view.generation(state, found)


@dataclass
class _Run:
    """One optimisation under way."""

    request: Request
    view: View
    bundle: Bundle = field(init=False)
    directory: RunDirectory = field(init=False)
    description: Description = field(init=False)
    store: Store = field(init=False)
    scoring: Scoring = field(init=False)
    about: dict[str, Any] = field(init=False)
    found: Findings = field(init=False)
    #: Model, versions and settings, which decide every number.
    ours: dict[str, Any] = field(init=False)
    #: What was there before.
    before: going_on.Found = field(init=False)
    engines: dict[str, Any] = field(default_factory=dict)
    #: Generations that are complete, counting an earlier run's.
    generations: int = 0
    #: Objectives that were named for scores that are not finite.
    named: set[str] = field(default_factory=set)

    @property
    def checkpoint(self) -> Path:
        return (self.request.checkpoint or self.directory.checkpoint).absolute()

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must match to be this run's; whether the store can replay it."""
        return {
            **self.ours,
            "continued": self.before.resume is not None,
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
    run.directory = request.directory_for(run.bundle.digest)
    run.ours = going_on.identity(run.bundle, request.settings)
    if request.run_dir is None and run.directory.path != request.plain:
        view.says(
            f"{str(request.plain)!r} is a run of another model or of other settings; this one is"
            f" in {str(run.directory.path)!r}"
        )
    run.directory.create()
    going_on.refuse_other_run(run.directory, run.ours)
    with Store(run.directory.path, run.bundle.digest, run.ours["versions"]) as run.store:
        # Once more: another run may have had the directory until now.
        for remark in going_on.refuse_other_run(run.directory, run.ours):
            view.says(f"warning: {remark}")
        run.before = _look(run)
        run.generations = run.before.generations
        with Status(run.directory.path, one_line(request.name)) as status:
            run.view = _Reporting(view, status, run.generations)
            status.tell(max_ngen=request.max_ngen)
            try:
                run.description = engines_for_model.describe(run.bundle)
                if request.engines.backend != "serial":
                    tasks.close()  # the engines hold the model, this process need not
                state = _evolve(run)
                report = _finish(run, state)
            finally:
                tasks.close()
    scoring = run.scoring
    return Result(
        run.directory,
        state,
        run.found,
        run.description.objectives,
        scoring.simulated,
        scoring.from_store,
        scoring.penalised,
        scoring.verified,
        report,
    )


def _look(run: _Run) -> going_on.Found:
    """Return what there is to go on from."""
    return going_on.look(
        run.request,
        run.directory,
        run.ours,
        lambda: [p.name for p in engines_for_model.describe(run.bundle).parameters],
        has_scores=bool(run.store.durations()),
    )


def _evolve(run: _Run) -> State:
    request = run.request
    objectives, resume = run.description.objectives, run.before.resume
    run.found = Findings(objectives) if resume is None else Findings.of(resume, objectives)
    run.scoring = Scoring(
        run.bundle.digest,
        run.description,
        run.store,
        lambda: _open_farm(run),
        decision_file=engines_for_model.decision_file(run.bundle),
        unit_limit_s=request.unit_timeout_s,
        watch=run.view.progress,
        verify=request.verify,
        allow_failing=request.allow_failing,
        score_here=lambda task: _score_here(run.bundle, task),
    )

    def scores(generation: int, individuals: Sequence[Individual]) -> list[list[float]]:
        started = time.monotonic()
        found = run.scoring.score(generation, individuals)
        if request.engines.backend != "serial":
            root_logger.debug("Generation took %s", timedelta(seconds=time.monotonic() - started))
        return found

    def after_generation(state: State) -> None:
        # While finished generations are replayed, the file of the last one stays.
        if state.generation >= run.before.kept:
            checkpoint.write(run.checkpoint, state.as_dict(), run.identity)
            logging.getLogger("__main__").debug("Wrote checkpoint to %s", run.checkpoint)
        run.generations = max(run.generations, state.generation)
        _tell(run, state)

    with safe_point.running(), _recorded(run), contextlib.closing(run.scoring):
        return evolve(
            request.settings,
            run.description,
            scores,
            max_ngen=request.max_ngen,
            after_generation=after_generation,
            resume=resume,
        )


def _tell(run: _Run, state: State) -> None:
    """Tell the watcher what a generation has brought."""
    run.found.add(state.population, state.halloffame)
    for name, count in run.found.not_finite.items():
        if name not in run.named:
            run.named.add(name)
            run.view.says(
                f"warning: objective {one_line(name)} scores NaN or infinite for"
                f" {count} individual{'s'[: count != 1]} up to generation {state.generation};"
                " such scores are kept, as BluePyOpt keeps them"
            )
    run.view.generation(state, run.found)


@contextlib.contextmanager
def _recorded(run: _Run) -> Iterator[None]:
    """Keep in the run directory what is run, and how it ended."""
    request = run.request
    earlier = run.directory.read_about() or {}
    run.about = {
        "name": one_line(request.name),
        "model": {
            "digest": run.bundle.digest,
            "directory": str(request.model.absolute()),
            "evaluator": run.bundle.spec.as_json(),
            "exclude": list(request.exclude),
        },
        "versions": engines_for_model.shown_versions(run.bundle),
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
        "generations_done": run.generations,
    }
    run.directory.write_about(run.about)
    state = "failed"
    try:
        yield
        state = "finished"
    except (KeyboardInterrupt, Interrupted):
        state = "interrupted"
        raise
    except FleetError:
        # A stop before anything was finished is an error of its own, but a stop.
        state = "interrupted" if safe_point.asked() else state
        raise
    finally:
        if run.scoring.simulated or earlier.get("state") != "finished":
            run.about["ended"] = time.time()
        else:
            run.about["ended"] = earlier.get("ended")
        run.about["state"] = state
        run.about["generations_done"] = run.generations
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


def _finish(run: _Run, state: State) -> Path | None:
    if not run.request.report:
        return None
    best = [float(value) for value in run.found.best]
    directory = run.directory
    shown = {"generation": state.generation, "best": best}
    if run.about["reported"] != shown or run.scoring.simulated or not directory.report.exists():
        simulate_traces(directory, run.bundle, best, run.view.says)
        run.view.says("writing the report")
        write_report(directory.path)
        run.about["reported"] = shown
        directory.write_about(run.about)
    return directory.report
