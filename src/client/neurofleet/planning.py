"""What a run would do, found out as the run would, without simulating or writing anything."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from neurofleet import engines_for_model, going_on
from neurofleet.engine import tasks
from neurofleet.errors import RunDirectoryError
from neurofleet.model import pack
from neurofleet.request import Request
from neurofleet.rundir import RunDirectory
from neurofleet.store import FILE, Store


def plan(request: Request) -> dict[str, Any]:
    """Return what would be run.

    The model is compiled and its evaluator made, which only the model cache keeps.

    Raises
    ------
    FleetError
        The run would be refused, for this reason.
    """
    bundle = pack(request.model, request.spec, exclude=request.exclude)
    directory = request.directory_for(bundle.digest)
    ours = going_on.identity(bundle, request.settings)
    if directory.path.exists():
        directory.create()
        going_on.refuse_other_run(directory, ours)
    else:
        _refuse_unwritable(directory.path)
    try:
        description = engines_for_model.describe(bundle)
    finally:
        tasks.close()
    found = going_on.look(
        request,
        directory,
        ours,
        lambda: [parameter.name for parameter in description.parameters],
        has_scores=_has_scores(directory, ours),
    )
    return {
        "schema_version": 1,
        "name": request.name,
        "model": str(request.model),
        "digest": bundle.digest,
        "evaluator": request.spec.as_json(),
        "parameters": [parameter.name for parameter in description.parameters],
        "objectives": list(description.objectives),
        "units": [unit.name for unit in description.units],
        "settings": asdict(request.settings),
        "max_ngen": request.max_ngen,
        "generations_done": found.generations,
        "engines": asdict(request.engines),
        "run_dir": str(directory.path),
    }


def _has_scores(directory: RunDirectory, ours: Mapping[str, Any]) -> bool:
    file = directory.path / FILE
    if not file.exists() or file.stat().st_size == 0:
        return False
    with Store(directory.path, ours["model"], ours["versions"]) as store:
        return bool(store.durations())


def _refuse_unwritable(directory: Path) -> None:
    """Raise unless a directory that is not there could be made."""
    above = next(parent for parent in directory.parents if parent.exists())
    if above.is_dir() and os.access(above, os.W_OK | os.X_OK):
        return
    why = os.strerror(errno.EACCES if above.is_dir() else errno.ENOTDIR)
    raise RunDirectoryError(
        f"the run directory {str(directory)!r} cannot be used ({why})",
        remedy="Make room, mend its permissions, or name another with --run-dir",
    )
