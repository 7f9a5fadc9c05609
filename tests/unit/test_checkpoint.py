"""Checkpoints: always whole, readable by BluePyOpt, and not opened when they are not ours."""

from __future__ import annotations

import contextlib
import copy
import itertools
import multiprocessing
import multiprocessing.connection
import os
import pickle
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import deap.tools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from neurofleet import checkpoint
from neurofleet.errors import RunDirectoryError

IDENTITY: dict[str, Any] = {
    "model": "a" * 64,
    "versions": {"neuron": "9.0.2", "bluepyopt": "1.14.26"},
    "settings": {"seed": 42, "offspring_size": 4},
}
STATE: dict[str, Any] = {
    "population": [[0.25, 1.5]],
    "generation": 3,
    "parents": [[0.25, 1.5]],
    "halloffame": deap.tools.HallOfFame(10),
    "history": deap.tools.History(),
    "logbook": deap.tools.Logbook(),
    "rndstate": random.Random(3).getstate(),
    "param_names": ["x", "y"],
}


def test_checkpoint_written_is_read_again_with_its_identity(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "cp.pkl", STATE, IDENTITY)
    found = checkpoint.read(tmp_path / "cp.pkl")
    assert found["neurofleet"] == IDENTITY
    for name in ("population", "generation", "parents", "rndstate", "param_names"):
        assert found[name] == STATE[name]
    assert [type(found[name]) for name in STATE] == [type(value) for value in STATE.values()]
    assert [path.name for path in tmp_path.iterdir()] == ["cp.pkl"]


def test_checkpoint_writer_killed_at_any_time_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "cp.pkl"
    chance = random.Random(3)
    context = multiprocessing.get_context("fork")
    for _ in range(20):
        written, told = context.Pipe(duplex=False)
        child = context.Process(target=write_for_ever, args=(path, told))
        child.start()
        told.close()
        try:
            assert written.poll(20)
            time.sleep(chance.uniform(0, 0.05))
        finally:
            child.kill()
            child.join()
        last = 0
        with contextlib.suppress(EOFError):
            while True:
                last = written.recv()
        found = checkpoint.read(path)
        assert found["generation"] in (last, last + 1)
        assert found["population"] == [[found["generation"]]] * 200_000


def write_for_ever(path: Path, told: multiprocessing.connection.Connection) -> None:
    for generation in itertools.count():
        state = {**STATE, "generation": generation, "population": [[generation]] * 200_000}
        checkpoint.write(path, state, IDENTITY)
        told.send(generation)


def test_checkpoint_missing_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"cannot be read.*Name an existing file"):
        checkpoint.read(tmp_path / "cp.pkl")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        pickle.dumps([1, 2]),
        pickle.dumps(None),
        pickle.dumps({"population": 1}),
        b"cno_such_module\nThing\n.",
    ],
)
def test_checkpoint_damaged_is_refused_in_one_line_and_not_changed(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "cp.pkl").write_bytes(content)
    with pytest.raises(RunDirectoryError, match="is damaged or not of BluePyOpt") as caught:
        checkpoint.read(tmp_path / "cp.pkl")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "cp.pkl").read_bytes() == content


@given(cut=st.integers(0, 10_000))
@example(cut=-1)  # all is there but the end of the mark that follows the pickle
@example(cut=-20)
def test_checkpoint_truncated_anywhere_is_refused(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("cp") / "cp.pkl"
    checkpoint.write(path, STATE, IDENTITY)
    content = path.read_bytes()
    path.write_bytes(content[: cut % len(content)])
    with pytest.raises(RunDirectoryError, match="is damaged"):
        checkpoint.read(path)


@pytest.mark.skipif(os.getuid() != 0, reason="giving a file away takes root")
def test_checkpoint_of_another_user_is_not_opened(tmp_path: Path) -> None:
    trap = tmp_path / "trap"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(trap),)

    path = tmp_path / "cp.pkl"
    path.write_bytes(pickle.dumps(Evil()))
    os.chown(path, 12345, 12345)
    with pytest.raises(RunDirectoryError, match="belongs to another user"):
        checkpoint.read(path)
    assert not trap.exists()
    pickle.loads(path.read_bytes())
    assert trap.exists()  # the trap would have worked


def changed(*path: str, to: object) -> dict[str, Any]:
    identity = copy.deepcopy(IDENTITY)
    inside = identity
    for name in path[:-1]:
        inside = inside[name]
    inside[path[-1]] = to
    return identity


@pytest.mark.parametrize(
    ("identity", "names", "why"),
    [
        (IDENTITY, ["x", "y"], None),
        (IDENTITY, ["x"], "another model's"),
        (IDENTITY, ["y", "x"], "another model's"),
        (None, ["x", "y"], "written by BluePyOpt itself"),
        (changed("model", to="b" * 64), ["x", "y"], "of model bbbbbbbbbbbb"),
        (changed("versions", "bluepyopt", to="1.0"), ["x", "y"], "made with bluepyopt 1.0"),
        (changed("settings", "seed", to=7), ["x", "y"], "made with seed 7"),
        # BLUEPYOPT_SEED=42 is another seed than --seed 42, upstream too.
        (changed("settings", "seed", to="42"), ["x", "y"], "made with seed 42"),
    ],
)
def test_belongs_elsewhere_tells_what_differs(
    identity: dict[str, Any] | None, names: list[str], why: str | None
) -> None:
    state = STATE if identity is None else {**STATE, "neurofleet": identity}
    found = checkpoint.belongs_elsewhere(state, IDENTITY, names)
    assert (found is None) if why is None else (found is not None and why in found)


def test_checkpoint_is_read_by_a_program_that_knows_nothing_of_neurofleet(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "cp.pkl", STATE, IDENTITY)
    code = (
        "import pickle, sys\n"
        "state = pickle.load(open(sys.argv[1], 'rb'))\n"
        "assert not any(name.startswith('neurofleet') for name in sys.modules)\n"
        "print(state['generation'], sorted(state))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, tmp_path / "cp.pkl"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("3 ")
