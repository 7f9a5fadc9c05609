"""The page: the same bytes every time, of bearable size, and nothing of it is code."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from neurofleet.report import write_report
from neurofleet.report.figures import decimated
from neurofleet.report.page import protocol_of
from unit.report_runs import SMALL, Shape, make_run


class _Elements(HTMLParser):
    """Counts elements, gathers ids and addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.addresses: list[str] = []
        self.svgs: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names[tag] += 1
        for name, value in attrs:
            if name == "id":
                self.ids[str(value)] += 1
            if name in ("src", "href", "xlink:href", "data", "action"):
                self.addresses.append(str(value))
        if tag == "svg":
            self.svgs.append(dict(attrs))


def test_page_small_run_has_every_part_and_no_address_outside(tmp_path: Path) -> None:
    text = write_report(make_run(tmp_path, SMALL)).read_text()
    elements = _Elements(text)
    assert elements.names["figure"] == elements.names["figcaption"] == 5 + 2
    assert not elements.names["script"]
    assert all(address.startswith("#") or address == "data:," for address in elements.addresses)
    assert {address[1:] for address in elements.addresses if address[0] == "#"} <= set(elements.ids)
    assert [name for name, count in elements.ids.items() if count > 1] == []
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in elements.svgs)
    assert "url(http" not in text
    for words in ("Evolution of fitness", "Where the time went", "3f3f3f3f", "opt_l5pc --start"):
        assert words in text


def test_page_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = make_run(tmp_path, SMALL)
    first = write_report(run).read_bytes()
    again = [sys.executable, "-c", "import sys, pathlib; from neurofleet.report import"
             " write_report; write_report(pathlib.Path(sys.argv[1]))", str(run)]  # fmt: skip
    path = os.pathsep.join(filter(None, sys.path))
    env = {**os.environ, "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "5", "PYTHONPATH": path}
    subprocess.run(again, env=env, check=True, timeout=120)
    assert (run / "report.html").read_bytes() == first


def test_page_names_like_markup_stay_text(tmp_path: Path) -> None:
    bad = "<img src=x onerror=alert(1)>"
    shape = Shape(
        generations=2, offspring=3, engines=2, name=f"<script>{bad}",
        protocols=(f"P{bad}", "Q&\"'"),
        objectives=(f"P{bad}.soma.$x_1^{{", "Q&\"'.soma." + "long" * 60, "plain\x07"),
        parameters=(f"g{bad}", "$\\frac{", "</svg></style>"), penalised=(0,),
        failures=(("raised", f"{bad}\n{bad}" * 50),) * 3, state=f"x{bad}",
        about={"command": bad, "units": {"mode": bad, "why": bad}},
    )  # fmt: skip
    run = make_run(tmp_path, shape)
    elements = _Elements(write_report(run).read_text())
    assert not elements.names["img"]
    assert not elements.names["script"]
    assert elements.names["style"] == 1
    assert elements.names["svg"] == 9 + 2


@pytest.mark.parametrize("state", ["finished", "running", "interrupted", "failed"])
def test_page_any_state_is_named(tmp_path: Path, state: str) -> None:
    text = write_report(make_run(tmp_path, replace(SMALL, state=state))).read_text()
    assert f'class="state {state}"' in text


def test_page_pure_python_evaluator_has_scores_without_traces(tmp_path: Path) -> None:
    shape = Shape(generations=1, offspring=1, engines=1, protocols=(), objectives=("f",),
                  parameters=("x",), penalised=(), traces=None)  # fmt: skip
    text = write_report(make_run(tmp_path, shape)).read_text()
    assert "score (lower is better)" in text
    assert "neurofleet report RUN_DIR --traces" in text


def test_page_failed_units_are_counted_by_kind(tmp_path: Path) -> None:
    shape = replace(SMALL, generations=6, failures=(("crashed", "died of signal 11"),))
    text = write_report(make_run(tmp_path, shape)).read_text()
    assert "died of signal 11" in text
    assert '<svg id="timeline"' in text
    assert 'id="timeline-failed"' in text


def test_page_values_that_are_not_finite_are_drawn_around(tmp_path: Path) -> None:
    run = make_run(tmp_path, SMALL)
    with (run / "checkpoint.pkl").open("rb") as file:
        state = pickle.load(file)
    best = state["halloffame"][0]
    best.fitness.values = [math.nan, math.inf, *best.fitness.values[2:]]
    state["population"][0][0] = math.nan
    for entry, value in zip(state["logbook"], (math.inf, math.nan, -3.0), strict=True):
        entry["max"] = entry["avg"] = np.float64(value)
    (run / "checkpoint.pkl").write_bytes(pickle.dumps(state))
    text = write_report(run).read_text()
    assert "not a number" in text
    assert not re.search(r' d="[^"]*nan', text)


def test_page_scores_that_are_not_finite_are_named_and_the_best_is_one_that_has_none(
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path, SMALL)
    with (run / "checkpoint.pkl").open("rb") as file:
        state = pickle.load(file)
    first, second = state["halloffame"][0], state["halloffame"][1]
    for one in [*state["population"], *state["halloffame"]]:
        if list(one) == list(first):
            one.fitness.values = [math.nan, math.inf, *one.fitness.values[2:]]
    (run / "checkpoint.pkl").write_bytes(pickle.dumps(state))
    text = write_report(run).read_text()
    assert "not a number" not in text
    assert f"{SMALL.objectives[0]} (1)," in text
    assert f"{SMALL.objectives[1]} (1)." in text
    assert f"<b>{second.fitness.sum:.4g}</b>" in text


def test_page_run_in_which_no_individual_is_finite_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path, SMALL)
    with (run / "checkpoint.pkl").open("rb") as file:
        state = pickle.load(file)
    for one in [*state["population"], *state["halloffame"]]:
        one.fitness.values = [math.nan, *one.fitness.values[1:]]
    (run / "checkpoint.pkl").write_bytes(pickle.dumps(state))
    text = write_report(run).read_text()
    assert "not a number" in text
    assert "of which there is none" in text


