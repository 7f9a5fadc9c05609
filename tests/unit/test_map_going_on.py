"""``neurofleet map`` again: with changed code, after failures, broken off; and its directory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from neurofleet.backends.choice import EngineChoice
from neurofleet.errors import RunDirectoryError, UsageError
from neurofleet.workloads import map_items
from neurofleet.workloads.map_items import Line, Request, load, read_lines, refuse_other_items
from unit.support import assert_refused, command, snapshot, wait_until

pytestmark = pytest.mark.timeout(120)

LATE = """
def work(x):
    import helper

    print("work on", x)
    if x == helper.BAD:
        raise ValueError("a bug")
    return x * helper.FACTOR
"""
SERIAL = ("--backend", "serial")
RUN = "neurofleet-runs/map-late.work-items"


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A directory with a module that imports another one only when it is called."""
    (tmp_path / "late.py").write_text(LATE)
    (tmp_path / "helper.py").write_text("FACTOR, BAD = 10, 2\n")
    (tmp_path / "items.jsonl").write_text("1\n2\n3\n")
    return tmp_path


def results(desk: Path, run: str = RUN) -> list[dict[str, object]]:
    text = (desk / run / "results.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_map_after_a_bug_fix_is_refused_or_keeps_what_is_right(desk: Path) -> None:
    words = ("map", "late:work", "items.jsonl", *SERIAL)
    done = command("neurofleet", *words, "-v", cwd=desk, env={"NEUROFLEET_DEBUG": "1"})
    assert done.returncode == 1
    assert "item 3: work on 3" in done.stderr.splitlines()
    assert done.stderr.count("Traceback (most recent call last)") == 1
    assert results(desk)[0] == {"result": 10}
    printed = "".join(log.read_text() for log in (desk / RUN / "engines/output").iterdir())
    assert "=== item 2, until" in printed
    assert printed.splitlines()[1] == "work on 1"

    (desk / "helper.py").write_text("FACTOR, BAD = 1000, None\n")
    (desk / "items.jsonl").write_text("1\n2\n3\n4\n")
    before = snapshot(desk / RUN)
    done = command("neurofleet", *words, cwd=desk)
    assert_refused(done, 2, "helper has changed", "--keep-results", "--retry-failed", "--run-dir")
    assert snapshot(desk / RUN) == before

    done = command("neurofleet", *words, "--retry-failed", "--json", cwd=desk)
    assert done.returncode == 0, done.stderr
    assert "helper has changed" in done.stderr
    told = json.loads(done.stdout)
    assert (told["computed"], told["from_store"], told["pending"]) == (1, 2, [4])
    assert results(desk) == [
        {"result": 10, "code": 1},
        {"result": 2000, "code": 2},
        {"result": 30, "code": 1},
        {"pending": True},
    ]
    codes = json.loads((desk / RUN / "neurofleet-map.json").read_text())["codes"]
    assert [(code["code"], code["results"]) for code in codes] == [(1, 2), (2, 1)]
    assert codes[0]["modules"]["late"] == codes[1]["modules"]["late"]
    assert codes[0]["modules"]["helper"] != codes[1]["modules"]["helper"]

    (desk / "helper.py").write_text("FACTOR, BAD = 5, None\n")
    done = command("neurofleet", *words, "--keep-results", cwd=desk)
    assert done.returncode == 0, done.stderr
    assert "1 computed, 3 from the run directory" in done.stderr
    assert results(desk)[3] == {"result": 20, "code": 3}


def test_mark_of_a_run_that_was_killed_is_gone_after_the_next(desk: Path) -> None:
    left = desk / "run" / ".neurofleet-here-0a1b2c3d"
    words = ("map", "math:sqrt", "items.jsonl", *SERIAL, "--run-dir", "run")
    assert command("neurofleet", *words, cwd=desk).returncode == 0
    left.write_text("a token")
    (desk / "items.jsonl").write_text("1\n2\n3\n4\n")
    assert command("neurofleet", *words, cwd=desk).returncode == 0
    assert not list(left.parent.glob(".neurofleet-here-*"))


def test_map_broken_off_while_an_item_hangs_leaves_the_results_of_the_others(desk: Path) -> None:
    (desk / "slow.py").write_text(
        "import time\n\n\ndef work(x):\n    while x == 3:\n        time.sleep(0.01)\n    return x\n"
    )
    words = [Path(sys.executable).parent / "neurofleet", "map", "slow:work", "items.jsonl"]
    run = desk / "neurofleet-runs/map-slow.work-items"

    def hangs() -> bool:
        """Tell whether the status names the item that hangs."""
        try:
            told = json.loads((run / "status.json").read_text())
        except (OSError, ValueError):
            return False
        running = told.get("running", [])
        return bool(told.get("items_done") == 2 and running and running[0]["item"] == 3)

    with (desk / "err").open("wb") as err:
        client = subprocess.Popen([*words, *SERIAL], cwd=desk, stderr=err)
    wait_until(hangs, timeout_s=60)
    client.send_signal(signal.SIGINT)
    assert client.wait(timeout=30) == 130
    told = (desk / "err").read_text()
    assert "2 computed, 0 from the run directory, 1 not computed" in told
    assert "Traceback" not in told
    assert results(desk, str(run)) == [{"result": 1}, {"result": 2}, {"pending": True}]


# -- run directories -----------------------------------------------------------------


def directory(items: str, function: str = "math:sqrt", **more: object) -> str:
    """Return the name of the default run directory."""
    request = Request(function, Path(items), EngineChoice("serial"), **more)  # type: ignore[arg-type]
    load(function)
    made = map_items.run_directory(request, read_lines(request.items))
    assert made.parent == Path.cwd() / "neurofleet-runs"
    return made.name


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (
        "items.jsonl",
        "items.json",
        "a/items.jsonl",
        "b/items.jsonl",
        "..jsonl",
        "it e.jsonl",
    ):
        file = tmp_path / "desk" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("1\n")
    (tmp_path / "items.jsonl").write_text("1\n")
    monkeypatch.chdir(tmp_path / "desk")
    return tmp_path / "desk"


def test_default_directory_is_plain_for_the_plain_case(inputs: Path) -> None:
    assert directory("items.jsonl") == "map-math.sqrt-items"
    assert directory("./items.jsonl") == "map-math.sqrt-items"
    assert directory(str(inputs / "items.jsonl")) == "map-math.sqrt-items"
    assert directory("a/../items.jsonl") == "map-math.sqrt-items"


def test_default_directory_is_another_one_for_every_input(inputs: Path) -> None:
    (inputs / "link.jsonl").symlink_to("items.jsonl")
    names = [
        *map(directory, ("items.jsonl", "items.json", "a/items.jsonl", "b/items.jsonl")),
        *map(directory, ("../items.jsonl", "..jsonl", "it e.jsonl")),
        directory("items.jsonl", "math:exp"),
        directory("items.jsonl", seed=1),
        directory("items.jsonl", seed=2),
    ]
    assert len(set(names)) == len(names), names
    assert all(name.startswith("map-math.") and "/" not in name for name in names)
    assert directory("a/items.jsonl") == names[2]  # the same again


def test_default_directory_of_functions_of_equal_name_is_another_one(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    for folder in ("a", "b", "."):
        (inputs / folder / "twice.py").write_text("def f(x):\n    return x\n")
        with monkeypatch.context() as patched:
            patched.setattr(sys, "path", [str(inputs / folder), *filter(None, sys.path)])
            names.append(directory("items.jsonl", "twice:f"))
            del sys.modules["twice"]
    assert len(set(names)) == 3, names
    assert names[2] == "map-twice.f-items"


def test_default_directory_of_a_pipe_is_that_of_its_content(inputs: Path) -> None:
    os.mkfifo("pipe")
    request = Request("math:sqrt", Path("pipe"), EngineChoice("serial"))
    found = [map_items.run_directory(request, [Line(1, text)]).name for text in ("1", "2", "1")]
    assert found[0] == found[2] != found[1]


def test_directory_of_other_items_is_refused_unless_those_are_gone(inputs: Path) -> None:
    words = ("map", "math:sqrt", "items.jsonl", *SERIAL, "--run-dir", "run")
    done = command("neurofleet", *words, cwd=inputs)
    assert done.returncode == 0, done.stderr
    refuse_other_items(inputs / "run", Path("items.jsonl"))
    with pytest.raises(RunDirectoryError, match="is that of the items"):
        refuse_other_items(inputs / "run", Path("a/items.jsonl"))
    Path("items.jsonl").rename("renamed.jsonl")
    refuse_other_items(inputs / "run", Path("renamed.jsonl"))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_that_cannot_seed_is_refused(seed: int) -> None:
    with pytest.raises(UsageError, match="the seed must be from 0 to"):
        map_items.refuse_seed(seed)


def test_items_with_a_byte_order_mark_blank_lines_and_nan_are_read(tmp_path: Path) -> None:
    file = tmp_path / "items.jsonl"
    file.write_bytes(b'\xef\xbb\xbf1\r\n\r\n{"x": NaN}\r\n')
    assert read_lines(file) == [Line(1, "1"), Line(3, '{"x": NaN}')]
