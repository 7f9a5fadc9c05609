"""Checkpoints that were damaged, or made to run code in who reads them."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bluepyopt
import pytest
from bluepyopt.deapext.optimisations import DEAPOptimisation
from hypothesis import given
from hypothesis import strategies as st

from neurofleet import checkpoint
from neurofleet.errors import RunDirectoryError
from unit.hostile.inputs import DAMAGE, NO_FILES, Damage, assert_in_words, hostile, scratch
from unit.test_checkpoint import IDENTITY, STATE

pytestmark = pytest.mark.timeout(180)


class Model(bluepyopt.evaluators.Evaluator):  # type: ignore[misc]
    """Two parameters, two objectives."""

    def __init__(self) -> None:
        super().__init__(
            objectives=[bluepyopt.objectives.Objective(name) for name in "ab"],
            params=[bluepyopt.parameters.Parameter(n, bounds=(-1.0, 2.0)) for n in "xy"],
        )
        self.param_names = ["x", "y"]

    def init_simulator_and_evaluate_with_lists(self, values: list[float]) -> list[float]:
        return [sum(value * value for value in values), abs(values[0] - 1.0)]


@pytest.fixture(scope="module", params=["IBEA", "NSGA2"])
def of_bluepyopt(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return what BluePyOpt itself writes."""
    path: Path = tmp_path_factory.mktemp("cp") / "cp.pkl"
    kept = random.getstate()
    run = DEAPOptimisation(Model(), seed=3, offspring_size=6, selector_name=request.param)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it closes no checkpoint
        run.run(max_ngen=3, cp_filename=str(path), cp_frequency=1)
    random.setstate(kept)
    return path.read_bytes()


