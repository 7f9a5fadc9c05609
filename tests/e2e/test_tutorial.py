"""docs/tutorial.md: what it shows is run, block by block, as it stands there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from e2e.processes import awaited
from e2e.running import BIN

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[2]
#: What is made smaller, so that it takes seconds: sizes only.
SMALLER = {
    "range(50)": "range(6)",
    "run loo-forest": "run loo-forest --held-out 6",
    "--offspring_size=50 --max_ngen=2": "--offspring_size=1 --max_ngen=2 --no-report",
}
#: What each block prints, by a line of the block.
PRINTS = {
    "scripts/environment": r"^neurofleet \d.*\nNEURON 9",
    "--engines 2": r"(?s)engine 0 on .*Hello, World\nengine 1 on .*Hello, World\n",
    "--profile default": r"(?s)engine 0 on .*Hello, World\nengine 1 on .*Hello, World\n",
    "Fleet.local(4)": r"(?s)\[0, 1, 2, 3\]\n\['Hello, World'(, 'Hello, World'){3}\]\n.*"
    r"\[3, 2, 1, 0, 1, 2\]",
    "RandomForestRegressor": r"^0\.\d+\n$",
    "run loo-forest": r"rmse \d.*\nmae \d.*\nr2 .*\npredictions .*predictions.csv",
    "neurofleet map": r'^\{"result": \{"area": 6\}\}\n\{"result": \{"area": 20\}\}\n$',
    "opt_l5pc": r"DEBUG:root:Using ipyparallel with \d+ engines\n(?s:.*)INFO:__main__:gen\s",
}


class Block(NamedTuple):
    """A fenced block."""

    language: str
    where: str
    text: str


def blocks(where: str) -> list[Block]:
    """Return the tutorial's blocks for one place, made smaller."""
    text = (ROOT / "docs/tutorial.md").read_text()
    for shown, smaller in SMALLER.items():
        assert shown in text, f"the tutorial has no {shown} any more"
        text = text.replace(shown, smaller)
    found = [
        Block(*match) for match in re.findall(r"^```(\w+) ?(\w*)\n(.*?)^```", text, re.M | re.S)
    ]
    return [block for block in found if block.where == where]


def run(block: Block, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Run a block as a person would; return what it prints."""
    words = ["bash", "-euo", "pipefail", "-c", block.text]
    if block.language == "python":
        script = cwd / "tutorial.py"
        script.write_text(block.text)
        words = [sys.executable, str(script)]
    done = subprocess.run(
        words,
        cwd=cwd,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{block.text}\n{done.stdout}{done.stderr}"
    return done.stdout


def expected(block: Block) -> str:
    """Return the pattern of what a block prints."""
    return next(pattern for line, pattern in PRINTS.items() if line in block.text)


def test_every_step_of_the_tutorial_does_what_it_says(tmp_path: Path, cache: Path) -> None:
    env = {"NEUROFLEET_CACHE": str(cache), "IPYTHONDIR": str(tmp_path / "ipython")}
    local = blocks("")
    assert len(local) == 7
    for block in local:
        # The first is typed in the checkout, whose environment is being used here.
        cwd = tmp_path
        if "scripts/environment" in block.text:
            cwd = ROOT
            block = block._replace(
                text=block.text.replace("environment .venv fleet", "environment .venv test")
            )
        assert re.search(expected(block), run(block, cwd, env), re.M), block.text


def test_step_with_a_running_ipcluster_uses_its_engines(tmp_path: Path, cache: Path) -> None:
    env = {"IPYTHONDIR": str(tmp_path / "ipython"), "NEUROFLEET_CACHE": str(cache)}
    (block,) = blocks("ipcluster")
    with (tmp_path / "ipcluster.log").open("wb") as log:
        cluster = subprocess.Popen(
            [BIN / "ipcluster", "start", "--n=2"],
            cwd=tmp_path, env={**os.environ, **env}, stdout=log, stderr=log, process_group=0,
        )  # fmt: skip
    try:
        awaited(
            lambda: "Engines appear to have started" in (tmp_path / "ipcluster.log").read_text(),
            60,
            "ipcluster says that engines have started",
        )
        assert re.search(expected(block), run(block, tmp_path, env))
    finally:
        cluster.send_signal(signal.SIGINT)
        cluster.wait(30)
