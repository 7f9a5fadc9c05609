"""``neurofleet run loo-forest``, and the CSV files that it reads or refuses."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestRegressor

from neurofleet.backends.choice import EngineChoice
from neurofleet.errors import RunDirectoryError, UsageError
from neurofleet.progress_items import ItemWatcher
from neurofleet.workloads.csv_form import Form
from neurofleet.workloads.loo_forest import Data, Request, loo_forest, made_data, read_csv
from unit.support import assert_refused, called, command, snapshot

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
    assert [row["observation"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert [float(row["predicted"]) for row in rows] == serial
    assert [float(row["observed"]) for row in rows] == list(y[:6])
    errors = y[:6] - serial
    assert told["measures"]["rmse"] == pytest.approx(np.sqrt(np.mean(errors**2)))
    assert told["measures"]["mae"] == pytest.approx(np.mean(abs(errors)))
    assert "<svg" in Path(told["files"]["plot"]).read_text()
    more = [word.replace("=6", "=8") for word in words if "engines" not in word]
    again = json.loads(called("neurofleet", *more, *SERIAL, cwd=tmp_path).stdout)
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
        ("a,b\n1,2\n3,x\n", ["--target", "a"], ["line 3", "'x' in column 'b', which is not"]),
        ("a,b\n1,\n3,4\n", ["--target", "a"], ["line 2", "no value in column 'b'", "--drop b"]),
        ("a,b\n1,nan\n3,4\n", ["--target", "a"], ["line 2", "column 'b'"]),
        ("a,b\n1,2,3\n3,4\n", ["--target", "a"], ["line 2", "has 3 values, the header has 2"]),
        ("a,a\n1,2\n3,4\n", ["--target", "a"], ["two columns 'a'"]),
        ("a\n1\n3\n", ["--target", "a"], ["2 observations of 1 columns"]),
        ("", ["--target", "a"], ["no column 'a'"]),
        ("a,b\n1,2\n3,4\n", ["--target", "a", "--held-out", "3"], ["--held-out must be from"]),
        ("a,b\n1,2\n3,4\n", ["--target", "a", "--trees", "0"], ["--trees must be from 1 to"]),
        ("a,b\n1,2\n3,4\n", ["--target", "a", "--seed", "-1"], ["--seed must be from 0"]),
        ("a,b\n1,2\n3,4\n", [], ["--csv and --target belong together"]),
    ],
    ids=lambda value: value[0][:30] if isinstance(value, list) and value else "",
)  # fmt: skip
def test_csv_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, content: str, options: list[str], says: list[str]
) -> None:
    (tmp_path / "data.csv").write_text(content)
    before = snapshot(tmp_path)
    done = called("neurofleet", "run", "loo-forest", "--csv", "data.csv", *options, cwd=tmp_path)
    assert_refused(done, 2, *says)
    assert snapshot(tmp_path) == before


def data_of(text: str | bytes, folder: Path, target: str = "y", **how: Any) -> Data:
    file = folder / "data.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_csv(file, target, **how)


X, Y = [[1.5, -2.0], [0.25, 1e5]], [3.0, 4.0]


@pytest.mark.parametrize(
    ("content", "how"),
    [
        (b"x,z,y\n1.5,-2,3\n.25,1e5,4\n", {}),
        (b"x,z,y\r\n1.5,-2.,3\r\n0.25,+1E+5,4", {}),
        (b"x,z,y\r1.5,-2,3\r0.25,100000,4\r", {}),
        ("\ufeffx,z,y\n1.5,-2,3\n0.25,1e5,4\n".encode(), {}),
        (b"\n x , z ,y\n\n 1.5 ,\t-2, 3\n  \n0.25,1e5,4\n,,\n\n", {}),
        (b"x,z,y,\n1.5,-2,3,\n0.25,1e5,4,\n", {}),
        (b'"x","z","y"\n"1.5","-2", "3"\n0.25,"1e5",4\n', {}),
        (b'note,x,z,y\n"two\nlines, 1_1",1.5,-2,3\n"a ""b""",0.25,1e5,4\n', {"drop": ["note"]}),
        ("über,x,z,y\nä,1.5,-2,3\nNA,0.25,1e5,4\n".encode(), {"drop": ["über", "über"]}),
        (b",x,z,y\n0,1.5,-2,3\n1,0.25,1e5,4\n", {"drop": [""]}),
        (b"x;z;y\n1,5;-2;3\n,25;1e5;4\n", {"separator": ";", "decimal": ","}),
        (b"x;z;y\n1.5;-2;3\n.25;1e5;4\n", {"separator": ";"}),
        (b"x\tz\ty\n1.5\t-2\t3\n0.25\t1e5\t4\n", {"separator": "tab"}),
        (b"x\tz\ty\n1.5\t-2\t3\n0.25\t1e5\t4\n", {"separator": "\\t"}),
        (b"x|z|y\n1.5|-2|3\n0.25|1e5|4\n", {"separator": "|"}),
        (b"x  z y\n 1.5 -2   3 \n0.25 1e5 4\n", {"separator": "space"}),
        (b"x,z,y\n1.5,-2,3\nNA,1,2\n0.25,1e5,4\n7,,x\n", {"drop_missing": True}),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else repr(value)[:40],
)
def test_csv_of_any_layout_is_read_as_the_numbers_that_it_means(
    tmp_path: Path, content: bytes, how: dict[str, Any]
) -> None:
    data = data_of(content, tmp_path, **how)
    assert data.features.tolist() == X
    assert data.target.tolist() == Y
    assert data.left_out == ((3, 5) if how.get("drop_missing") else ())


