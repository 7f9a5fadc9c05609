"""The best individual's voltage traces, for the report: simulated once more, here."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from neurofleet.engine.warm_process import WarmProcess
from neurofleet.files import dump_json, read_object
from neurofleet.model import Bundle
from neurofleet.rundir import GO_ON, RunDirectory, write_file

#: Limit for simulating them [s].
TRACES_LIMIT_S = 3600.0


def simulate_traces(
    directory: RunDirectory, bundle: Bundle, parameters: list[float], says: Callable[[str], None]
) -> None:
    """Simulate one individual once more and keep its voltage traces for the report.

    Raises
    ------
    RunDirectoryError
        There is no room for them.
    """
    with contextlib.suppress(OSError, ValueError, KeyError):
        if read_object(directory.best)["parameters"] == parameters:
            return
    says("simulating the best individual's traces for the report")
    warm = WarmProcess(bundle.digest)
    try:
        status, told = warm.responses(parameters, TRACES_LIMIT_S)
    finally:
        warm.close()
    if status != "ok":
        says(f"the traces could not be simulated: {told}")
    found: dict[str, Any] = {"reason": told}
    if status == "ok":
        found = {"responses": told, "reason": "", "not_finite": _not_finite(told)}
    text = dump_json({"parameters": parameters, "status": status, **found})
    write_file(directory.best, text.encode(), remedy=GO_ON)


def _not_finite(responses: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, int]:
    """Return how many values of each recording are NaN or infinite, which JSON has not."""
    counts = {
        name: sum(not math.isfinite(value) for values in recording for value in values)
        for name, recording in responses.items()
    }
    return {name: count for name, count in counts.items() if count}
