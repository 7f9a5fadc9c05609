"""A model's process: whatever an evaluation does, the next one finds what the first one found."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from neurofleet.engine import host_cache, limits, tasks, warm
from neurofleet.engine.outcome import Description
from neurofleet.engine.warm_process import WarmProcess
from neurofleet.errors import WorkloadFailed
from neurofleet.model import EvaluatorSpec, pack
from unit.support import CREATE, MODELS, snapshot, write_model

pytestmark = pytest.mark.timeout(180)

#: What an individual does is chosen by its first parameter.
BODY = """
        import json, pathlib, shutil, signal
        here = pathlib.Path(__file__).parent
        what = int(params[0])
        if what == 1:
            os.kill(os.getpid(), 37)
        if what == 2:
            input("go on? ")
        if what == 3:
            for _ in range(40):
                print("y" * 100_000)
        if what == 4:
            try:
                open("morph/cell.asc")
            except OSError as error:
                raise RuntimeError("Failed to run the protocol") from error
        if what == 5:
            (here / "evaluator.py").write_text("broken")
            shutil.rmtree(here / "data")
            (here / "extra").mkdir()
        if what == 6:
            import package_of_nobody
        runs = here / "runs.txt"
        before = len(runs.read_text()) if runs.exists() else 0
        with runs.open("a") as file:
            file.write("x")
        pathlib.Path("relative.txt").write_text("x")
        offset = json.loads((here / "data" / "offset.json").read_text()) if what != 5 else 0.0
        return [before + offset + params[1], 0.0]
"""


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUROFLEET_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


@pytest.fixture
def digest(tmp_path: Path) -> str:
    model = write_model(tmp_path / "model", BODY.strip())
    (model / "data").mkdir()
    (model / "data" / "offset.json").write_text("0.25")
    bundle = pack(model, CREATE)
    host_cache.receive(bundle.digest, bundle.archive)
    return bundle.digest


@pytest.fixture
def process(digest: str) -> Iterator[WarmProcess]:
    made = WarmProcess(digest)
    yield made
    made.close()


def test_evaluation_whatever_earlier_ones_did_scores_the_same(
    process: WarmProcess, digest: str, tmp_path: Path
) -> None:
    cached, _ = host_cache.ensure_compiled(digest)
    before = snapshot(cached)
    assert process.evaluate("whole", (0.0, 1.0), 30.0).scores == (1.25, 0.0)
    told = {what: process.evaluate("whole", (float(what), 1.0), 60.0) for what in range(1, 7)}
    assert {what: outcome.status for what, outcome in told.items()} == {
        1: "crashed",
        2: "raised",
        3: "ok",
        4: "raised",
        5: "ok",
        6: "raised",
    }
    assert "ended by signal 37" in told[1].reason
    assert told[2].reason.startswith("EOFError: ")
    assert told[4].reason.startswith("FileNotFoundError: ")
    assert "'morph/cell.asc' (evaluator.py, line " in told[4].reason
    assert "Failed to run the protocol" not in told[4].reason
    assert "; The package package_of_nobody is missing" in told[6].reason
    assert "Failed to run the protocol" in told[4].traceback
    assert "No such file" in told[4].traceback
    other = WarmProcess(digest)
    for one in (process, other):
        assert one.evaluate("whole", (0.0, 1.0), 30.0).scores == (1.25, 0.0)
    other.close()
    assert snapshot(cached) == before


def test_private_copy_goes_with_its_process_however_that_ends(digest: str, tmp_path: Path) -> None:
    copies = tmp_path / "tmp"
    process = WarmProcess(digest)
    assert len(list(copies.glob("neurofleet-model-*"))) == 1
    process._connection.close()  # as when the engine is killed
    process._process.wait(timeout=30)
    assert list(copies.iterdir()) == []
    process.close()
    process = WarmProcess(digest)
    psutil.Process(process._process.pid).kill()
    with pytest.raises(WorkloadFailed, match="its process ended"):
        process.evaluate("whole", (0.0, 1.0), 30.0)
    process.close()
    assert list(copies.iterdir()) == []


def test_model_that_is_damaged_on_a_host_is_sent_again(digest: str, tmp_path: Path) -> None:
    archive = host_cache.model_directory(digest) / "bundle.tar.gz"
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-50])
    assert isinstance(tasks.prepare(digest), tasks.NotReady)
    archive.write_bytes(whole[:-50])
    try:
        assert isinstance(tasks.prepare(digest, whole), Description)
    finally:
        tasks.close()


def test_memory_of_a_unit_is_a_share_of_what_the_job_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(warm.MEMORY_VARIABLE, raising=False)
    alone = warm.memory_limit()
    monkeypatch.setattr(limits, "memory_limit_bytes", lambda: 400_000_000)
    monkeypatch.setattr(limits, "usable_cpus", lambda: 2)
    assert warm.memory_limit() == int(0.8 * 200_000_000) < alone


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGSEGV, "SIGSEGV"), (37, "signal 37"), (63, "signal 63")]
)
def test_signal_that_ended_a_simulation_is_named(number: int, name: str) -> None:
    assert warm._how_it_died(number) == f"the simulation's process was ended by {name}"


LOADS_ITSELF = """

def create_itself():
    import glob, os, subprocess, neuron
    assert "NRN_NMODL_PATH" not in os.environ
    from neuron import h
    neuron.load_mechanisms(".")
    neuron.load_mechanisms(str(HERE) + "/")
    neuron.load_mechanisms(str(HERE))
    subprocess.run(["nrnivmodl", "mechanisms"], check=True)
    h.nrn_load_dll(glob.glob("*/libnrnmech.so")[0])
    h.nrn_load_dll(glob.glob(str(HERE / "*" / "libnrnmech.so"))[0])
    return create()
"""


def test_model_that_compiles_and_loads_its_mechanisms_itself_gets_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEUROFLEET_CACHE", str(tmp_path / "Müller's cache"))
    monkeypatch.setenv("NRN_NMODL_PATH", "/somewhere/else")
    for name, value in (("LC_ALL", "C"), ("PYTHONUTF8", "0"), ("PYTHONCOERCECLOCALE", "0")):
        monkeypatch.setenv(name, value)
    model = tmp_path / "model"
    for path in (MODELS / "quick").rglob("*.*"):
        copy = model / path.relative_to(MODELS / "quick")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    with (model / "quick_evaluator.py").open("a") as file:
        file.write(LOADS_ITSELF)
    bundle = pack(model, EvaluatorSpec("quick_evaluator:create_itself"))
    host_cache.receive(bundle.digest, bundle.archive)
    process = WarmProcess(bundle.digest)
    told = [process.evaluate("weak", (0.1, 0.03, 3e-4, 1e-3), 60.0) for _ in range(2)]
    process.close()
    assert [outcome.status for outcome in told] == ["ok", "ok"], told
    assert told[0].scores == told[1].scores


def test_children_of_a_program_work_in_its_cache(tmp_path: Path) -> None:
    from neurofleet.backends.own_cluster import make_cluster

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("NEUROFLEET_CACHE", "relative")
        patched.chdir(tmp_path)
        cluster = make_cluster(1, tmp_path / "cluster")
        environment = cluster.config.BaseLauncher.environment
    assert environment["NEUROFLEET_CACHE"] == os.fspath(tmp_path / "relative")