@pytest.fixture(scope="module")
def ours(of_bluepyopt: bytes, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("cp") / "cp.pkl"
    checkpoint.write(path, pickle.loads(of_bluepyopt), IDENTITY)
    return path.read_bytes()


def in_numbers(state: dict[str, Any]) -> Any:
    """Return everything of a checkpoint that can be compared."""
    best = [(list(one), one.fitness.values) for one in state["halloffame"]]
    log = [dict(entry) for entry in state["logbook"]]
    plain = {name: state[name] for name in ("population", "parents", "rndstate", "param_names")}
    return best, log, plain, state["generation"], state["history"].genealogy_tree


def read(path: Path, content: bytes) -> dict[str, Any] | None:
    """Read a checkpoint; ``None`` if it is refused, in one line, and left as it was."""
    path.write_bytes(content)
    try:
        return checkpoint.read(path)
    except RunDirectoryError as error:
        assert_in_words(error)
        return None
    finally:
        assert path.read_bytes() == content


def test_checkpoint_of_bluepyopt_and_ours_are_read(
    tmp_path: Path, of_bluepyopt: bytes, ours: bytes
) -> None:
    expected = in_numbers(pickle.loads(of_bluepyopt))
    for content in (of_bluepyopt, ours):
        found = read(tmp_path / "cp.pkl", content)
        assert found is not None
        assert in_numbers(found) == expected


@given(damage=DAMAGE)
@hostile("checkpoint", 150)
def test_checkpoint_of_ours_damaged_is_refused_or_as_it_was_written(
    ours: bytes, damage: Damage
) -> None:
    with scratch() as folder:
        found = read(folder / "cp.pkl", damage(ours))
        assert found is None or in_numbers(found) == in_numbers(pickle.loads(ours))


@given(damage=DAMAGE)
@hostile("checkpoint of BluePyOpt", 150)
def test_checkpoint_of_bluepyopt_damaged_is_refused_or_of_the_right_kinds(
    of_bluepyopt: bytes, damage: Damage
) -> None:
    with scratch() as folder:
        found = read(folder / "cp.pkl", damage(of_bluepyopt))
        if found is not None:
            random.Random().setstate(found["rndstate"])
            assert all(isinstance(name, str) for name in found["param_names"])


class Calls:
    """Pickled, it is a call."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def _by_name(module: str, name: str, argument: str) -> bytes:
    return f"c{module}\n{name}\n(V{argument}\ntR.".encode()


#: Calls that leave a trap behind; BluePyOpt, DEAP and numpy have such functions too.
TRAPS: tuple[Callable[[str], bytes], ...] = (
    *(
        (lambda trap, p=p, c=c: pickle.dumps(Calls(*c(trap)), p))  # type: ignore[misc]
        for p in range(6)
        for c in (
            lambda trap: (os.mkdir, trap),
            lambda trap: (os.system, f"mkdir {trap}"),
            lambda trap: (eval, f"__import__('os').mkdir({trap!r})"),
            lambda trap: (subprocess.check_call, ["mkdir", trap]),
        )
    ),
    lambda trap: _by_name("os", "mkdir", trap),
    lambda trap: _by_name("posix", "mkdir", trap),
    lambda trap: _by_name("bluepyopt.deapext.optimisations", "random.os.mkdir", trap),
    lambda trap: _by_name("numpy", "os.mkdir", trap),
    lambda trap: _by_name("deap.tools.support", "os.mkdir", trap),
    lambda trap: f"(ios\nmkdir\n(V{trap}\n.".encode(),
    lambda trap: f"(V{trap}\nios\nmkdir\n.".encode(),
    lambda trap: f"(cos\nmkdir\nV{trap}\no.".encode(),
    lambda trap: b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93" + pickle.dumps(trap, 0)[:-1] + b"\x85R.",
)


@given(make=st.sampled_from(TRAPS), key=st.sampled_from([None, *checkpoint.KEYS, "neurofleet"]))
@hostile("pickle that is code", 150)
def test_checkpoint_that_is_code_runs_none(make: Callable[[str], bytes], key: str | None) -> None:
    with scratch() as folder:
        trap = folder / "trap"
        content = make(str(trap))
        if key is not None and content[:1] == b"\x80":
            # Put the call where a value of a sound checkpoint is.
            marked = pickle.dumps({**STATE, "neurofleet": IDENTITY, key: 0x5EED5EED}, 2)
            inner = content[2:-1].replace(b"\x95" + content[3:11], b"")
            content = b"\x80\x05" + marked[2:].replace(b"J\xed\x5e\xed\x5e", inner)
        assert read(folder / "cp.pkl", content) is None
        assert not trap.exists()


@pytest.mark.parametrize("make", TRAPS[:24:5], ids=range(5))
def test_traps_would_work_without_the_reader(tmp_path: Path, make: Callable[[str], bytes]) -> None:
    pickle.loads(make(str(tmp_path / "trap")))
    assert (tmp_path / "trap").exists()


def test_number_that_asks_for_all_the_memory_is_refused(tmp_path: Path) -> None:
    content = b"\x80\x04N" + b"r" + (2**31).to_bytes(4, "little") + b"."
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from neurofleet import checkpoint\n"
        "from neurofleet.errors import RunDirectoryError\n"
        "import bluepyopt\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "try:\n"
        "    checkpoint.read(Path(sys.argv[1]))\n"
        "except RunDirectoryError as error:\n"
        "    print(error, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 1 << 20)\n"
    )
    (tmp_path / "cp.pkl").write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "cp.pkl"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "is damaged" in done.stdout
    assert done.stdout.endswith(" True\n")


@pytest.mark.parametrize("kind", NO_FILES)
def test_checkpoint_that_is_no_file_is_refused_without_waiting(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "cp.pkl"
    NO_FILES[kind](path)
    with pytest.raises(RunDirectoryError, match="cannot be read"):
        checkpoint.read(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away takes root")
@pytest.mark.parametrize("owner", [12345, 1])
def test_checkpoint_of_another_user_says_that_a_pickle_is_code(
    tmp_path: Path, owner: int, ours: bytes
) -> None:
    path = tmp_path / "cp.pkl"
    path.write_bytes(ours)
    os.chown(path, owner, owner)
    with pytest.raises(RunDirectoryError, match=r"another user.*a pickle is code.*Copy it"):
        checkpoint.read(path)
