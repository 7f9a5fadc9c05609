"""``neurofleet``: its commands, the smaller ones here."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neurofleet.cli.common import (
    CONTEXT,
    Commands,
    engine_options,
    examples,
    run,
    run_call,
    run_options,
    typed,
    version_option,
)
from neurofleet.cli.guarding import cost, extend
from neurofleet.cli.items import map_command
from neurofleet.cli.slurm import slurm_command
from neurofleet.cli.workloads import run_command
from neurofleet.errors import UsageError
from neurofleet.files import dump_json, json_value

if TYPE_CHECKING:
    from neurofleet.backends.choice import EngineChoice


@click.group(
    cls=Commands,
    context_settings=CONTEXT,
    epilog=examples(
        "opt_l5pc --start --ipyparallel --offspring-size 4     BluePyOpt's L5PC example",
        "neurofleet optimise my_model --evaluator my_evaluator:create",
        "neurofleet report neurofleet-runs/my_model-seed42-offspring10",
        "neurofleet map mymodule:simulate items.jsonl",
        "neurofleet --head user@head run hello",
    ),
)
@version_option
@click.option(
    "--head",
    metavar="USER@HOST[:PROGRAM]",
    expose_value=False,
    help="Run the command on this machine, through ssh; comes first. Paths are that machine's.",
)
def cli() -> None:
    """Fit neuron models on all the machines that you have, and lose nothing."""


@cli.command(
    epilog=examples(
        "neurofleet optimise my_model --evaluator my_evaluator:create",
        "neurofleet optimise my_model --search code --evaluator my_evaluator:create \\",
        '    --kwargs \'{"etype": "cAC"}\' --offspring-size 100 --max-ngen 50',
    )
)
@click.argument("model", metavar="MODEL_DIR", type=click.Path(path_type=Path))
@click.option(
    "--evaluator",
    required=True,
    metavar="MODULE:CALLABLE",
    help="What returns the model's BluePyOpt evaluator.",
)
@click.option(
    "--search",
    multiple=True,
    metavar="DIR",
    help="Directory inside MODEL_DIR to import from; repeatable. [default: its top]",
)
@click.option(
    "--kwargs",
    default="{}",
    metavar="JSON",
    help="Keyword arguments of the callable, as a JSON object.",
)
@click.option(
    "--mechanisms",
    multiple=True,
    metavar="DIR",
    help="Directory inside MODEL_DIR with .mod files; repeatable."
    " [default: mechanisms, mod, modfiles, its top, or the only one]",
)
@click.option(
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    help="Files of MODEL_DIR that the evaluator does not read; repeatable.",
)
@click.option(
    "--offspring-size", type=int, default=10, show_default=True, help="Individuals per generation."
)
@click.option(
    "--max-ngen",
    type=int,
    default=10,
    show_default=True,
    help="Generations in all; raise it later to go on.",
)
@click.option("--seed", type=int, default=42, show_default=True)
@click.option("--selector", type=click.Choice(["IBEA", "NSGA2"]), default="IBEA", show_default=True)
@click.option(
    "--eta", type=float, default=10.0, show_default=True, help="Crowding of crossover and mutation."
)
@click.option(
    "--mutpb", type=float, default=1.0, show_default=True, help="Probability of mutation."
)
@click.option(
    "--cxpb", type=float, default=1.0, show_default=True, help="Probability of crossover."
)
@click.option(
    "--checkpoint",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="BluePyOpt's checkpoint. [default: checkpoint.pkl in the run directory]",
)
@click.option(
    "--continu",
    is_flag=True,
    help="Go on with a run or a checkpoint, which must exist; also with one of BluePyOpt's own.",
)
@engine_options
@run_options
@click.option("--name", help="Name for people. [default: MODEL_DIR's]")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print what would be run, or why it would be refused, and stop.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def optimise(
    model: Path,
    evaluator: str,
    search: tuple[str, ...],
    kwargs: str,
    mechanisms: tuple[str, ...],
    exclude: tuple[str, ...],
    offspring_size: int,
    max_ngen: int,
    seed: int,
    selector: str,
    eta: float,
    mutpb: float,
    cxpb: float,
    checkpoint: Path | None,
    continu: bool,
    choice: EngineChoice,
    run_dir: str | None,
    unit_timeout: float | None,
    verify: int,
    allow_failing: bool,
    report: bool,
    name: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Optimise a model with BluePyOpt.

    The same command again goes on where the last one stopped; nothing is simulated twice.
    It can be spelt optimize.
    """
    from neurofleet.cli.optimising import optimise_and_tell
    from neurofleet.evolution import Settings
    from neurofleet.model import EvaluatorSpec
    from neurofleet.request import Request

    request = Request(
        name=name or Path(os.path.realpath(model)).name,
        model=model,
        spec=EvaluatorSpec(evaluator, search or (".",), _json_object(kwargs), mechanisms or None),
        settings=Settings(seed, offspring_size, selector, eta, mutpb, cxpb),
        max_ngen=max_ngen,
        engines=choice,
        run_dir=Path(run_dir) if run_dir else None,
        checkpoint=checkpoint,
        go_on=continu,
        unit_timeout_s=unit_timeout,
        verify=verify,
        allow_failing=allow_failing,
        report=report,
        command=typed(),
        exclude=exclude,
    )
    optimise_and_tell(request, dry_run=dry_run, as_json=as_json)


