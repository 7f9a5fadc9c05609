"""``opt_l5pc``: BluePyOpt's ``opt_l5pc.py``, option for option, on neurofleet."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from neurofleet.cli.common import (
    CONTEXT,
    engine_options,
    examples,
    run,
    run_options,
    typed,
    version_option,
)
from neurofleet.errors import UsageError

if TYPE_CHECKING:
    from neurofleet.backends.choice import EngineChoice

logger = logging.getLogger()

#: Libraries that say more at DEBUG than anybody asked for.
TALKATIVE = ("matplotlib", "traitlets", "asyncio", "filelock", "PIL", "parso", "fontTools")


@click.command(
    context_settings=CONTEXT,
    epilog=examples(
        "opt_l5pc --start                             serially, as upstream",
        "opt_l5pc --start --ipyparallel               on all cores, or on a fleet",
        "opt_l5pc -vv --checkpoint check.pkl --offspring_size=50 --max_ngen=2 \\",
        "    --ipyparallel --start                    as BluePyOpt's page shows it",
        "opt_l5pc --checkpoint check.pkl --analyse    draw the figures",
        "",
        "Environment:",
        "L5PCBENCHMARK_USEIPYP  if set, as --ipyparallel",
        "IPYTHON_PROFILE        the profile whose engines are used",
        "BLUEPYOPT_SEED         the seed (taken as text, as upstream does)",
    ),
)
@version_option
@click.option(
    "--sim",
    type=click.Choice(["nrn", "arb"]),
    default="nrn",
    show_default=True,
    help="Simulator: NEURON or Arbor.",
)
@click.option("--start", is_flag=True, help="Run the optimisation, or what is left of it.")
@click.option("--continu", is_flag=True, help="Go on with a run or a checkpoint, which must exist.")
@click.option(
    "--checkpoint",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="BluePyOpt's checkpoint. [default: checkpoint.pkl in the run directory]",
)
@click.option(
    "--offspring-size", type=int, default=2, show_default=True, help="Individuals per generation."
)
@click.option("--max-ngen", type=int, default=2, show_default=True, help="Generations in all.")
@click.option(
    "--responses",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Pickle of responses that --analyse reads, or writes if it is not there.",
)
@click.option(
    "--analyse",
    is_flag=True,
    help="Draw the release model and the checkpoint's best into figures/.",
)
@click.option("--compile", "compile_again", is_flag=True, help="Compile the mechanisms anew.")
@click.option(
    "--hocanalyse",
    is_flag=True,
    help="Upstream's, for internal testing; needs bglibpy, which is not available.",
)
@click.option(
    "--seed", type=int, default=42, show_default=True, help="Seed; BLUEPYOPT_SEED overrides it."
)
@click.option(
    "--ipyparallel",
    is_flag=True,
    help="Use the engines of the running profile, or start one per core.",
)
@click.option(
    "--diversity",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Draw the diversity of a checkpoint's parameters into figures/.",
)
@click.option("-v", "--verbose", count=True, help="-v for INFO, -vv for DEBUG.")
@engine_options
@run_options
def opt_l5pc(
    sim: str,
    start: bool,
    continu: bool,
    checkpoint: Path | None,
    offspring_size: int,
    max_ngen: int,
    responses: Path | None,
    analyse: bool,
    compile_again: bool,
    hocanalyse: bool,
    seed: int,
    ipyparallel: bool,
    diversity: Path | None,
    verbose: int,
    choice: EngineChoice,
    run_dir: str | None,
    unit_timeout: float | None,
    verify: int,
    allow_failing: bool,
    report: bool,
) -> None:
    """Optimise BluePyOpt's layer 5 pyramidal cell.

    The same command again goes on where the last one stopped; nothing is simulated
    twice. Underscores work as well as dashes.
    """
    if verbose > 2:
        raise UsageError("-v was given more than twice", remedy="Use -v for INFO, -vv for DEBUG")
    _log_like_upstream(verbose)
    if hocanalyse:
        raise UsageError(
            "--hocanalyse needs bglibpy, which is not published any more",
            remedy="Leave it out; --analyse draws the same model",
        )
    if sim == "arb" and importlib.util.find_spec("arbor") is None:
        raise UsageError(
            "--sim arb needs Arbor, which is not installed here",
            remedy="Install neurofleet's extra: pip install 'neurofleet[arbor]'",
        )
    from neurofleet.workloads import l5pc

    if not (start or continu or analyse or compile_again or diversity):
        click.echo(
            "nothing to do: give --start, --continu, --analyse, --diversity or"
            " --compile (see --help)",
            err=True,
        )
        return
    spec = l5pc.spec(sim)
    model = l5pc.fetch(lambda text: click.echo(text, err=True))
    if compile_again:
        logger.debug("Doing compile")
        click.echo(l5pc.compile_mechanisms(model, spec))
    if start or continu:
        logger.debug("Doing start or continue")
        from neurofleet.cli.optimising import optimise_and_tell
        from neurofleet.evolution import Settings
        from neurofleet.request import Request

        parallel = ipyparallel or bool(os.environ.get("L5PCBENCHMARK_USEIPYP"))
        if click.get_current_context().get_parameter_source("backend") is ParameterSource.DEFAULT:
            local = choice.count is not None and choice.profile is None
            backend = ("local" if local else "auto") if parallel else "serial"
            choice = dataclasses.replace(choice, backend=backend)
        request = Request(
            name="l5pc" if sim == "nrn" else f"l5pc-{sim}",
            model=model,
            spec=spec,
            settings=Settings(os.environ.get("BLUEPYOPT_SEED", seed), offspring_size),
            max_ngen=max_ngen,
            engines=choice,
            run_dir=Path(run_dir) if run_dir else None,
            checkpoint=checkpoint,
            go_on=continu and not start,
            unit_timeout_s=unit_timeout,
            verify=verify,
            allow_failing=allow_failing,
            begin="Use --start in place of --continu",
            report=report,
            command=typed(),
        )
        optimise_and_tell(request, live=verbose == 0)
    if analyse:
        logger.debug("Doing analyse")
        for figure in l5pc.draw(model, spec, "analyse", checkpoint, responses):
            click.echo(figure)
        if checkpoint is None or not checkpoint.is_file():
            click.echo("No checkpoint file available run optimization first with --start")
    elif diversity is not None:
        logger.debug("Plotting Diversity")
        for figure in l5pc.draw(model, spec, "diversity", diversity, None):
            click.echo(figure)


def _log_like_upstream(verbose: int) -> None:
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[verbose]
    logging.basicConfig(level=level, stream=sys.stdout if verbose else sys.stderr)
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)


def main() -> None:
    """Entry point of ``opt_l5pc``."""
    run(opt_l5pc, "opt_l5pc")
