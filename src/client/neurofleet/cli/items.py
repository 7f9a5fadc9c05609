"""``neurofleet map``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from neurofleet.cli.common import engine_options, examples
from neurofleet.errors import WorkloadFailed, debugging
from neurofleet.files import dump_json

if TYPE_CHECKING:
    from neurofleet.backends.choice import EngineChoice
    from neurofleet.workloads.map_items import Mapped


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
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="What an item draws from random and numpy.random is seeded by this and its number.",
)
@click.option(
    "--item-timeout",
    metavar="S",
    help="Limit of one item, or none. [default: 20 x the longest that ended, at least 120]",
)
@click.option(
    "--keep-results",
    is_flag=True,
    help="Keep the results that are there although the code has changed since.",
)
@click.option(
    "--retry-failed",
    is_flag=True,
    help="Compute only items that have failed, also with changed code; keep all results.",
)
@click.option(
    "--files-limit",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    metavar="MB",
    help="The most that is brought back of the files that one item wrote on another machine.",
)
@click.option("-v", "--verbose", is_flag=True, help="Show what items print.")
@engine_options
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def map_command(
    function: str,
    items: Path,
    output: Path | None,
    run_dir: Path | None,
    seed: int,
    item_timeout: str | None,
    keep_results: bool,
    retry_failed: bool,
    files_limit: int,
    verbose: bool,
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

    with ItemWatcher(function) as watcher, contextlib.redirect_stdout(sys.stderr):
        request = Request(
            function=function,
            items=items,
            engines=choice,
            run_dir=run_dir,
            output=output,
            limit_s=item_timeout,
            seed=seed,
            files_bytes=files_limit * 1_000_000,
            keep_results=keep_results,
            retry_failed=retry_failed,
            show=watcher.printed if verbose else None,
        )
        mapped = map_items(request, watcher, lambda mapped: _tell(mapped, watcher.says))
    outcome = mapped.outcome
    if as_json:
        told = {
            "schema_version": 1,
            "results": str(mapped.results),
            "items": len(outcome.results),
            "computed": outcome.computed,
            "from_store": outcome.from_store,
            "failed": [number + 1 for number in outcome.failed],
            "pending": [number + 1 for number in outcome.pending],
            "not_finite": mapped.not_finite,
        }
        click.echo(dump_json(told, indent=2))
    if outcome.failed:
        raise _failed(mapped, items)


def _tell(mapped: Mapped, say: Callable[[str], None]) -> None:
    """Say what there is, at any end."""
    outcome = mapped.outcome
    pending = f", {len(outcome.pending)} not computed" if outcome.pending else ""
    say(
        f"{outcome.computed} computed, {outcome.from_store} from the run directory{pending};"
        f" results: {mapped.results}"
    )
    if mapped.not_finite:
        say(
            f"numbers that are NaN or infinite: {mapped.not_finite} in {mapped.with_not_finite} of"
            f' {len(outcome.results)} results; null in that file, and named in "not_finite"'
        )
    for number, names in list(outcome.left_behind.items())[:5]:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        say(
            f"not brought back of item {number + 1}: {', '.join(names[:5])}{more}"
            " (--files-limit sets how much is)"
        )
    if len(outcome.left_behind) > 5:
        say(f"nor files of {len(outcome.left_behind) - 5} more items; {mapped.results} names them")


def _failed(mapped: Mapped, items: Path) -> WorkloadFailed:
    """Return the error that items have failed, which names the first one's cause."""
    outcome = mapped.outcome
    first = outcome.failed[0]
    ended, line = outcome.results[first].ended, mapped.lines[first]
    where = f" (line {line} of {items})" if line != first + 1 else ""
    remedy = 'Their results have an "error"; the same command again computes only them'
    if debugging():
        click.echo(ended.traceback, err=True)
    elif ended.traceback:
        remedy += "; NEUROFLEET_DEBUG=1 shows the whole traceback"
    return WorkloadFailed(
        f"{len(outcome.failed)} of {len(outcome.results)} items failed; the first, item"
        f" {first + 1}{where}: {ended.reason}",
        remedy=remedy,
    )
