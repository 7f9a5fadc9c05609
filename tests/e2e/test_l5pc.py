"""``opt_l5pc`` as BluePyOpt's page shows it, and the options that are broken upstream."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest

from e2e.running import Bench, Finished, PageRun, about, rows

pytestmark = pytest.mark.timeout(600)

LIMIT_S = 500.0
#: A screen that is not there, as after a lost ``ssh -X``.
NO_DISPLAY = {"DISPLAY": "localhost:99.0"}
REQUIREMENTS = Path(__file__).parents[2] / "requirements"


def opt_l5pc(bench: Bench, *options: str, env: dict[str, str] | None = None) -> Finished:
    return bench.start("opt_l5pc", *options, env=env).ended(LIMIT_S)


def test_command_of_bluepyopts_page_on_a_running_ipcluster_prints_its_lines(
    page_run: PageRun,
) -> None:
    bench, done, run = page_run.bench, page_run.done, page_run.directory
    assert page_run.engines_stayed, "the cluster was not the run's to end"
    assert "DEBUG:root:Using ipyparallel with 2 engines\n" in done.out
    assert "DEBUG:root:Doing start or continue\n" in done.out
    assert len(re.findall(r"^DEBUG:root:Generation took 0:0\d:\d\d", done.out, re.M)) == 2
    table = re.search(
        r"^INFO:__main__:gen\s+nevals\s+avg.*\n1\s+1\s+4980.91.*\n2\s+1", done.out, re.M
    )
    assert table, done.out
    assert about(run)["engines"] == {"backend": "profile", "count": 2}
    assert (run / "report.html").stat().st_size > 100_000
    again = opt_l5pc(bench, "--checkpoint", "check.pkl", "--offspring_size=1", "--continu")
    assert again.code == 0, again.err
    assert again.counts == (0, 8, 0)


def test_figures_and_compile_without_a_display_are_made(
    page_run: PageRun, bench: Bench, tmp_path: Path
) -> None:
    run = opt_l5pc(bench, "--compile", env=NO_DISPLAY)
    assert run.code == 0, run.err
    assert run.out.startswith("compiled the mechanisms of model ")
    shutil.copy(page_run.checkpoint, tmp_path / "c.pkl")
    done = opt_l5pc(bench, "--analyse", "--checkpoint=c.pkl", "--responses=r.pkl", env=NO_DISPLAY)
    assert done.code == 0, done.err
    assert (tmp_path / "r.pkl").exists()
    assert opt_l5pc(bench, "--diversity=c.pkl", env=NO_DISPLAY).code == 0
    names = {"release_responses", "release_objectives", "responses", "objectives", "evolution",
             "diversity"}  # fmt: skip
    figures = tmp_path / "figures"
    assert {path.stem for path in figures.iterdir()} == {f"l5pc_{name}" for name in names}
    for name in names:
        assert (figures / f"l5pc_{name}.eps").read_bytes().startswith(b"%!PS-Adobe")
        picture = matplotlib.image.imread(figures / f"l5pc_{name}.png")
        assert picture.std() > 0.01, f"{name} is blank"


def test_arbor_with_the_extra_installed_optimises(bench: Bench, tmp_path: Path) -> None:
    extra = tmp_path / "extra"
    subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
            "--require-hashes", "--no-deps", "--target", str(extra),
            "--requirement", str(REQUIREMENTS / "arbor.txt"),
        ],
        check=True,
    )  # fmt: skip
    done = opt_l5pc(
        bench, "--sim=arb", "--start", "--offspring-size=1", "--max-ngen=1", "--no-report",
        env={"PYTHONPATH": str(extra)},
    )  # fmt: skip
    assert done.code == 0, done.err
    units = rows(tmp_path / "neurofleet-runs" / "l5pc-arb-seed42-offspring1")
    assert {row.unit for row in units} == {"whole", "bAP", "Step1", "Step2", "Step3"}
    assert {row.status for row in units} == {"ok"}
