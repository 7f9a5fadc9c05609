"""``neurofleet map``."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from neurofleet.cli.common import engine_options, examples
from neurofleet.errors import WorkloadFailed

if TYPE_CHECKING:
    from neurofleet.backends.choice import EngineChoice


@click.command(
    "map",
    epilog=examples(
        "seq 10000 > items.jsonl",
        "neurofleet map mymodule:simulate items.jsonl",
        "neurofleet map mymodule:simulate items.jsonl --engines 8 --output out.jsonl",
        "neurofleet map math:sqrt items.jsonl --profile mylab",
    ),
)
@click.argument("function", metavar="MODULE:FUNCTION")
@click.argument("items", metavar="ITEMS.jsonl", type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Results, one line for each item. [default: results.jsonl in the run directory]",
)
@click.option(
    "--run-dir",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Run directory. [default: neurofleet-runs/map-<function>-<items>]",
)
@click.option("--item-timeout", type=float, metavar="S", help="Limit of one item. [default: none]")
@engine_options
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def map_command(
    function: str,
    items: Path,
    output: Path | None,
    run_dir: Path | None,
    item_timeout: float | None,
    choice: EngineChoice,
    as_json: bool,
) -> None:
    """Call a function for every line of a file, on engines.

    Each line of ITEMS.jsonl is one JSON value, which the function gets; what it returns is
    a line of the results, in the same order. The module may be a file in this directory: its
    code is sent along. The same command again computes only what is missing or failed.
    """
    from neurofleet.progress_items import ItemWatcher
    from neurofleet.workloads.map_items import Request, map_items

    request = Request(function, items, choice, run_dir, output, item_timeout)
    with ItemWatcher(function) as watcher, contextlib.redirect_stdout(sys.stderr):
        outcome = map_items(request, watcher)
        watcher.says(
            f"{outcome.computed} computed, {outcome.from_store} from the run directory;"
            f" results: {request.results}"
        )
    failed = outcome.failed
    if as_json:
        told = {
            "schema_version": 1,
            "results": str(request.results),
            "items": len(outcome.results),
            "computed": outcome.computed,
            "from_store": outcome.from_store,
            "failed": failed,
        }
        click.echo(json.dumps(told, indent=2))
    if failed:
        first = outcome.results[failed[0]].ended.reason
        raise WorkloadFailed(
            f"{len(failed)} of {len(outcome.results)} items failed; the first, item"
            f" {failed[0] + 1}: {first}",
            remedy='Their results have an "error"; the same command again computes only them',
        )
