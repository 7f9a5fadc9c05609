"""The numbers are upstream's: its own unmodified script, serially, against ours."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from e2e.running import PageRun, course, differences
from neurofleet.workloads import l5pc

#: A serial run of upstream's takes about 13 s an individual on one core.
LIMIT_S = 900.0

pytestmark = pytest.mark.timeout(3 * LIMIT_S)


@pytest.fixture(scope="module")
def upstream_example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Upstream's example, as its source distribution has it, with compiled mechanisms."""
    example = tmp_path_factory.mktemp("upstream") / "l5pc"
    shutil.copytree(l5pc.fetch(print), example)
    nrnivmodl = Path(sys.executable).parent / "nrnivmodl"
    subprocess.run([nrnivmodl, "mechanisms"], cwd=example, check=True, capture_output=True)
    return example


def upstreams_course(example: Path, options: tuple[str, ...], where: Path) -> dict[str, Any]:
    """Run upstream's script serially in an empty directory; return what it comes to."""
    where.mkdir()  # not the example's own: NEURON would load the mechanisms twice
    subprocess.run(
        [sys.executable, example / "opt_l5pc.py", "--start", *options, "--checkpoint=check.pkl"],
        cwd=where, check=True, timeout=LIMIT_S,
    )  # fmt: skip
    return course(where / "check.pkl")


def test_l5pc_on_two_engines_gives_upstreams_bits(
    upstream_example: Path, page_run: PageRun, tmp_path: Path
) -> None:
    options = ("--seed=42", "--offspring_size=1", "--max_ngen=2")
    expected = upstreams_course(upstream_example, options, tmp_path / "upstream")
    assert expected["generation"] == 2
    assert differences(course(page_run.checkpoint), expected) == []
