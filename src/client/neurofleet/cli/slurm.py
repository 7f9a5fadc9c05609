"""``neurofleet slurm``."""

from __future__ import annotations

import click

from neurofleet.cli.common import Commands, examples
from neurofleet.errors import UsageError


@click.group(
    "slurm",
    cls=Commands,
    epilog=examples("neurofleet slurm script --engines 64 -- neurofleet optimise my_model ..."),
)
def slurm_command() -> None:
    """Batch scripts for Slurm."""


@slurm_command.command(
    "script",
    context_settings={"allow_interspersed_args": False},
    epilog=examples(
        "neurofleet slurm script --engines 64 --partition normal --time 4:00:00 -- \\",
        "    opt_l5pc --start --offspring-size 64 --max-ngen 50 > l5pc.sh",
        "sbatch l5pc.sh",
    ),
)
@click.option("--engines", type=int, required=True, metavar="N", help="One core each.")
@click.option("--partition", metavar="NAME", help="As sbatch has it.")
@click.option("--time", metavar="TIME", help="Limit of one stretch: minutes, or as sbatch has it.")
@click.option("--account", metavar="NAME", help="As sbatch has it.")
@click.option(
    "--slurm-option", multiple=True, metavar="OPTION", help="Any option of sbatch; repeatable."
)
@click.option("--module", multiple=True, metavar="NAME", help="module load NAME; repeatable.")
@click.option(
    "--stop-before",
    type=int,
    default=120,
    show_default=True,
    metavar="S",
    help="Stop so long before the limit: as long as the longest unit or item takes.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def script_command(
    engines: int,
    partition: str | None,
    time: str | None,
    account: str | None,
    slurm_option: tuple[str, ...],
    module: tuple[str, ...],
    stop_before: int,
    command: tuple[str, ...],
) -> None:
    """Print a batch script that runs COMMAND on engines of one job, client included.

    Some time before its limit the job finishes what engines have begun, is queued again, and
    goes on where it stopped, until COMMAND is done.
    """
    from neurofleet.backends.slurm import SlurmRequest
    from neurofleet.backends.slurm_script import ScriptRequest, script

    if any(word.partition("=")[0] == "--head" for word in command):
        raise UsageError(
            "a batch script cannot go to another machine with --head",
            remedy="Leave it out of the command, or make the script there: neurofleet --head"
            " USER@HOST slurm script ...",
        )
    request = SlurmRequest(partition, time, account, slurm_option)
    click.echo(script(ScriptRequest(command, engines, request, module, stop_before)), nl=False)
