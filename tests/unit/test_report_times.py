"""The arithmetic of where the time went."""

from __future__ import annotations

import numpy as np
import pytest

from neurofleet.report import times, words
from neurofleet.report.scores import Evaluations
from neurofleet.report.timeline import Clock, _covered
from neurofleet.store import Phase


def _evaluations(rows: list[tuple[str, int, float, float]], phases: list[Phase]) -> Evaluations:
    """Columns of (unit, engine, started, duration)."""
    units = tuple(dict.fromkeys(row[0] for row in rows))
    engines = sorted({row[1] for row in rows})
    return Evaluations(
        units=units,
        engines=tuple(("host", pid) for pid in engines),
        unit=np.array([units.index(row[0]) for row in rows], dtype=np.int64),
        engine=np.array([engines.index(row[1]) for row in rows], dtype=np.int64),
        started=np.array([row[2] for row in rows], dtype=np.float64),
        duration_s=np.array([row[3] for row in rows], dtype=np.float64),
        failed=np.zeros(len(rows), dtype=np.bool_),
        failures=(),
        phases=tuple(phases),
    )


TWO = _evaluations(
    [("a", 1, 100.0, 10.0), ("b", 2, 100.0, 6.0), ("a", 1, 120.0, 5.0), ("b", 2, 120.0, 10.0)],
    [Phase(1, 100.0, 110.0, 2, 2, 0), Phase(2, 120.0, 130.0, 2, 2, 1)],
)


def test_account_two_generations_gives_shares_by_hand() -> None:
    spent = times.account(TWO, 95.0, 131.0)
    assert [g.share for g in spent.generations] == [pytest.approx(0.8), pytest.approx(0.75)]
    assert spent.total.busy_s == pytest.approx(31.0)
    assert spent.total.capacity_s == pytest.approx(40.0)
    assert spent.total.share == pytest.approx(31 / 40)
    assert spent.total.simulated == 4
    assert spent.total.stored == 1
    assert spent.idle_s == pytest.approx(9.0)
    assert spent.wall_s == pytest.approx(36.0)
    assert spent.outside_s == pytest.approx(16.0)
    assert spent.engine_share.tolist() == [pytest.approx(0.75), pytest.approx(0.8)]
    assert [(u.name, u.count, u.mean_s, u.longest_s, u.total_s) for u in spent.units] == [
        ("a", 2, 7.5, 10.0, 15.0), ("b", 2, 8.0, 10.0, 16.0),
    ]  # fmt: skip


def test_account_engines_that_never_wait_give_a_share_of_one() -> None:
    full = _evaluations([("a", pid, 0.0, 8.0) for pid in range(5)], [Phase(1, 0.0, 8.0, 5, 5, 0)])
    assert times.account(full).total.share == pytest.approx(1.0)


def test_account_generation_in_two_phases_is_summed() -> None:
    parts = _evaluations(
        [("a", 1, 0.0, 4.0), ("a", 1, 20.0, 6.0)],
        [Phase(3, 0.0, 5.0, 1, 1, 0), Phase(3, 20.0, 26.0, 2, 1, 1)],
    )
    (generation,) = times.account(parts).generations
    assert generation.wall_s == pytest.approx(11.0)
    assert generation.capacity_s == pytest.approx(5.0 + 12.0)
    assert generation.share == pytest.approx(10 / 17)
    assert generation.engines == 2


def test_account_unit_of_an_unfinished_phase_counts_in_no_share() -> None:
    rows = [("a", 1, 0.0, 10.0), ("a", 1, 30.0, 10.0)]
    spent = times.account(_evaluations(rows, [Phase(1, 0.0, 10.0, 1, 1, 0)]))
    assert spent.total.share == pytest.approx(1.0)
    assert spent.units[0].count == 2
    assert spent.wall_s == pytest.approx(40.0)


@pytest.mark.parametrize(("offset", "expected"), [(0.0, 0), (-1.5, 0), (1.5, 0), (9.0, -1)])
def test_assign_clock_of_the_engine_differs_a_little_is_tolerated(
    offset: float, expected: int
) -> None:
    unit = _evaluations([("a", 1, 100.0 + offset, 0.0)], [Phase(1, 100.0, 100.0, 1, 1, 0)])
    assert times.assign(unit, unit.phases).tolist() == [expected]


def test_account_launch_after_a_day_leaves_the_pause_out() -> None:
    rows = [("a", 1, 0.0, 100.0), ("a", 1, 86400.0, 100.0)]
    phases = [Phase(1, 0.0, 100.0, 1, 1, 0), Phase(2, 86400.0, 86500.0, 1, 1, 0)]
    spent = times.account(_evaluations(rows, phases), 0.0, 86510.0)
    assert spent.sessions == ((0.0, 100.0), (86400.0, 86510.0))
    assert spent.wall_s == pytest.approx(210.0)
    clock = Clock.of(spent.sessions)
    first, second = clock.place(np.array([50.0, 86450.0]))
    assert first == pytest.approx(50.0)
    assert second == pytest.approx(100 + 0.012 * 210 + 50)


def test_account_nothing_simulated_has_no_share() -> None:
    spent = times.account(_evaluations([], []))
    assert np.isnan(spent.total.share)
    assert spent.wall_s == 0
    assert spent.sessions == ()


def test_covered_intervals_in_bins_gives_each_its_part() -> None:
    edges = np.array([0.0, 10.0, 20.0, 30.0])
    part = _covered(np.array([5.0, 22.0]), np.array([15.0, 23.0]), edges)
    assert part.tolist() == [pytest.approx(0.5), pytest.approx(0.5), pytest.approx(0.1)]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, "0 ms"), (0.0123, "12.3 ms"), (4.25, "4.25 s"), (59.94, "59.9 s"),
        (59.96, "1 min 00 s"), (3599.0, "59 min 59 s"), (3600.0, "1 h 00 min"),
        (90000.0, "25 h 00 min"), (1e6, "11 d 14 h"), (float("nan"), "–"),  # noqa: RUF001
    ],
)  # fmt: skip
def test_duration_any_length_reads_like_a_person_writes(seconds: float, expected: str) -> None:
    assert words.duration(seconds).replace("\u00a0", " ") == expected
