"""Measure the client against upstream and print the table of docs/benchmarks.md.

Every figure is a ratio or a count, and both sides of a ratio are measured in this one
run, one after the other, with nothing else to do for the machine. Takes about ten minutes
on two cores; ``--quick`` leaves out the serial comparison, which is most of it.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import ipyparallel
from rich.console import Console
from rich.progress import track

from neurofleet.backends.local import LocalEngines
from neurofleet.batches import JobPreparation, run_items
from neurofleet.dispatch import EngineFarm
from neurofleet.engine import tasks
from neurofleet.engine.host_cache import versions_stamp
from neurofleet.farm import ByName, Task
from neurofleet.jobs import Job, pickled
from neurofleet.store import FILE, pack_floats
from neurofleet.workloads import l5pc
from neurofleet.workloads.left_out import predict_left_out
from neurofleet.workloads.loo_forest import HELD_OUT, made_data
from payload import message_size

BIN = Path(sys.executable).parent
SIZE = ["--offspring_size=4", "--max_ngen=2", "--seed=42", "--checkpoint=check.pkl"]
#: Serial runs of each side, alternating; the faster one counts.
REPEATS = 2
#: Sizes of the scheduling comparison, beyond what two cores can compute.
INDIVIDUALS, ENGINES = 48, 32

#: Runs of each side of the comparison of forests, alternating; the fastest counts.
FOREST_REPEATS = 3
#: Items of the comparison of maps, and on how many engines.
ITEMS, MAP_ENGINES = 10_000, 4

Row = tuple[str, str, str, str]


def timed(command: list[object], cwd: Path) -> float:
    """Run a command; return its wall time [s]."""
    cwd.mkdir(parents=True)
    started = time.monotonic()
    subprocess.run([str(part) for part in command], cwd=cwd, check=True, capture_output=True)
    return time.monotonic() - started


def serial(scratch: Path) -> Row:
    """Compare our serial path with upstream's script."""
    example = scratch / "example"
    shutil.copytree(l5pc.fetch(print), example)
    subprocess.run([BIN / "nrnivmodl", "mechanisms"], cwd=example, check=True, capture_output=True)
    theirs, ours = [], []
    for repeat in track(range(REPEATS), "serial runs", console=Console(stderr=True)):
        upstream = [sys.executable, example / "opt_l5pc.py", "--start", *SIZE]
        theirs.append(timed(upstream, scratch / f"upstream{repeat}"))
        command = [BIN / "opt_l5pc", "--start", "--no-report", *SIZE]
        ours.append(timed(command, scratch / f"serial{repeat}"))
    ratio = min(ours) / min(theirs)
    return (
        "serial wall time, ours / upstream's", f"{ratio:.3f}", "at most 1.03",
        f"{min(ours):.1f} s and {min(theirs):.1f} s, the faster of {REPEATS} each",
    )  # fmt: skip


def two_engines(scratch: Path) -> tuple[list[Row], Path]:
    """Measure the computing share on two engines, and what a rerun costs."""
    command = [BIN / "opt_l5pc", "--start", "--ipyparallel", "--engines=2", "--no-report", *SIZE]
    where = scratch / "two"
    first = timed(command, where)
    store = next(where.glob(f"neurofleet-runs/*/{FILE}"))
    with closing(sqlite3.connect(store)) as db:
        phases = db.execute("SELECT started, ended, engines FROM phase WHERE generation > 0")
        available = sum((ended - started) * engines for started, ended, engines in phases)
        computed = db.execute(
            "SELECT sum(duration_s) FROM score WHERE unit != 'whole' AND started >="
            " (SELECT min(started) FROM phase WHERE generation > 0)"
        ).fetchone()[0]
    started = time.monotonic()
    done = subprocess.run(command, cwd=where, check=True, capture_output=True, text=True)
    again = time.monotonic() - started
    told = next(line for line in done.stderr.splitlines() if "simulated" in line)
    rows: list[Row] = [
        ("computing share, 2 engines, offspring 4", f"{computed / available:.3f}",
         "at least 0.95", f"{computed:.1f} s computed in {available:.1f} s of engines"),
        ("rerun of a finished optimisation", f"{again:.2f} s", "under 5 s",
         f"{told.partition(';')[0]}; the first took {first:.0f} s"),
    ]  # fmt: skip
    return rows, store


