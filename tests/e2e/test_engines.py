"""What engines and the commands do with models and clusters that cannot be used."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import psutil
import pytest

from e2e.processes import awaited, command, parent, processes_with
from e2e.running import MODELS, Bench, Evolution, Model, ipcluster, quick
from neurofleet.engine import tasks
from neurofleet.engine.outcome import Description
from neurofleet.model import EvaluatorSpec, pack

pytestmark = pytest.mark.timeout(120)


def _is_an_engines(process: psutil.Process) -> bool:
    above = parent(process)
    return above is not None and "ipyparallel.engine" in command(above)


class Compilations(threading.Thread):
    """Counts the compilations that a test's processes start."""

    def __init__(self, mark: str) -> None:
        super().__init__(daemon=True)
        self._mark = mark
        self._over = threading.Event()
        self.seen: set[int] = set()

    def run(self) -> None:
        while not self._over.is_set():
            running = [p for p in processes_with(self._mark) if "nrnivmodl" in command(p)]
            self.seen |= {p.pid for p in running if _is_an_engines(p)}
            time.sleep(0.01)

    def __enter__(self) -> Compilations:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join(10)


def test_model_asked_for_by_two_engines_at_once_is_compiled_once(tmp_path: Path, mark: str) -> None:
    cache = tmp_path / "fresh"
    bundle = pack(MODELS / "quick", EvaluatorSpec("quick_evaluator:create"))
    with ipcluster(tmp_path, "compile", 2, {"NEUROFLEET_CACHE": str(cache)}) as client:
        with Compilations(mark) as compilations:
            asked = [
                client[i].apply_async(tasks.prepare, bundle.digest, bundle.archive) for i in (0, 1)
            ]
            awaited(lambda: any(one.ready() for one in asked), 60, "one engine is prepared")
            built = [(p, p.stat().st_ino, p.stat().st_mtime_ns) for p in _libraries(cache)]
            told = [one.get(timeout=60) for one in asked]
        assert len(built) == 1
        assert [(p, p.stat().st_ino, p.stat().st_mtime_ns) for p in _libraries(cache)] == built
        assert len(compilations.seen) == 1
        assert told[0] == told[1]
        assert isinstance(told[0], Description), told[0]


def _libraries(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("libnrnmech.*") if not path.is_symlink()]


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (
            Model("does_not_compile"),
            r"do not compile: .*Illegal block at line 8 in file nfbroken.mod; BREAKPOINT",
        ),
        (Model("does_not_import"), r"No module named 'a_package_that_nobody_has' \(evaluator.py,"),
        (Model("not_an_evaluator"), r"returns a dict, not a BluePyOpt evaluator"),
        (Model("not_an_evaluator", "evaluator:without_parameters"), r"no parameters to vary"),
        (Model("not_an_evaluator", "evaluator:leaves"), r"SystemExit: usage"),
        (
            Model("not_an_evaluator", "evaluator:absent"),
            r"does not exist: evaluator has no .absent., it has",
        ),
        (Model("not_an_evaluator", "absent:create"), r"No module named 'absent'"),
        (Model("pure_python", kwargs={"colour": 3}), r"unexpected keyword argument 'colour'"),
        (Model("nowhere"), r"there is no model directory"),
    ],
    ids=lambda value: value.name + "-" + value.factory if isinstance(value, Model) else "",
)
def test_model_that_cannot_be_used_is_refused_in_one_line(
    bench: Bench, mark: str, model: Model, says: str
) -> None:
    done = bench.optimise(Evolution(model)).ended(60)
    assert done.code == 2, done.err
    assert done.out == ""
    assert "Traceback" not in done.err
    assert len(done.err.splitlines()) == 1
    assert re.search(says, done.errors[0]), done.err
    run = bench.directory("run")
    assert not (run / "checkpoint.pkl").exists()
    assert not (run / "engines").exists()


def test_profile_that_nobody_started_is_unreachable(bench: Bench, tmp_path: Path) -> None:
    done = bench.optimise(
        Evolution(quick()),
        "--profile=nobody",
        backend="profile",
        env={"IPYTHONDIR": str(tmp_path / "ipython")},
    ).ended(60)
    assert done.code == 3, done.err
    assert len(done.errors) == 1
    assert "Traceback" not in done.err


def test_profile_without_engines_and_then_without_controller_is_told_apart(
    bench: Bench, tmp_path: Path
) -> None:
    where = {"IPYTHONDIR": str(tmp_path)}
    options = ("--profile=gone", "--engine-timeout=3")
    connection = tmp_path / "profile_gone" / "security" / "ipcontroller-client.json"
    with ipcluster(tmp_path, "gone", 0, {}):
        done = bench.optimise(Evolution(quick()), *options, backend="profile", env=where).ended(60)
        assert done.code == 4, done.err
        assert len(done.errors) == 1
        told = connection.read_bytes()
    connection.write_bytes(told)  # as a machine leaves it that lost its power
    done = bench.optimise(Evolution(quick()), *options, backend="profile", env=where).ended(60)
    assert done.code == 3, done.err
    assert len(done.errors) == 1
    assert "Traceback" not in done.err