def test_page_record_without_optional_keys_is_written(tmp_path: Path) -> None:
    run = make_run(tmp_path, SMALL)
    about = json.loads((run / "neurofleet-run.json").read_text())
    kept = {key: about[key] for key in ("schema_version", "model", "description")}
    kept["model"] = {"digest": about["model"]["digest"]}
    (run / "neurofleet-run.json").write_text(json.dumps(kept))
    assert "of unknown state" in write_report(run).read_text()


def test_page_largest_run_stays_small_and_quick(tmp_path: Path) -> None:
    shape = Shape(
        generations=50, offspring=400, engines=100, hosts=13,
        protocols=("Step1", "Step2", "Step3", "Step4"),
        objectives=tuple(f"Step{1 + i % 4}.soma.feature_{i}" for i in range(200)),
        parameters=tuple(f"parameter_{i}" for i in range(40)),
    )  # fmt: skip
    run = make_run(tmp_path, shape)
    begun = time.monotonic()
    size = write_report(run).stat().st_size
    assert size < 5_000_000
    assert time.monotonic() - begun < 45
    assert "80\u202f010" in (run / "report.html").read_text()


def test_page_many_protocols_and_long_traces_stay_small(tmp_path: Path) -> None:
    protocols = tuple(f"Step{i}" for i in range(30))
    run = make_run(tmp_path, Shape(
        generations=2, offspring=3, engines=300, protocols=protocols,
        objectives=tuple(f"{name}.soma.x" for name in protocols), penalised=(),
    ))  # fmt: skip
    text = write_report(run).read_text()
    assert len(text) < 5_000_000
    assert text.count('class="panel"') == 30


def test_decimated_long_trace_keeps_its_extremes_and_ends() -> None:
    x = np.arange(100_000, dtype=np.float64)
    y = np.sin(x)
    y[12_345], y[67_890] = 40.0, -90.0
    thin_x, thin_y = decimated(x, y, 1000)
    assert len(thin_x) <= 1002
    assert (thin_y.max(), thin_y.min()) == (40.0, -90.0)
    assert (thin_x[0], thin_x[-1]) == (0, 99_999)
    assert np.all(np.diff(thin_x) > 0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Step1.soma.v", "Step1"), ("Step10.soma.v", "Step10"), ("a.b.soma.v", "a.b"),
        ("Step1", "Step1"), ("other.soma.v", "other"), ("plain", ""),
    ],
)  # fmt: skip
def test_protocol_of_recording_name_is_the_longest_that_fits(name: str, expected: str) -> None:
    assert protocol_of(name, ("Step1", "Step10", "a", "a.b")) == expected
