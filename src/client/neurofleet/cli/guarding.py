"""``neurofleet cost`` and ``neurofleet extend``: what a fleet costs, and how long it is there."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from neurofleet.cli.common import examples


@click.command(
    epilog=examples(
        "neurofleet cost",
        "neurofleet cost --run-dir neurofleet-runs/l5pc-seed42-offspring4 --json",
    )
)
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Run whose evaluations are counted. [default: the newest one here]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--brief", is_flag=True, help="Print what runs and what it costs in one line.")
def cost(run_dir: Path | None, as_json: bool, brief: bool) -> None:
    """Say what this fleet on AWS has cost and costs, by pool, and per thousand evaluations.

    Without traffic and tax, by the prices of the day on which each machine was made.
    """
    from neurofleet import costs

    fleet, machines = costs.read()
    if brief:
        click.echo(costs.in_one_line(fleet, machines))
        return
    now = time.time()
    pools = costs.by_pool(machines, now)
    run = run_dir or costs.newest_run(Path())
    evaluations = costs.per_thousand(machines, run) if run else None
    alive = [machine for machine in machines if machine.ended is None]
    total: dict[str, Any] = {
        "hourly_usd": costs.total((machine.hourly_usd, 1.0) for machine in alive),
        "so_far_usd": costs.spent(machines, 0.0, now),
    }
    if as_json:
        content = {"schema_version": costs.SCHEMA_VERSION, "fleet": fleet, **total}
        content |= {"pools": [asdict(pool) for pool in pools], "run": evaluations}
        click.echo(json.dumps(content))
        return
    click.echo(f"{'pool':<12} {'machines':>8} {'USD/h':>9} {'USD so far':>11}  price")
    for pool in pools:
        row = (_usd(pool.hourly_usd, 4), _usd(pool.so_far_usd, 2))
        click.echo(f"{pool.pool:<12} {pool.machines:>8} {row[0]:>9} {row[1]:>11}  {pool.price_of}")
    row = (_usd(total["hourly_usd"], 4), _usd(total["so_far_usd"], 2))
    click.echo(f"{'all':<12} {len(alive):>8} {row[0]:>9} {row[1]:>11}")
    click.echo(costs.in_one_line(fleet, machines))
    if evaluations:
        click.echo(
            f"{evaluations['run']}: {evaluations['evaluations']} individuals evaluated in"
            f" {evaluations['hours']:.2f} h for {_usd(evaluations['usd'], 2)} USD,"
            f" {_usd(evaluations['usd_per_thousand'], 2)} USD per thousand"
        )


@click.command(
    epilog=examples("neurofleet extend 8       # eight hours from now", "neurofleet extend 0.5")
)
@click.argument("hours", type=float)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def extend(hours: float, as_json: bool) -> None:
    """Let the fleet end HOURS hours from now, instead of when it would."""
    from neurofleet.guards.expiry import shown
    from neurofleet.guards.extending import extend as put_off
    from neurofleet.guards.extending import require_all

    ends = put_off(hours)
    if as_json:
        moments = {name: end.until for name, end in ends.items()}
        click.echo(json.dumps({"schema_version": 1, "ends": moments}))
    else:
        for name, end in ends.items():
            click.echo(f"{name} ends at {shown(end.until) if end.until else 'an unknown time'}")
    require_all(ends)


def _usd(value: float | None, digits: int) -> str:
    return "unknown" if value is None else f"{value:.{digits}f}"
