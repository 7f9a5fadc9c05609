"""BluePyOpt's own optimisers with ``Fleet.map``: the numbers are those of a serial run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

QUICK = Path(__file__).parents[1] / "models" / "quick"
LIMIT_S = 240.0
PROGRAM = """
import functools
import json
import sys

import bluepyopt
import quick_evaluator

from neurofleet import Fleet


def optimised(map_function):
    optimisation = bluepyopt.deapext.optimisationsCMA.DEAPOptimisationCMA(
        evaluator=quick_evaluator.create(), offspring_size=3, seed=1, map_function=map_function
    )
    _, best, log, _ = optimisation.run(max_ngen=2)
    found = [[list(map(float, one)), list(map(float, one.fitness.values))] for one in best]
    return {"best": found, "log": [{key: repr(row[key]) for key in row} for row in log]}


if __name__ == "__main__":
    if sys.argv[1] == "serial":
        result = optimised(map)
    else:
        with Fleet.local(2) as fleet:
            result = optimised(functools.partial(fleet.map, mechanisms="mechanisms"))
    with open("result.json", "w") as file:
        json.dump(result, file)
"""


def optimised(how: str, directory: Path) -> Any:
    """Run the program in a copy of the model, and return what it comes to."""
    shutil.copytree(QUICK, directory)
    (directory / "fit.py").write_text(PROGRAM)
    if how == "serial":
        nrnivmodl = Path(sys.executable).parent / "nrnivmodl"
        subprocess.run([nrnivmodl, "mechanisms"], cwd=directory, check=True, capture_output=True)
    words = [sys.executable, "fit.py", how]
    done = subprocess.run(
        words, cwd=directory, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads((directory / "result.json").read_text())


@pytest.mark.timeout(2 * LIMIT_S)
def test_cma_with_fleet_map_and_mechanisms_that_are_sent_gives_the_serial_bits(
    tmp_path: Path,
) -> None:
    fleet = optimised("fleet", tmp_path / "fleet")
    assert len(fleet["log"]) >= 2
    assert fleet == optimised("serial", tmp_path / "serial")
