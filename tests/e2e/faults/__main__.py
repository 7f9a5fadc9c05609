"""``make chaos``: a campaign of faults against a fleet that is up on this computer."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

from e2e.booted import MACHINES, Fleet
from e2e.faults.campaign import EVOLUTION, Ended, broken_promises, campaign, line, table
from e2e.faults.kinds import FAULTS


def main() -> int:
    """Parse, call, print."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=200, help="how many (%(default)s)")
    parser.add_argument("--runs", type=int, default=20, help="over so many runs (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="decides which, when, whom")
    parser.add_argument(
        "--kinds", nargs="+", choices=sorted(FAULTS), metavar="KIND",
        help=f"which (all but the longest): {', '.join(sorted(FAULTS))}",
    )  # fmt: skip
    parser.add_argument(
        "--generations", type=int, default=EVOLUTION.generations,
        help="of each run (%(default)s): more for faults that last longer",
    )  # fmt: skip
    options = parser.parse_args()
    if min(options.faults, options.runs, options.generations) < 1:
        parser.error("give at least one fault, one run and one generation")
    if options.faults < options.runs:
        parser.error(f"{options.faults} faults are too few for {options.runs} runs: give --runs")
    if not MACHINES.exists():
        parser.error("no fleet is up on this computer; boot one with: make fleet")
    kinds = [fault for fault in FAULTS.values() if fault.weight]
    if options.kinds:
        kinds = [FAULTS[name] for name in options.kinds]
    evolution = dataclasses.replace(EVOLUTION, generations=options.generations)
    ended: list[Ended] = []
    with tempfile.TemporaryDirectory(prefix="neurofleet-chaos-") as folder:
        log = Path(folder)
        runs = campaign(
            Fleet(log), kinds, options.faults, options.runs, options.seed, log, evolution
        )
        try:
            for run in runs:
                ended.append(run)
                print(f"run {len(ended)}: {line(run)}", flush=True)
        finally:  # an hour's work, whatever ends it
            if ended:
                print(table(ended))
    broken = broken_promises(ended)
    for promise in broken:
        print(f"error: {promise}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
