"""``neurofleet run``: workloads that come with the program."""

from __future__ import annotations

import contextlib
import difflib
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from neurofleet.cli.common import Commands, engine_options, examples
from neurofleet.errors import UsageError
from neurofleet.files import dump_json

if TYPE_CHECKING:
    from neurofleet.backends.choice import EngineChoice


class _Workloads(Commands):
    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a workload, or say which ones there are."""
        try:
            return super().resolve_command(context, arguments)
        except click.exceptions.NoSuchCommand as error:
            near = difflib.get_close_matches(arguments[0], self.commands, n=1)
            nearest = f"Did you mean {near[0]}? " if near else ""
            raise UsageError(
                f"there is no workload {arguments[0]!r}",
                remedy=f"{nearest}There are {', '.join(sorted(self.commands))}; neurofleet map"
                " runs a function of your own",
            ) from error


@click.group(
    "run",
    cls=_Workloads,
    epilog=examples(
        "neurofleet run hello",
        "neurofleet run loo-forest",
        "neurofleet run loo-forest --csv houses.csv --target price",
    ),
)
def run_command() -> None:
    """Run a workload that comes with the program."""


@run_command.command(
    "hello",
    epilog=examples("neurofleet run hello", "neurofleet run hello --profile mylab --json"),
)
@engine_options
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write what the engines said, as JSON.",
)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def hello_command(
    choice: EngineChoice,
    output: Path | None,
    as_json: bool,
) -> None:
    """Have every engine say who it is: host, process, versions, "Hello, World"."""
    from neurofleet.workloads import hello

    with contextlib.redirect_stdout(sys.stderr):
        said = hello.hello(choice)
    if output is not None:
        hello.keep(said, output)
    if as_json:
        told = {"schema_version": 1, "engines": [asdict(one) for one in said]}
        click.echo(dump_json(told, indent=2))
        return
    for one in said:
        click.echo(str(one))


@run_command.command(
    "loo-forest",
    epilog=examples(
        "neurofleet run loo-forest                     the tutorial's data",
        "neurofleet run loo-forest --csv houses.csv --target price --drop address",
        "neurofleet run loo-forest --backend slurm --engines 8 --partition short --time 30",
    ),
)
@click.option(
    "--csv",
    "csv_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Your own data: a header line, then numbers. [default: 500 made observations]",
)
@click.option("--target", metavar="COLUMN", help="Column of FILE to predict.")
@click.option(
    "--drop", multiple=True, metavar="COLUMN", help="Column of FILE to leave out; repeatable."
)
@click.option(
    "--separator",
    metavar="CHAR",
    default=",",
    show_default=True,
    help="Between the columns of FILE: a character, or tab or space.",
)
@click.option(
    "--decimal",
    metavar="CHAR",
    default=".",
    show_default=True,
    help="Before the fraction of a number of FILE: . or ,",
)
@click.option(
    "--drop-missing",
    is_flag=True,
    help="Leave lines without a value out (empty, NA, nan, null), instead of refusing FILE.",
)
@click.option(
    "--held-out",
    type=int,
    metavar="N",
    help="Predict the first N observations. [default: all of FILE; 50 of the made data]",
)
@click.option("--trees", type=int, default=100, show_default=True, help="Trees of each forest.")
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="The forest of the Nth observation has random_state SEED + N - 1.",
)
@click.option(
    "--run-dir",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Run directory. [default: neurofleet-runs/loo-forest-...]",
)
@engine_options
@click.option("--json", "as_json", is_flag=True, help="Print measures and files as JSON.")
def loo_forest_command(
    csv_file: Path | None,
    target: str | None,
    drop: tuple[str, ...],
    separator: str,
    decimal: str,
    drop_missing: bool,
    held_out: int | None,
    trees: int,
    seed: int,
    run_dir: Path | None,
    choice: EngineChoice,
    as_json: bool,
) -> None:
    """Cross-validate a random forest regression, leaving one observation out at a time.

    Writes predictions.csv, measures.json and predicted.svg into the run directory. The same
    command again computes only what is missing.
    """
    if (csv_file is None) != (target is None):
        raise UsageError(
            "--csv and --target belong together", remedy="Name both a file and its column"
        )
    if csv_file is None and (drop or drop_missing or (separator, decimal) != (",", ".")):
        raise UsageError(
            "--drop, --drop-missing, --separator and --decimal are for a file",
            remedy="Give --csv and --target too",
        )
    from neurofleet.progress_items import ItemWatcher
    from neurofleet.workloads.loo_forest import NAME, Request, loo_forest

    request = Request(
        engines=choice,
        csv=csv_file,
        target=target or "",
        drop=drop,
        separator=separator,
        decimal=decimal,
        drop_missing=drop_missing,
        held_out=held_out,
        trees=trees,
        seed=seed,
        run_dir=run_dir,
    )
    with ItemWatcher(NAME) as watcher, contextlib.redirect_stdout(sys.stderr):
        report = loo_forest(request, watcher)
        watcher.says(f"{report.computed} computed, {report.from_store} from the run directory")
    if as_json:
        told = {
            "schema_version": 1,
            "measures": report.measures,
            "files": {name: str(path) for name, path in report.files.items()},
            "computed": report.computed,
            "from_store": report.from_store,
        }
        click.echo(dump_json(told, indent=2))
        return
    for name, value in report.measures.items():
        if math.isfinite(value):
            click.echo(f"{name} {value:.6g}")
        else:
            click.echo(f"{name} is not defined for {_observations(len(report.observed))}")
    for name, path in report.files.items():
        click.echo(f"{name} {path}")


def _observations(count: int) -> str:
    return "one observation" if count == 1 else f"{count} observations"
