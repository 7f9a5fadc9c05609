"""``neurofleet-map.json``: what was run over items, and of which code the results are."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurofleet import __version__
from neurofleet.files import dump_json
from neurofleet.rundir import write_file

if TYPE_CHECKING:
    from neurofleet.items_wanted import ItemRun, Outcome
    from neurofleet.itemstore import ItemStore

SCHEMA_VERSION = 1
FILE = "neurofleet-map.json"


def write_record(directory: Path, wanted: ItemRun, store: ItemStore, outcome: Outcome) -> None:
    """Write what was run into the run directory, whole or not at all.

    Raises
    ------
    RunDirectoryError
        It cannot be written.
    """
    codes: list[dict[str, Any]] = []
    for number, since, code, results in store.codes():
        began = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(since)) if since else None
        codes.append(
            {
                "code": number,
                "since": began,
                "results": results,
                "modules": code.modules or {},
                "packages": code.packages or {},
            }
        )
    told = {
        "schema_version": SCHEMA_VERSION,
        "what": wanted.job.name,
        **wanted.about,
        "items_from": wanted.source or None,
        "items": len(outcome.results),
        "failed": len(outcome.failed),
        "pending": len(outcome.pending),
        "neurofleet": __version__,
        "codes": codes,
    }
    write_file(
        directory / FILE,
        (dump_json(told, indent=2) + "\n").encode(),
        remedy="Make room or mend the permissions, and run the same command again; what was"
        " computed is kept",
    )
