"""What people run on the head: our command, and programs that know nothing of neurofleet."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from e2e.booted import CLIENTS, HEAD, ROOT, WORKERS, Fleet, Made
from e2e.running import PageRun, course, differences, rows, scores
from neurofleet.workloads import l5pc

# The fleet is made before the first of them, which has a limit of its own.
pytestmark = pytest.mark.timeout(900, func_only=True)

RUN = "l5pc-seed42-offspring1"


def test_l5pc_of_make_fleet_is_bit_for_bit_the_local_one(made: Made, page_run: PageRun) -> None:
    fetched = ROOT / "neurofleet-runs" / "local" / "home" / "user" / RUN
    assert f"report: {fetched}/report.html\n" in made.said.err
    assert (fetched / "report.html").stat().st_size > 100_000
    assert not differences(course(fetched / "checkpoint.pkl"), course(page_run.checkpoint))
    assert {row.host for row in rows(fetched)} == set(WORKERS)
    assert scores(rows(fetched)) == scores(rows(page_run.directory))


def test_upstreams_own_script_runs_with_the_fleets_profile(fleet: Fleet, tmp_path: Path) -> None:
    # Upstream's evaluator is pickled with its paths, so the example is at one place everywhere.
    example = tmp_path / "l5pc"
    shutil.copytree(l5pc.fetch(print), example)
    nrnivmodl = Path(sys.executable).parent / "nrnivmodl"
    subprocess.run([nrnivmodl, "mechanisms"], cwd=example, check=True, capture_output=True)
    for host in (HEAD, *WORKERS):
        fleet.copy(example, host, "/opt/l5pc")
        fleet.done(host, "chmod -R go+rX /opt/l5pc")
    done = fleet.ssh(
        HEAD,
        "IPYTHON_PROFILE=neurofleet neurofleet-python /opt/l5pc/opt_l5pc.py --ipyparallel --start"
        " --seed 42 --offspring_size 1 --max_ngen 2 --checkpoint check.pkl -vv",
        user="user", limit_s=600,
    )  # fmt: skip
    assert done.code == 0, done.out + done.err
    assert "Using ipyparallel with 2 engines" in done.out
    assert re.search(r"^INFO:__main__:gen\s+nevals.*\n1\s+1\s+4980.91.*\n2\s+1", done.out, re.M), (
        done.out
    )


def test_tutorials_steps_work_with_no_further_setting(fleet: Fleet) -> None:
    fleet.copy(CLIENTS / "tutorial.py", HEAD, "/home/user", user="user")
    # In IPython with the fleet's profile, Client() is the fleet, as the tutorial writes it.
    ipython = "neurofleet-python -m IPython --profile=neurofleet tutorial.py --"
    said = fleet.done(HEAD, f"{ipython} {' '.join(WORKERS)}", user="user")
    assert said.endswith("all as on one machine")
