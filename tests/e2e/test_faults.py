"""Whatever breaks: the numbers are those of an undisturbed run, and nothing is paid for twice."""

from __future__ import annotations

import array
import contextlib
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from e2e.processes import awaited, controllers, engines_simulating, processes_with, simulations
from e2e.running import (
    Bench,
    Evolution,
    Row,
    Scores,
    Upstream,
    course,
    differences,
    misbehaving,
    quick,
    rows,
    scored,
    scores,
)

pytestmark = pytest.mark.timeout(240)

#: Units of about 0.3, 0.5 and 1 s: long enough to be hit in the middle.
LONG = Evolution(quick(pause_s=1.0), offspring=4)
#: So often one run's client is killed; each start takes two seconds.
KILLS = 4
#: Of misbehaving's first generations some individuals fail and some do not.
FEW = 4


# -- models that misbehave -----------------------------------------------------------


@pytest.fixture(scope="module")
def healthy(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Scores:
    """Scores of the same individuals by the same model, where nothing fails."""
    bench = Bench(tmp_path_factory.mktemp("healthy"), cache)
    control = Evolution(misbehaving("nothing"), FEW, generations=1)
    done = bench.optimise(control, backend="serial").ended()
    assert done.code == 0, done.err
    return scores(rows(bench.directory("run")))


@pytest.mark.parametrize(
    ("how", "status", "reason", "options"),
    [
        ("endless", "timeout", "ended at its limit of 3 s", ["--unit-timeout=3"]),
        ("crashes", "crashed", "SIGSEGV", []),
        (
            "greedy",
            "raised",
            "MemoryError (evaluator.py, line 38); it reached the 500 MB that a unit may have",
            [],
        ),
        ("raises", "raised", "ZeroDivisionError: a score of", ["--allow-failing"]),
    ],
)
def test_unit_that_fails_gets_its_penalty_and_the_engine_lives(
    bench: Bench,
    healthy: Scores,
    how: str,
    status: str,
    reason: str,
    options: list[str],
) -> None:
    env = {"NEUROFLEET_UNIT_MEMORY_MB": "500"}
    done = bench.optimise(
        Evolution(misbehaving(how), FEW, generations=1), *options, env=env
    ).ended()
    assert done.code == 0, done.err
    assert done.errors == []
    found = [row for row in rows(bench.directory("run")) if row.unit != "whole"]
    failed = [row for row in found if row.status != "ok"]
    assert 0 < len(failed) < len(found)
    for row in failed:
        assert row.unit == "fragile"
        assert row.status == status
        assert reason in row.reason
        values = array.array("d", row.scores)
        if how == "raises":  # the objective beside it keeps its score
            assert values[0] == array.array("d", healthy[row.unit, row.parameters])[0]
            assert values[1] == 250.0
        else:
            assert list(values) == [250.0, 250.0]
    for row in found:
        if row.status == "ok":
            assert row.scores == healthy[row.unit, row.parameters]
    everything = rows(bench.directory("run"))
    assert done.counts[2] == sum(row.status != "ok" for row in everything)
    assert len({row.pid for row in everything}) == 2, "an engine was replaced"
    assert "died" not in done.err


@pytest.mark.parametrize("backend", ["serial", "local"])
def test_model_of_which_every_unit_fails_ends_the_run_with_one_line(
    bench: Bench, backend: str
) -> None:
    model = misbehaving("crashes", threshold=0.0)
    done = bench.optimise(Evolution(model, 2), "--unit-timeout=0.001", backend=backend).ended()
    assert done.code == 1, done.err
    assert len(done.errors) == 1
    assert "no unit of any individual could be evaluated" in done.errors[0]
    assert "Traceback" not in done.err


# -- processes that are killed --------------------------------------------------------


def test_engine_killed_in_the_middle_of_a_unit_is_replaced_and_changes_nothing(
    bench: Bench, upstream: Upstream, mark: str
) -> None:
    client = bench.optimise(LONG)
    before = scored(bench.directory("run"), 2, client)
    victim = awaited(lambda: engines_simulating(mark), 30, "an engine simulates")[0]
    victim.kill()
    done = client.ended()
    assert done.code == 0, done.err
    assert "1 local engine(s) died; starting as many" in done.err
    after = rows(bench.directory("run"))
    assert after[: len(before)] == before
    assert len({row.pid for row in after} | {victim.pid}) == 3
    assert (
        differences(course(bench.directory("run") / "checkpoint.pkl"), upstream.course(LONG)) == []
    )


def test_controller_killed_in_the_middle_of_a_unit_changes_nothing(
    bench: Bench, upstream: Upstream, mark: str
) -> None:
    client = bench.optimise(LONG)
    before = scored(bench.directory("run"), 2, client)
    awaited(lambda: engines_simulating(mark), 30, "an engine simulates")
    victims = controllers(mark)
    assert len(victims) == 1
    victims[0].kill()
    done = client.ended()
    assert done.code == 0, done.err
    after = rows(bench.directory("run"))
    assert after[: len(before)] == before
    assert (
        differences(course(bench.directory("run") / "checkpoint.pkl"), upstream.course(LONG)) == []
    )


def test_client_killed_in_a_generation_and_started_again_simulates_nothing_twice(
    bench: Bench, upstream: Upstream, mark: str
) -> None:
    # The comparison takes 2 x 4 units, the first generation 6 more.
    client = bench.optimise(LONG)
    scored(bench.directory("run"), 16, client)
    awaited(lambda: simulations(mark), 30, "a unit is being simulated")
    client.signal(signal.SIGKILL)
    client.ended()
    awaited(lambda: not processes_with(mark), 60, "the engines have noticed")

    before = rows(bench.directory("run"))
    again = bench.optimise(LONG).ended()
    assert again.code == 0, again.err
    after = rows(bench.directory("run"))
    assert after[: len(before)] == before
    stored = [row for row in before if row.unit != "whole"]
    assert again.counts == (len(after) - len(before), len(stored), 0)
    assert 2 * LONG.offspring * 3 == sum(row.unit != "whole" for row in after)
    assert (
        differences(course(bench.directory("run") / "checkpoint.pkl"), upstream.course(LONG)) == []
    )


def test_client_killed_again_and_again_comes_to_the_same_numbers(
    bench: Bench, upstream: Upstream, mark: str
) -> None:
    """At moments of chance, so also while it writes its store or its checkpoint."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    evolution = Evolution(quick(), offspring=4, generations=5)
    run = bench.directory("run")
    assert bench.optimise(Evolution(quick(), 1, 1), run="warm", backend="serial").ended().code == 0
    kept: list[Row] = []
    for _ in range(KILLS):
        client = bench.optimise(evolution, backend="serial")
        scored(run, len(kept) + 1, client)
        time.sleep(chance.uniform(0, 0.4))  # the moment is a matter of chance
        client.signal(signal.SIGKILL)
        client.ended()
        awaited(lambda: not processes_with(mark), 30, "what it simulated has ended")
        found = rows(run)
        assert found[: len(kept)] == kept, "what was scored stays, once"
        kept = found
    done = bench.optimise(evolution, backend="serial").ended()
    assert done.code == 0, done.err
    assert rows(run)[: len(kept)] == kept
    assert done.counts[0] == len(rows(run)) - len(kept)
    assert differences(course(run / "checkpoint.pkl"), upstream.course(evolution)) == []


@pytest.mark.parametrize("how", ["ctrl-c", "SIGTERM"])
def test_client_interrupted_stops_soon_keeps_its_scores_and_says_how_to_go_on(
    bench: Bench, mark: str, how: str
) -> None:
    client = bench.optimise(LONG)
    before = scored(bench.directory("run"), 3, client)
    awaited(lambda: simulations(mark), 30, "a unit is being simulated")
    since = time.monotonic()
    if how == "ctrl-c":
        client.signal(signal.SIGINT, group=True)
    else:
        client.signal(signal.SIGTERM)
    done = client.ended(10)
    awaited(lambda: not processes_with(mark), 10, "nothing runs any more")
    assert time.monotonic() - since < 10
    assert done.code == 130, done.err
    # What was asked for is no error; Ctrl-C gives up what is being simulated.
    assert len(done.errors) == (how == "ctrl-c")
    assert "the same command again to go on" in done.err
    assert "Traceback" not in done.err
    assert rows(bench.directory("run"))[: len(before)] == before


@pytest.mark.parametrize("lost", ["the terminal", "who reads"])
def test_client_whose_connection_is_lost_goes_on_to_a_safe_point(
    bench: Bench, mark: str, upstream: Upstream, lost: str
) -> None:
    ours, theirs = os.openpty() if lost == "the terminal" else os.pipe()
    os.set_blocking(ours, False)
    client = bench.optimise(LONG, connection=theirs)
    os.close(theirs)
    run = bench.directory("run")
    try:

        def some_are_scored() -> bool:
            with contextlib.suppress(BlockingIOError):
                os.read(ours, 1 << 20)  # else a terminal has no room for more
            return len(rows(run)) > 1

        awaited(some_are_scored, 60, "units are scored")
    finally:
        os.close(ours)
    done = client.ended(60)
    awaited(lambda: not processes_with(mark), 10, "nothing runs any more")
    assert done.code == 130, done
    kept = len(rows(run))
    assert json.loads((run / "status.json").read_text())["state"] == "interrupted"
    done = bench.optimise(LONG).ended()
    assert done.code == 0, done.err
    assert 0 < done.counts[0] == len(rows(run)) - kept
    assert differences(course(run / "checkpoint.pkl"), upstream.course(LONG)) == []


def test_client_interrupted_before_the_engines_are_there_leaves_nothing(
    bench: Bench, mark: str
) -> None:
    client = bench.optimise(LONG)
    awaited(lambda: controllers(mark), 30, "a controller has been started")
    client.signal(signal.SIGINT, group=True)
    done = client.ended(10)
    assert done.code == 130, done.err
    awaited(lambda: not processes_with(mark), 10, "nothing runs any more")


# -- the run directory ----------------------------------------------------------------


def test_run_directory_in_use_is_refused_with_its_holders_name(bench: Bench) -> None:
    first = bench.optimise(LONG)
    scored(bench.directory("run"), 1, first)
    second = bench.optimise(LONG).ended(30)
    assert second.code == 2, second.err
    assert len(second.errors) == 1
    assert f"in use by process {first.pid} of " in second.errors[0]
    assert first.running()
    first.signal(signal.SIGINT)
    assert first.ended(10).code == 130


def test_finished_run_repeated_starts_no_engine_and_simulates_nothing(
    bench: Bench, mark: str
) -> None:
    evolution = Evolution(quick())
    assert bench.optimise(evolution).ended().code == 0
    run = bench.directory("run")
    before, numbers = rows(run), course(run / "checkpoint.pkl")
    logs = _stamps(run / "engines")
    awaited(lambda: not processes_with(mark), 10, "the first run's engines are gone")
    since = time.monotonic()
    client = bench.optimise(evolution)
    started = set()
    while client.running():
        started |= {process.pid for process in processes_with(mark)}
    done = client.ended()
    assert time.monotonic() - since < 5
    assert done.code == 0, done.err
    assert done.counts == (0, len([row for row in before if row.unit != "whole"]), 0)
    assert f"0 simulated, {2 * 4 * 3} from the store" in done.err
    assert started <= {client.pid}
    assert rows(run) == before
    assert _stamps(run / "engines") == logs
    assert differences(course(run / "checkpoint.pkl"), numbers) == []


def _stamps(directory: Path) -> dict[str, tuple[int, int]]:
    """Return each file's inode and time of change."""
    return {
        path.name: ((stat := path.stat()).st_ino, stat.st_mtime_ns) for path in directory.rglob("*")
    }