@pytest.mark.parametrize("other", ["1,0.5,2", '1,0.5,"2"'], ids=["plain", "quoted"])
@pytest.mark.parametrize(
    "cell",
    ["1_1", "2020_01", "\uff11", "\u0661", "nan", "inf", "-Infinity", "0x10", "1e999", "1d5",
     "1,5", "1 2", ".", "e5", "1e", "--1", "1\xa0", "\u20031", "1j", "True", "#1", "$5", "5%"],
)  # fmt: skip
def test_csv_cell_that_only_some_programs_take_as_a_number_is_refused_with_its_line(
    tmp_path: Path, cell: str, other: str
) -> None:
    text = f'x,z,y\n\n{other}\n"{cell}",1,2\n'
    with pytest.raises(UsageError, match=r"^line 4 of .* column 'x'"):
        data_of(text, tmp_path)
    with pytest.raises(UsageError, match=r"^line [34] of "):
        data_of(text.replace('"', ""), tmp_path)


@given(st.lists(st.text(st.sampled_from("0123456789+-.,eE_ \t\n\xa0n\uff11"), max_size=6)))
def test_cells_are_numbers_together_exactly_if_each_is_one(cells: list[str]) -> None:
    for form in (Form(), Form(separator=";", decimal=",")):
        one_by_one = [form.number(cell) for cell in cells]
        assert form.numbers(cells) == (None if None in one_by_one else one_by_one)


