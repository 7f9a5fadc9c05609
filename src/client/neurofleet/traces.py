"""The best individual's voltage traces, for the report: simulated once more, here."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable

from neurofleet.engine.warm_process import WarmProcess
from neurofleet.files import read_object
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
    found = {"responses": told, "reason": ""} if status == "ok" else {"reason": told}
    text = json.dumps({"parameters": parameters, "status": status, **found})
    write_file(directory.best, text.encode(), remedy=GO_ON)
