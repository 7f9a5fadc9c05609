"""``neurofleet run loo-forest``, and the CSV files that it reads or refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.ensemble import RandomForestRegressor

from neurofleet.workloads.loo_forest import made_data
from unit.support import assert_refused, command, snapshot

pytestmark = pytest.mark.timeout(120)

SERIAL = ("--backend", "serial")


def test_loo_forest_predicts_what_a_serial_loop_predicts_and_runs_once(tmp_path: Path) -> None:
    words = ("run", "loo-forest", "--held-out=6", "--trees=10", "--seed=3", "--engines=2", "--json")
    done = command("neurofleet", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    data = made_data()
    x, y = data.features, data.target
    serial = []
    for i in range(6):
        forest = RandomForestRegressor(n_estimators=10, random_state=3 + i)
        forest.fit(np.delete(x, i, axis=0), np.delete(y, i))
        serial.append(forest.predict(x[[i]])[0])
    with Path(told["files"]["predictions"]).open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["predicted"]) for row in rows] == serial
    assert [float(row["observed"]) for row in rows] == list(y[:6])
    errors = y[:6] - serial
    assert told["measures"]["rmse"] == pytest.approx(np.sqrt(np.mean(errors**2)))
    assert told["measures"]["mae"] == pytest.approx(np.mean(abs(errors)))
    assert "<svg" in Path(told["files"]["plot"]).read_text()
    again = json.loads(command("neurofleet", *words, cwd=tmp_path).stdout)
    assert (again["computed"], again["from_store"]) == (0, 6)
    more = [word.replace("=6", "=8") for word in words]
    again = json.loads(command("neurofleet", *more, cwd=tmp_path).stdout)
    assert (again["computed"], again["from_store"]) == (2, 6)


def test_made_data_are_the_tutorials() -> None:
    np.random.seed(0)
    x = np.random.normal(0, 1, size=(500, 50))
    y = x[:, 0] + pow(abs(x[:, 1] * x[:, 2]), 0.5) + x[:, 1] - x[:, 2] + np.random.normal(0, 1, 500)
    data = made_data()
    assert np.array_equal(data.features, x)
    assert np.array_equal(data.target, y)


def test_loo_forest_on_a_csv_uses_all_columns_but_those_dropped(tmp_path: Path) -> None:
    lines = ["name,size,price,age"] + [f"h{i},{i},{2 * i + 1},{i % 3}" for i in range(12)]
    (tmp_path / "houses.csv").write_text("\n".join(lines) + "\n")
    done = command(
        "neurofleet", "run", "loo-forest", "--csv", "houses.csv", "--target", "price",
        "--drop", "name", "--trees", "5", "--json", *SERIAL, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["computed"] == 12
    with Path(told["files"]["predictions"]).open() as file:
        assert [float(row["observed"]) for row in csv.DictReader(file)] == [
            2 * i + 1 for i in range(12)
        ]


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        ("a,b\n1,2\n3,4\n", ["--target", "c"], ["no column 'c'", "It has a, b"]),
        ("a,b\n1,2\n3,x\n", ["--target", "a"], ["line 3", "'x', which is no number, in column"]),
        ("a,b\n1,\n3,4\n", ["--target", "a"], ["line 2", "no value in column 'b'", "--drop b"]),
        ("a,b\n1,nan\n3,4\n", ["--target", "a"], ["line 2", "column 'b'"]),
        ("a,b\n1,2,3\n3,4\n", ["--target", "a"], ["line 2", "has 3 values, the header has 2"]),
        ("a,a\n1,2\n3,4\n", ["--target", "a"], ["two columns 'a'"]),
        ("a\n1\n3\n", ["--target", "a"], ["2 observations of 1 columns"]),
        ("", ["--target", "a"], ["no column 'a'"]),
        ("a,b\n1,2\n3,4\n", ["--target", "a", "--held-out", "3"], ["3 observations cannot"]),
        ("a,b\n1,2\n3,4\n", ["--target", "a", "--trees", "0"], ["0 trees are no forest"]),
        ("a,b\n1,2\n3,4\n", ["--target", "a", "--seed", "-1"], ["-1 is no seed"]),
        ("a,b\n1,2\n3,4\n", [], ["--csv and --target belong together"]),
    ],
    ids=lambda value: value[0][:30] if isinstance(value, list) and value else "",
)  # fmt: skip
def test_csv_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, content: str, options: list[str], says: list[str]
) -> None:
    (tmp_path / "data.csv").write_text(content)
    before = snapshot(tmp_path)
    done = command("neurofleet", "run", "loo-forest", "--csv", "data.csv", *options, cwd=tmp_path)
    assert_refused(done, 2, *says)
    assert snapshot(tmp_path) == before
