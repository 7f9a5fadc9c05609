"""What a run directory holds already, and whether a run may go on from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from neurofleet import checkpoint, engines_for_model
from neurofleet.errors import RunDirectoryError
from neurofleet.evolution import Settings
from neurofleet.model import Bundle
from neurofleet.request import Request
from neurofleet.rundir import RunDirectory


@dataclass(frozen=True)
class Found:
    """What there is of a run.

    Attributes
    ----------
    resume : mapping or None
        A checkpoint's content to go on from; ``None`` if the store replays the run.
    generations : int
        That are complete.
    kept : int
        Generations of the checkpoint's file, if it is this run's: it is not replaced by one
        with fewer.
    """

    resume: dict[str, Any] | None
    generations: int
    kept: int


def identity(bundle: Bundle, settings: Settings) -> dict[str, Any]:
    """Return what a run directory and a checkpoint must match to be a run's."""
    versions = engines_for_model.versions_of(bundle)
    return {"model": bundle.digest, "versions": versions, "settings": asdict(settings)}


def refuse_other_run(directory: RunDirectory, ours: Mapping[str, Any]) -> list[str]:
    """Raise if the run directory is another model's, other settings', other versions'.

    Parameters
    ----------
    directory : RunDirectory
    ours : mapping
        What ``identity`` returns.

    Returns
    -------
    list of str
        What a person should know of it, if it may be gone on from.
    """
    about = directory.read_about()
    if about is None:
        return []
    where = f"the run directory {str(directory.path)!r}"
    elsewhere = "Name another with --run-dir; nothing was changed"
    theirs, digest = about.get("model", {}).get("digest", ""), ours["model"]
    if theirs != digest:
        raise RunDirectoryError(
            f"{where} is of model {theirs[:12] or 'unknown'}, this is model {digest[:12]}"
            " (files, evaluator or arguments differ)",
            remedy=elsewhere,
        )
    remarks = []
    for what in ("settings", "versions"):
        recorded = about.get(what, {})
        for name, value in ours[what].items():
            if recorded.get(name) is None:
                remarks.append(
                    f"{where} does not say with which {name} it was run, this is {value}"
                )
            elif recorded[name] != value:
                raise RunDirectoryError(
                    f"{where} was run with {name} {_shown(recorded[name])}, this is"
                    f" {_shown(value)}",
                    remedy=elsewhere,
                )
    return remarks


def look(
    request: Request,
    directory: RunDirectory,
    ours: Mapping[str, Any],
    param_names: Callable[[], list[str]],
    *,
    has_scores: bool,
) -> Found:
    """Return what there is to go on from; change nothing.

    A run goes on from the store, which replays it without a simulation. A checkpoint
    is needed only where there is no store: BluePyOpt's own, or one that was copied.

    Raises
    ------
    RunDirectoryError
        The checkpoint is another run's, there has to be something to go on from and is
        not, or there are more generations than were asked for.
    """
    path = (request.checkpoint or directory.checkpoint).absolute()
    if path.parent != directory.path and not path.parent.is_dir():
        raise RunDirectoryError(
            f"there is no directory {str(path.parent)!r} to write the checkpoint into",
            remedy="Make it, or name another file with --checkpoint",
        )
    about = directory.read_about() or {}
    generations = int(about.get("generations_done") or 0)
    if not path.exists():
        if request.go_on and not has_scores:
            raise RunDirectoryError(
                f"there is nothing to continue: no checkpoint {str(path)!r} and no scores in"
                f" {str(directory.path)!r}",
                remedy=request.begin,
            )
        _refuse_fewer(directory.path, generations, request.max_ngen)
        return Found(None, generations, 0)
    state, names = checkpoint.read(path), param_names()
    why = checkpoint.belongs_elsewhere(state, ours, names)
    if why is None:
        needed = state["neurofleet"].get("continued") or (request.go_on and not has_scores)
    else:
        of_bluepyopt = "neurofleet" not in state and list(state["param_names"]) == names
        if not (of_bluepyopt and request.go_on):
            other = "Name another with --checkpoint"
            raise RunDirectoryError(
                f"the checkpoint {str(path)!r} is not this run's: {why}; it was left as it is",
                remedy=f"Go on from it with --continu, or n{other[1:]}" if of_bluepyopt else other,
            )
        needed = True
    kept = int(state["generation"])
    _refuse_fewer(directory.path, max(generations, kept), request.max_ngen)
    return Found(state if needed else None, max(generations, kept), kept)


def _refuse_fewer(directory: Path, generations: int, wanted: int) -> None:
    """Raise where a run would be wound back."""
    if generations > wanted:
        raise RunDirectoryError(
            f"the run in {str(directory)!r} has {generations} generations; --max-ngen {wanted} asks"
            " for fewer: nothing was changed",
            remedy=f"Give --max-ngen of at least {generations}, or another --run-dir",
        )


def _shown(value: Any) -> str:
    """Return a setting so that a text differs from the number that looks like it."""
    return repr(value) if isinstance(value, str) and value.isdigit() else f"{value}"
