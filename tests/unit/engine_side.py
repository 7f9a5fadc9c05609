"""A job made by a person's program, and called by another process that has none of its files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

#: Put before a person's program; ``send`` makes a job of a function.
CLIENT = """
def send(function, shared=None, items=None, **how):
    from pathlib import Path
    from neurofleet.jobs import Job
    job = Job.of(function, shared, items, **how)
    Path({job!r}).write_bytes(job.payload)
    print("sent", {{"code": dict(job.code), "data": job.data, "versions": dict(job.versions)}})
"""
ENGINE = """
import json, sys, traceback
from pathlib import Path
from neurofleet.engine import generators, own_modules
from neurofleet.engine.job_content import JobContent

content = JobContent.loads(Path(sys.argv[1]).read_bytes())
own_modules.install(content)
told = {"own_process": content.own_process, "sources": list(content.sources)}
told["results"], told["errors"], told["drew"] = [], [], []
for number, item in enumerate(json.loads(sys.argv[2])):
    own_modules.forget()
    try:
        function = own_modules.load(content)
        generators.begin(int(sys.argv[3]), number)
        told["results"].append(function(item))
    except Exception as error:
        told["results"].append(None)
        told["errors"].append(f"{type(error).__name__}: {error}")
        told["traceback"] = traceback.format_exc()
    told["drew"].append(generators.drew())
print(json.dumps(told))
"""


def write(directory: Path, files: Mapping[str, str]) -> Path:
    """Write a person's files, and return their directory."""
    directory.mkdir(exist_ok=True)
    for name, text in files.items():
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text))
    return directory


def run(
    desk: Path, program: str, *, script: str = "program.py", env: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run a person's program that calls ``send`` once, and return what is told of the job."""
    file = desk / script
    file.write_text(CLIENT.format(job=str(desk / "job")) + dedent(program))
    done = subprocess.run(
        [sys.executable, script],
        cwd=desk,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("sent ")]
    told: dict[str, Any] = eval(line.removeprefix("sent "))
    return told


def call(desk: Path, items: list[Any], *, seed: int = 0, away: Path | None = None) -> Any:
    """Call the job for items in a process elsewhere, and return what is told of that."""
    elsewhere = away or desk.parent
    done = subprocess.run(
        [sys.executable, "-P", "-c", ENGINE, desk / "job", json.dumps(items), str(seed)],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
