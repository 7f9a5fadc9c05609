"""BluePyOpt's checkpoint: written whole, every generation, and checked before it is read.

The file is a pickle of the dictionary that BluePyOpt's own tools read, with one key
more, ``neurofleet``, which says what it belongs to. A pickle is code: a file that
somebody else could have written is not opened.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neurofleet.errors import RunDirectoryError
from neurofleet.rundir import write_whole

#: What BluePyOpt's tools read from a checkpoint (``bluepyopt.deapext.algorithms``).
KEYS = (
    "population",
    "generation",
    "parents",
    "halloffame",
    "history",
    "logbook",
    "rndstate",
    "param_names",
)


def write(path: Path, state: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Write a checkpoint.

    Parameters
    ----------
    path : Path
    state : mapping
        ``KEYS``.
    identity : mapping
        Model, versions and settings that the state belongs to.
    """
    write_whole(path, pickle.dumps({**state, "neurofleet": dict(identity)}, protocol=4))


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint of BluePyOpt's or ours.

    Raises
    ------
    RunDirectoryError
        It is missing, damaged, somebody else's, or of a BluePyOpt that does not fit.
    """
    refuse_foreign_pickle(path)
    import bluepyopt

    try:
        with path.open("rb") as file:
            state = pickle.load(file)
        missing = [key for key in KEYS if key not in state]
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        return dict(state)
    except Exception as error:  # unpickling raises anything
        raise RunDirectoryError(
            f"the checkpoint {str(path)!r} is damaged or not of BluePyOpt"
            f" {bluepyopt.__version__} ({type(error).__name__}: {error}); it was left as it is",
            remedy="Move it away; the scores in the run directory are enough to go on",
        ) from error


def refuse_foreign_pickle(path: Path) -> None:
    """Raise unless the file is there and is this user's or root's."""
    try:
        owner = path.stat().st_uid
    except OSError as error:
        raise RunDirectoryError(
            f"the file {str(path)!r} cannot be read ({error.strerror})",
            remedy="Name an existing file",
        ) from error
    if owner not in (os.getuid(), 0):
        raise RunDirectoryError(
            f"{str(path)!r} belongs to another user; a pickle is code and is not opened",
            remedy="Copy it yourself if you trust who wrote it",
        )


def belongs_elsewhere(
    state: Mapping[str, Any], identity: Mapping[str, Any], param_names: list[str]
) -> str | None:
    """Return why a checkpoint cannot be gone on from or replaced here, ``None`` if it can."""
    own = state.get("neurofleet")
    if list(state["param_names"]) != param_names:
        return "it has other parameters, so it is another model's"
    if own is None:
        return "it was written by BluePyOpt itself"
    if own["model"] != identity["model"]:
        return f"it is of model {own['model'][:12]}, this is model {identity['model'][:12]}"
    for name, version in identity["versions"].items():
        if own["versions"].get(name) != version:
            return f"it was made with {name} {own['versions'].get(name)}, here is {version}"
    differing = [
        f"{name} {own['settings'].get(name)}"
        for name, value in identity["settings"].items()
        if own["settings"].get(name) != value
    ]
    return f"it was made with {', '.join(differing)}" if differing else None
