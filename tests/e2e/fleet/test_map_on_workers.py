"""A person's own module on workers that have neither its files nor its directory."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from e2e.booted import HEAD, WORKERS, Fleet

# The fleet is made before the first of them, which has a limit of its own.
pytestmark = pytest.mark.timeout(300, func_only=True)

USER = "user"
DESK = "/home/user/map-desk"
#: What labs write: NEURON at the top of a module, files beside it, numbers drawn at random.
MODULE = """
import random
import socket
from pathlib import Path

from neuron import h

h.load_file("stdrun.hoc")


def simulate(amp):
    import kit.naming

    soma = h.Section(name="soma")
    soma.L = soma.diam = 20
    soma.insert("hh")
    clamp = h.IClamp(soma(0.5))
    clamp.delay, clamp.dur, clamp.amp = 5, 20, amp
    voltage = h.Vector().record(soma(0.5)._ref_v)
    h.finitialize(-65)
    h.continuerun(30)
    Path("traces").mkdir()
    Path("traces", kit.naming.of(amp)).write_text("\\n".join(map(str, voltage)))
    Path("large").write_bytes(bytes(3_000_000))
    print("simulated", amp)
    return {"peak": max(voltage), "drawn": random.random(), "host": socket.gethostname()}
"""
NAMING = "def of(amp):\n    return f'{amp:g}.txt'\n"


@pytest.fixture
def desk(fleet: Fleet) -> Iterator[str]:
    """A directory of the user's on the head, with the module and the package that it imports."""
    fleet.done(HEAD, f"mkdir -p {DESK}/kit && touch {DESK}/kit/__init__.py", user=USER)
    for name, text in (("cell.py", MODULE), ("kit/naming.py", NAMING)):
        assert fleet.ssh(HEAD, f"cat > {DESK}/{name}", user=USER, stdin=text).code == 0
    fleet.done(HEAD, f"cd {DESK} && printf '%s\\n' 0.1 0.2 0.3 0.4 > amps.jsonl", user=USER)
    yield DESK
    fleet.done(HEAD, f"rm -rf {DESK}", user=USER)


def test_map_on_workers_draws_the_same_again_and_brings_files_and_prints_back(
    fleet: Fleet, desk: str
) -> None:
    def mapped(run: str) -> tuple[list[dict[str, object]], str]:
        """Return the results and what was said of a run with a limit of 1 MB an item."""
        command = (
            f"neurofleet map cell:simulate amps.jsonl --seed 5 --files-limit 1 --run-dir {run}"
        )
        done = fleet.ssh(HEAD, f"cd {desk} && {command}", user=USER)
        assert done.code == 0, done.err
        text = fleet.done(HEAD, f"cat {desk}/{run}/results.jsonl", user=USER)
        return [json.loads(line)["result"] for line in text.splitlines()], done.err

    found, said = mapped("first")
    assert {one.pop("host") for one in found} <= set(WORKERS)
    assert len({one["drawn"] for one in found}) == 4
    # A large file is more than an item may send back; nobody loses it without a word.
    assert "large" in said
    list_files = "find -L . -path ./by-content -prune -o -type f -print | sort"
    files = fleet.done(HEAD, f"cd {desk}/first/files && {list_files}", user=USER).split()
    assert [name for name in files if "/traces/" in name] == [
        f"./{number}/traces/0.{number}.txt" for number in (1, 2, 3, 4)
    ]
    assert not [name for name in files if name.endswith("/large")]
    prints = fleet.done(HEAD, f"cat {desk}/first/engines/output/*", user=USER)
    assert all(f"simulated {amp}" in prints for amp in (0.1, 0.2, 0.3, 0.4))
    again, _ = mapped("again")
    assert [{**one, "host": ""} for one in again] == [{**one, "host": ""} for one in found]
    left = set(fleet.done(HEAD, f"ls {desk}", user=USER).split()) - {"__pycache__"}
    assert left == {"again", "amps.jsonl", "cell.py", "first", "kit"}
