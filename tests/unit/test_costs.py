"""What machines cost: prices times hours, and unknown where a price is."""

from __future__ import annotations

import io
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from neurofleet import costs
from neurofleet.cli.main import cli
from neurofleet.errors import UsageError
from neurofleet.rundir import RunDirectory


def entry(
    name: str, pool: str = "steady", usd: float | None = 0.5, **changes: Any
) -> dict[str, Any]:
    usual = {"id": f"i-{name}", "name": name, "pool": pool, "type": "c7i.large", "spot": False}
    return {**usual, "launched": 0.0, "hourly_usd": usd, "price_of": "price list", **changes}


def machines(*entries: dict[str, Any]) -> list[costs.Machine]:
    return [costs.Machine(**one) for one in entries]


def test_what_runs_is_said_in_one_line_with_what_a_day_costs() -> None:
    fleet = machines(
        entry("head1", "head", 0.03, disk_hourly_usd=0.002, launched=1.8e9),
        entry("a", "steady", 0.5, launched=1.8e9 + 60),
        entry("b", "steady", 0.5, launched=0.0, ended=10.0),
    )
    assert costs.in_one_line("f", fleet) == (
        "fleet f: 2 machines since 2027-01-15 08:00 UTC, 12.72 USD a day; stopped, the head costs"
        " 1.46 USD a month for its disk. playbooks/destroy.yml ends it all"
    )
    assert costs.in_one_line("f", fleet[2:]) == "fleet f: no machine runs"


def test_machine_that_is_gone_has_ended_and_keeps_the_price_it_was_made_at() -> None:
    known = costs.update([], [entry("a"), entry("b")], now=10.0)
    assert [machine.ended for machine in known] == [None, None]
    assert costs.update(known, [entry("a", usd=9.0), entry("b")], now=20.0) == known
    later = costs.update(known, [entry("b"), entry("c")], now=30.0)
    assert [(machine.name, machine.ended) for machine in later] == [
        ("a", 30.0), ("b", None), ("c", None),
    ]  # fmt: skip
    assert costs.update(later, [entry("b"), entry("c")], now=40.0) == later


def test_cost_is_price_times_hours_by_pool() -> None:
    fleet = machines(
        entry("a", ended=7200.0), entry("b", launched=3600.0), entry("h", "head", usd=0.1)
    )
    pools = costs.by_pool(fleet, now=7200.0)
    assert [(p.pool, p.machines, p.hourly_usd, p.so_far_usd) for p in pools] == [
        ("steady", 1, 0.5, 1.5), ("head", 1, 0.1, 0.2),
    ]  # fmt: skip
    assert costs.spent(fleet, 3600.0, 5400.0) == pytest.approx(0.5 * (0.5 + 0.5 + 0.1))


def test_unknown_price_makes_the_sum_unknown_only_where_it_counts() -> None:
    fleet = machines(entry("a", usd=None, launched=3600.0), entry("b"))
    assert costs.spent(fleet, 0.0, 3600.0) == 0.5
    assert costs.spent(fleet, 0.0, 7200.0) is None
    assert costs.by_pool(fleet, 7200.0)[0].hourly_usd is None


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of four units of two individuals, in half an hour."""
    folder = tmp_path / "neurofleet-runs" / "one"
    folder.mkdir(parents=True)
    RunDirectory(folder).write_about({"state": "running"})
    with sqlite3.connect(folder / "scores.sqlite") as db:
        db.execute("CREATE TABLE score (parameters BLOB, started REAL, duration_s REAL)")
        rows = [(b"x", 3600.0, 1.0), (b"x", 3601.0, 1.0), (b"y", 3700.0, 1.0), (b"y", 5390.0, 10.0)]
        db.executemany("INSERT INTO score VALUES (?, ?, ?)", rows)
    db.close()
    return folder


def test_thousand_evaluations_cost_what_the_fleet_cost_while_they_were_made(run: Path) -> None:
    found = costs.per_thousand(machines(entry("a"), entry("h", "head", usd=0.1)), run)
    assert found["evaluations"] == 2
    assert found["usd"] == pytest.approx(0.3)
    assert found["usd_per_thousand"] == pytest.approx(150.0)
    assert costs.newest_run(run.parent.parent) == run


def test_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a run directory"):
        costs.per_thousand([], tmp_path)


def test_command_shows_pools_and_the_run_or_says_where_costs_are_known(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "costs.json"
    monkeypatch.setattr(costs.read, "__defaults__", (file,))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="costs are known on the head"):
        CliRunner().invoke(cli, ["cost"], catch_exceptions=False, standalone_mode=False)
    there = {"fleet": "f", "machines": [entry("a"), entry("s", "spot", usd=None)]}
    for expected in ("a: there\ns: there\n", ""):
        monkeypatch.setattr("sys.argv", ["costs", "update", str(file)])
        monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(there)))
        costs.main()
        assert capsys.readouterr().out == expected
    shown = CliRunner().invoke(cli, ["cost"], catch_exceptions=False).output
    assert "spot                1   unknown" in shown
    assert "2 individuals evaluated in 0.50 h for unknown USD" in shown
    assert "fleet f: 2 machines since 1970-01-01 00:00 UTC, an unknown price. " in shown
    data = json.loads(CliRunner().invoke(cli, ["cost", "--json"]).output)
    assert data["hourly_usd"] is None
    assert data["run"]["evaluations"] == 2
    file.write_text("{")
    with pytest.raises(UsageError, match="run site"):
        costs.read(file)