@cli.command(epilog=examples("neurofleet report neurofleet-runs/l5pc-seed42-offspring4"))
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--traces", is_flag=True, help="Simulate the best individual's voltage traces first.")
def report(run_dir: Path, traces: bool) -> None:
    """Write RUN_DIR/report.html, also of a run that is not finished."""
    from neurofleet.cli.optimising import trace_best
    from neurofleet.report import write_report

    if traces:
        trace_best(run_dir)
    click.echo(write_report(run_dir))


@cli.command(
    epilog=examples(
        "neurofleet repair neurofleet-runs/l5pc-seed42-offspring4",
        "neurofleet repair neurofleet-runs/l5pc-seed42-offspring4 --without-host worker3",
    )
)
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option(
    "--without-host",
    multiple=True,
    metavar="HOST",
    help="Drop what this machine scored, which --verify has found to differ; repeatable.",
)
def repair(run_dir: Path, without_host: tuple[str, ...]) -> None:
    """Set a damaged store aside and keep every score in it that is sound."""
    from neurofleet.repair import repair as repair_store

    aside, kept, lost = repair_store(run_dir, without_host)
    click.echo(f"kept {kept} scores, dropped {lost}; the store as it was is {aside}")


@cli.command(
    epilog=examples(
        "neurofleet status                     all runs that were started here",
        "neurofleet status neurofleet-runs/l5pc-seed42-offspring4",
    )
)
@click.argument("directory", metavar="[DIR]", default=".", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def status(directory: Path, as_json: bool) -> None:
    """Tell how far the run in DIR is, or all runs in it, the newest first.

    A run that is under way has a line for each unit or item that an engine works on.
    """
    from neurofleet import overview

    told = overview.look(directory)
    if as_json:
        click.echo(dump_json(told, indent=2))
        return
    for line in overview.lines(told):
        click.echo(line)


@cli.command(epilog=examples("neurofleet completion bash >> ~/.bashrc"))
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes a shell complete the commands."""
    from click.shell_completion import get_completion_class

    from neurofleet.cli.l5pc import opt_l5pc

    for program, command in (("neurofleet", cli), ("opt_l5pc", opt_l5pc)):
        kind = get_completion_class(shell)
        assert kind is not None, f"click completes no {shell}"
        variable = f"_{program.upper()}_COMPLETE"
        click.echo(kind(command, {}, program, variable).source())


cli.add_command(cost)
cli.add_command(extend)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json_value(text)
    except ValueError as error:
        raise UsageError(
            f"--kwargs is not JSON ({error})", remedy='Give an object such as {"etype": "cNAD_ltb"}'
        ) from error
    if not isinstance(value, dict):
        raise UsageError(
            f"--kwargs is a JSON {type(value).__name__}, not an object",
            remedy='Give an object such as {"etype": "cNAD_ltb"}',
        )
    return value


cli.add_command(map_command)
cli.add_command(run_command)
cli.add_command(slurm_command)


def main() -> None:
    """Entry point of ``neurofleet``."""
    if sys.argv[1:2] and sys.argv[1].partition("=")[0] == "--head":
        # Not click's: it would take the first -- and --help out of what is to run there.
        run_call(lambda: _on_head(sys.argv[1:]))
    run(cli, "neurofleet")


def _on_head(words: list[str]) -> int:
    """Run what follows ``--head`` there."""
    from neurofleet.cli.head import run_on_head, split

    return run_on_head(*split(words, commands=(*cli.commands, *Commands.SPELLINGS)))