def payload() -> Row:
    """Measure what one task sends, against upstream's."""
    arguments = ("0" * 64, versions_stamp(), "Step1", pack_floats([0.1] * 20), 120.0)
    ours = message_size(ByName.of(tasks.run_unit), arguments)
    evaluator = subprocess.run(
        [sys.executable, "-P", "-c", _UPSTREAM_PAYLOAD, str(l5pc.fetch(print)),
         str(Path(__file__).parent)],
        cwd=tempfile.gettempdir(), check=True, capture_output=True, text=True,
    )  # fmt: skip
    theirs = int(evaluator.stdout.split()[-1])
    return ("bytes of a task's message", f"{ours}", "at most 2048", f"upstream's: {theirs} bytes")


_UPSTREAM_PAYLOAD = """
import sys; sys.path[:0] = sys.argv[1:]
import bluepyopt, l5pc_evaluator
from payload import message_size
evaluator = l5pc_evaluator.create()
optimisation = bluepyopt.optimisations.DEAPOptimisation(evaluator=evaluator, seed=42)
individual = optimisation.toolbox.Individual()
print(message_size(optimisation.toolbox.evaluate, (individual,)))
"""


def scheduling(store: Path, scratch: Path) -> Row:
    """Compare a generation by units with upstream's map of whole individuals.

    The simulations are replaced by sleeps of durations that were measured, because two
    cores cannot compute on 32 engines.
    """
    with closing(sqlite3.connect(store)) as db:
        measured: dict[str, list[float]] = {}
        rows = db.execute("SELECT unit, duration_s FROM score WHERE unit != 'whole'")
        for unit, duration_s in rows:
            measured.setdefault(unit, []).append(duration_s)
    draw = random.Random(0)
    population = [
        {unit: draw.choice(durations) for unit, durations in measured.items()}
        for _ in range(INDIVIDUALS)
    ]
    mean = {unit: sum(durations) / len(durations) for unit, durations in measured.items()}
    engines = LocalEngines(ENGINES, scratch / "engines")
    farm = EngineFarm(engines)
    try:
        farm.open()
        started = time.monotonic()
        farm.run(
            [
                Task((number, unit), time.sleep, (duration_s,), mean[unit])
                for number, individual in enumerate(population)
                for unit, duration_s in individual.items()
            ],
            lambda _task, _result: None,
        )
        ours = time.monotonic() - started
        view = engines.client.load_balanced_view()
        started = time.monotonic()
        view.map_sync(time.sleep, [sum(individual.values()) for individual in population])
        theirs = time.monotonic() - started
    finally:
        farm.close()
    ideal = sum(sum(individual.values()) for individual in population) / ENGINES
    return (
        f"a generation of {INDIVIDUALS} on {ENGINES} engines, upstream's time / ours",
        f"{theirs / ours:.2f}", "at least 1.3",
        f"{theirs:.1f} s and {ours:.1f} s; without any idling {ideal:.1f} s",
    )  # fmt: skip


