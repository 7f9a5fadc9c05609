"""The numbers are upstream's: its own unmodified script, serially, against ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from e2e.running import course, differences
from neurofleet.workloads import l5pc

#: A serial run of upstream's takes about 13 s an individual on one core.
LIMIT_S = 900


@pytest.fixture(scope="module")
def upstream_example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Upstream's example, as its source distribution has it, with compiled mechanisms."""
    example = tmp_path_factory.mktemp("upstream") / "l5pc"
    shutil.copytree(l5pc.fetch(print), example)
    nrnivmodl = Path(sys.executable).parent / "nrnivmodl"
    subprocess.run([nrnivmodl, "mechanisms"], cwd=example, check=True, capture_output=True)
    return example


def arguments(seed: int, offspring: int, generations: int) -> list[str]:
    return [
        "--start", f"--seed={seed}", f"--offspring_size={offspring}",
        f"--max_ngen={generations}", "--checkpoint=check.pkl",
    ]  # fmt: skip


@pytest.mark.timeout(2 * LIMIT_S)
@pytest.mark.parametrize(
    ("seed", "offspring", "generations", "engines"), [(42, 4, 2, 1), (7, 3, 3, 2)]
)
def test_l5pc_on_engines_gives_upstreams_bits(
    upstream_example: Path,
    local_l5pc: Path,
    tmp_path: Path,
    seed: int,
    offspring: int,
    generations: int,
    engines: int,
) -> None:
    wanted = arguments(seed, offspring, generations)
    theirs = tmp_path / "upstream"
    theirs.mkdir()
    # Not from its own directory: NEURON would load the mechanisms twice.
    upstream = subprocess.Popen(
        [sys.executable, upstream_example / "opt_l5pc.py", *wanted], cwd=theirs
    )
    ours = tmp_path / "ours"
    ours.mkdir()
    try:
        subprocess.run(
            [
                Path(sys.executable).parent / "opt_l5pc", *wanted, "--ipyparallel",
                f"--engines={engines}", "--no-report",
            ],
            cwd=ours, check=True, timeout=LIMIT_S, env=os.environ,
        )  # fmt: skip
        assert upstream.wait(LIMIT_S) == 0
    finally:
        upstream.kill()
        upstream.wait()
    expected = course(theirs / "check.pkl")
    assert expected["generation"] == generations
    assert differences(course(ours / "check.pkl"), expected) == []
    if seed == 42:
        assert differences(course(local_l5pc / "checkpoint.pkl"), expected) == []