@pytest.mark.parametrize(
    ("content", "how", "says"),
    [
        ("x;z;y\n1,5;2;3\n", {}, ["no column 'y'", "semicolons", "--separator ';' --decimal ,"]),
        ("x;z;y\n1.5;2;3\n", {}, ["semicolons: give --separator ';'."]),
        ("x\ty\n1\t2\n", {}, ["tabs: give --separator tab"]),
        ("x|y\n1|2\n", {}, ["bars: give --separator '|'"]),
        ("x,y\n1,2\n", {"separator": ";"}, ["commas: give --separator ,"]),
        ("x;y\n1,5;2\n", {"separator": ";"}, ["line 2", "'1,5'", "give --decimal ,."]),
        ('x,y\n"1,5",2\n', {}, ["line 2", "give --decimal , and what separates"]),
        ("x;y\n1.5;2\n", {"separator": ";", "decimal": ","}, ["line 2", "leave --decimal out"]),
        ("x,y\n1,5,2\n", {}, ["line 2", "has 3 values, the header has 2", "--decimal"]),
        ("1,2\n3,4\n", {}, ["no column 'y'", "first line is numbers"]),
        ("# made by us\nx,y\n1,2\n", {}, ["first line is a comment: remove it"]),
        ("x,y\n1,2\n# a remark\n", {}, ["line 3", "has 1 value,", "If it is a comment, remove"]),
        (",x,y\n0,1,2\n", {}, ["column 1 of", "no name", "--drop ''"]),
        ("x,y\n1,2\n5,NA\n", {}, ["line 3", "no value in column 'y' but 'NA'", "--drop-missing."]),
        ("a b,y\n,2\n", {}, ["no value in column 'a b'.", "or the column with --drop 'a b'"]),
        ("x,y\n1,2\n", {"drop": ["y"]}, ["--drop y would leave out the target"]),
        ("x,y\n1,2\n", {"drop": ["w"]}, ["no column 'w'", "It has x, y"]),
        ('x,y\n1,2\n"open,3\n4,5\n', {}, ["line 3 of", "is not CSV", "quotation mark"]),
        ('x,y\n"two\nlines",2\n', {}, ["line 2 of", "which is not a number"]),
        ('n,y,x\n"two\nlines",2,3\n\n"a",x,1\n', {"drop": ["n"]}, ["line 5 of", "column 'y'"]),
        (b"x,y\n1,2\n3,\xe4\n", {}, ["line 3", "not UTF-8 (byte 0xe4)", "iconv -f LATIN1"]),
        ("x,y\n1,2\n".encode("utf-16"), {}, ["line 1", "byte 0xff", "iconv -f UTF-16"]),
        ("x,y\n1,2\nNA,3\n", {"drop_missing": True}, ["1 observations of 2 columns"]),
        ("x,y\n", {}, ["0 observations"]),
        ("x,y\n1,2\n", {"separator": "ab"}, ["--separator 'ab' cannot separate"]),
        ("x,y\n1,2\n", {"separator": "-"}, ["--separator '-' cannot separate"]),
        ("x,y\n1,2\n", {"separator": ""}, ["--separator '' cannot separate"]),
        ("x,y\n1,2\n", {"decimal": ","}, ["are the same character", "--separator ';'"]),
        ("x,y\n1,2\n", {"decimal": ";"}, ["--decimal ';' is not a decimal sign"]),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_csv_of_another_layout_is_refused_with_the_option_that_reads_it(
    tmp_path: Path, content: str | bytes, how: dict[str, Any], says: list[str]
) -> None:
    with pytest.raises(UsageError) as refused:
        data_of(content, tmp_path, **how)
    for text in says:
        assert text in str(refused.value)


def test_csv_of_many_columns_is_read_in_twice_the_time_that_numpy_needs(tmp_path: Path) -> None:
    values = np.random.RandomState(1).normal(size=(150, 4000))
    wide = tmp_path / "wide.csv"
    names = ",".join(f"c{n}" for n in range(4000))
    np.savetxt(wide, values, fmt="%.17g", delimiter=",", header=names, comments="")

    def seconds(read: Callable[[], object]) -> float:
        begun = time.process_time()
        read()
        return time.process_time() - begun

    numpys = min(seconds(lambda: np.loadtxt(wide, delimiter=",", skiprows=1)) for _ in range(2))
    assert min(seconds(lambda: read_csv(wide, "c7")) for _ in range(2)) < 2 * numpys
    assert np.array_equal(read_csv(wide, "c7").target, values[:, 7])


def test_loo_forest_leaves_lines_without_a_value_out_and_says_which(tmp_path: Path) -> None:
    rows = [f"{n},5;{n % 3};{2 * n}" for n in range(8)]
    rows[2] = "NA;1;4"
    rows[5] = "5;2;null"
    (tmp_path / "data.csv").write_text("\n".join(["x;z;y", *rows]) + "\n")
    form = ("--separator=;", "--decimal=,")
    words = ("run", "loo-forest", "--csv=data.csv", *form, "--target=y", "--trees=2", *SERIAL)
    done = called("neurofleet", *words, "--drop-missing", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 of 8 lines are left out for missing values: 4, 7" in done.stderr
    told = json.loads(done.stdout)
    assert told["computed"] == 6
    assert json.loads(Path(told["files"]["measures"]).read_text())["left_out_lines"] == [4, 7]


def test_loo_forest_of_one_observation_says_that_r2_is_not_defined(tmp_path: Path) -> None:
    words = ("run", "loo-forest", "--held-out=1", "--trees=2", *SERIAL)
    done = called("neurofleet", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "r2 is not defined for one observation\n" in done.stdout
    (measures,) = tmp_path.rglob("measures.json")
    assert json.loads(measures.read_text())["r2"] is None
    told = json.loads(called("neurofleet", *words, "--json", cwd=tmp_path).stdout)
    assert told["measures"]["r2"] is None
    assert told["computed"] == 0


def test_loo_forest_of_another_input_has_another_run_directory_inside_this_one(
    tmp_path: Path,
) -> None:
    serial = EngineChoice(backend="serial")

    def directory(where: str, rows: str, **how: Any) -> Path:
        file = tmp_path / where / "data.csv"
        file.parent.mkdir(exist_ok=True)
        file.write_text(rows)
        request = Request(serial, file, **{"target": "y", **how})
        return request.directory(request.data())

    rows = "x,z,y,../up,a/b\n1,2,3,4,5\n6,7,8,9,0\n3,NA,3,3,3\n5,5,4,4,4\n"
    drop = {"drop": ["z"]}
    found = [
        directory("a", rows, **drop),
        directory("b", rows.replace("8", "8.5"), **drop),
        directory("b", rows, drop=["z", "x"]),
        directory("b", rows, drop_missing=True),
        directory("b", rows, trees=5, **drop),
        directory("b", rows, seed=1, **drop),
        directory("b", rows, target="x", **drop),
        directory("b", rows, target="../up", **drop),
        directory("b", rows, target="a/b", **drop),
    ]
    assert len(set(found)) == len(found)
    assert {path.parent for path in found} == {Path("neurofleet-runs").absolute()}
    assert directory("c", rows, drop=["z", "z"]) == found[0], "the same numbers are the same run"


def test_loo_forest_of_other_versions_is_another_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(EngineChoice(backend="serial"), held_out=1, trees=1, run_dir=tmp_path / "run")
    with ItemWatcher("loo-forest") as watcher:
        assert loo_forest(request, watcher).computed == 1
        assert loo_forest(request, watcher).computed == 0
        real = importlib.metadata.version
        monkeypatch.setattr(
            importlib.metadata, "version", lambda name: real(name) + "1" * (name == "numpy")
        )
        with pytest.raises(RunDirectoryError, match="results of versions numpy"):
            loo_forest(request, watcher)


def test_loo_forest_is_called_so_in_its_status_and_not_by_a_function(tmp_path: Path) -> None:
    request = Request(EngineChoice(backend="serial"), held_out=1, trees=1, run_dir=tmp_path / "run")
    with ItemWatcher("loo-forest") as watcher:
        loo_forest(request, watcher)
    assert json.loads((tmp_path / "run/status.json").read_text())["what"] == "loo-forest"