def mapping(scratch: Path, wait_ms: int) -> Row:
    """Compare ``neurofleet map`` with ``map_sync`` of chunksize 1: 10,000 tasks that wait."""
    from benchmark_items import wait

    where, wait_s = scratch / f"map{wait_ms}", wait_ms / 1000
    where.mkdir()
    (where / "items.jsonl").write_text(f"{wait_s}\n" * ITEMS)
    # A person's own module; a library, as on PYTHONPATH, would have a process for each call.
    shutil.copy(Path(__file__).with_name("benchmark_items.py"), where)
    profile = where / "ipython" / "profile_map"
    # As ipyparallel starts a cluster by itself, for both.
    with ipyparallel.Cluster(n=MAP_ENGINES, profile_dir=str(profile), cluster_id="") as client:
        client.wait_for_engines(MAP_ENGINES, timeout=60)
        view = client.load_balanced_view()
        started = time.monotonic()
        view.map_sync(wait, [wait_s] * ITEMS, chunksize=1)
        theirs = time.monotonic() - started
        # The whole command on the same engines, with results on disk.
        command = [BIN / "neurofleet", "map", "benchmark_items:wait", "items.jsonl"]
        environment = {**os.environ, "IPYTHONDIR": str(profile.parent)}
        started = time.monotonic()
        subprocess.run(
            [*command, "--profile=map"], cwd=where, env=environment, check=True, capture_output=True
        )
        ours = time.monotonic() - started
    return (
        f"map of {ITEMS} tasks of {wait_ms} ms on {MAP_ENGINES} engines, map_sync's time / ours",
        f"{theirs / ours:.2f}", "at least 2",
        f"{theirs:.1f} s and {ours:.1f} s; without any idling"
        f" {ITEMS * wait_s / MAP_ENGINES:.1f} s",
    )  # fmt: skip


def forest(scratch: Path) -> Row:
    """Compare ``loo-forest`` with the tutorial's code, on the same two engines."""
    data = made_data()
    engines = LocalEngines(2, scratch / "forest")
    farm = EngineFarm(engines)
    ours, theirs = [], []
    try:
        farm.open()
        client = engines.client
        direct = client[:]
        direct.block = True
        # Both sides' imports: whoever came first would pay for them.
        direct.execute("from sklearn.ensemble import RandomForestRegressor as rfr")
        direct.execute("import numpy as np")
        for _ in range(FOREST_REPEATS):
            started = time.monotonic()
            shared = {"features": data.features, "target": data.target, "trees": 100, "seed": 0}
            job = Job.of(predict_left_out, shared)
            farm.prepare_for(JobPreparation(job))
            farm.open()
            content = dict(enumerate(pickled(range(HELD_OUT))))
            run_items(farm, job, content, lambda _results: None)
            ours.append(time.monotonic() - started)
            started = time.monotonic()
            direct.push({"X": data.features, "Y": data.target, "looFit": _tutorials_fit})
            view = client.load_balanced_view()
            view.block = True
            view.map(_tutorials_wrapper, range(HELD_OUT))
            theirs.append(time.monotonic() - started)
    finally:
        farm.close()
    return (
        "loo-forest on 2 engines, the tutorial's time / ours", f"{min(theirs) / min(ours):.2f}",
        "at least 1",
        f"{min(theirs):.1f} s and {min(ours):.1f} s, the fastest of {FOREST_REPEATS} each",
    )  # fmt: skip


def _tutorials_fit(index, Ylocal, Xlocal):
    rf = rfr(n_estimators=100)  # noqa: F821
    fitted = rf.fit(np.delete(Xlocal, index, axis=0), np.delete(Ylocal, index))  # noqa: F821
    return fitted.predict(np.array([Xlocal[index, :]]))[0]  # noqa: F821


def _tutorials_wrapper(i):
    return looFit(i, Y, X)  # noqa: F821


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="leave out the serial comparison")
    parser.add_argument("--items", action="store_true", help="map and loo-forest only")
    options = parser.parse_args()
    quick = options.quick
    with tempfile.TemporaryDirectory(prefix="neurofleet-bench-") as folder:
        scratch = Path(folder)
        os.environ["NEUROFLEET_CACHE"] = str(scratch / "cache")
        os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # what engines import is there
        rows: list[Row] = []
        if not options.items:
            rows, store = two_engines(scratch)
            rows.append(payload())
            rows.append(scheduling(store, scratch))
            if not quick:
                rows.insert(0, serial(scratch))
        rows.append(mapping(scratch, 10))
        rows.append(mapping(scratch, 1))
        rows.append(forest(scratch))
    print("| what | measured | wanted | compared with |\n| --- | --- | --- | --- |")
    for row in rows:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
