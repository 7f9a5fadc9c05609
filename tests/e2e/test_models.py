"""Each model's numbers are BluePyOpt's own, whoever computes them and in what pieces."""

from __future__ import annotations

from pathlib import Path

import pytest

from e2e.running import (
    Bench,
    Evolution,
    Model,
    Upstream,
    about,
    course,
    differences,
    ipcluster,
    misbehaving,
    quick,
    rows,
)
from neurofleet.engine import tasks

RELATIVE = Model("relative_paths", "relative_evaluator:create", search=("code",))
SERIAL, ONE, TWO = ("serial", None), ("local", 1), ("local", 2)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("evolution", "mode", "backends"),
    [
        (Evolution(quick()), "split", (SERIAL, ONE, TWO)),
        (Evolution(quick(), selector="NSGA2", seed=5), "split", (ONE, TWO)),
        (Evolution(RELATIVE, offspring=3, seed=7), "split", (SERIAL, TWO)),
        (Evolution(misbehaving("nothing"), offspring=3), "split", (TWO,)),
        (Evolution(Model("entangled")), "whole", (SERIAL, TWO)),
        (Evolution(Model("pure_python"), 10, generations=5), "whole", (SERIAL, TWO)),
    ],
    ids=["quick", "quick-NSGA2", "relative_paths", "harmless", "entangled", "pure_python"],
)
def test_model_on_any_backend_gives_upstreams_bits(
    bench: Bench,
    upstream: Upstream,
    evolution: Evolution,
    mode: str,
    backends: tuple[tuple[str, int | None], ...],
) -> None:
    expected = upstream.course(evolution)
    for backend, engines in backends:
        name = f"{backend}-{engines}"
        done = bench.optimise(evolution, run=name, backend=backend, engines=engines).ended()
        assert done.code == 0, done.err
        assert done.errors == []
        run = bench.directory(name)
        assert differences(course(run / "checkpoint.pkl"), expected) == [], name
        assert about(run)["units"]["mode"] == mode
        assert {row.status for row in rows(run)} == {"ok"}
        said_so = "individuals are evaluated as a whole: unit second alone gives other scores"
        assert (said_so in done.err) == (evolution.model.name == "entangled"), done.err


@pytest.mark.timeout(300)
def test_clashing_models_on_the_same_engines_each_give_upstreams_bits(
    bench: Bench, upstream: Upstream, tmp_path: Path
) -> None:
    first, second = (Evolution(Model(name), offspring=3) for name in ("clash_a", "clash_b"))
    for_engines = {"NEUROFLEET_CACHE": str(bench.cache)}
    with ipcluster(tmp_path, "clash", 2, for_engines) as client:
        engines = {told["pid"] for told in client[:].apply_sync(tasks.probe)}
        for run, evolution in (("a", first), ("b", second), ("a-again", first)):
            done = bench.optimise(
                evolution,
                "--profile=clash",
                run=run,
                backend="profile",
                env={"IPYTHONDIR": str(tmp_path)},
            ).ended()
            assert done.code == 0, done.err
            found = course(bench.directory(run) / "checkpoint.pkl")
            assert differences(found, upstream.course(evolution)) == [], run
            assert {row.pid for row in rows(bench.directory(run))} <= engines
        assert {told["pid"] for told in client[:].apply_sync(tasks.probe)} == engines
    # The same question had two answers, or this would have tested nothing.
    assert upstream.course(first)["halloffame"] != upstream.course(second)["halloffame"]


@pytest.mark.timeout(120)
def test_checkpoint_of_ours_gone_on_with_by_bluepyopt_gives_its_own_bits(
    bench: Bench, upstream: Upstream, tmp_path: Path
) -> None:
    shorter, longer = (Evolution(quick(), generations=n) for n in (2, 3))
    done = bench.optimise(shorter, backend="serial").ended()
    assert done.code == 0, done.err
    upstream.run(longer, bench.directory("run") / "checkpoint.pkl", go_on=True)
    found = course(bench.directory("run") / "checkpoint.pkl")
    assert differences(found, upstream.course(longer)) == []


@pytest.mark.timeout(120)
def test_run_with_more_generations_later_simulates_only_those(
    bench: Bench, upstream: Upstream
) -> None:
    shorter, longer = (Evolution(quick(), generations=n) for n in (2, 3))
    assert bench.optimise(shorter, backend="serial").ended().code == 0
    before = rows(bench.directory("run"))
    done = bench.optimise(longer, backend="serial").ended()
    assert done.code == 0, done.err
    after = rows(bench.directory("run"))
    assert after[: len(before)] == before
    assert done.counts == (len(after) - len(before), 2 * 4 * 3, 0)
    assert len(after) - len(before) == 4 * 3
    found = course(bench.directory("run") / "checkpoint.pkl")
    assert differences(found, upstream.course(longer)) == []
