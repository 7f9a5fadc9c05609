"""The report as a person sees it: in a real browser, on a screen and on a telephone."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from neurofleet.report import write_report
from unit.report_runs import L5PC_OBJECTIVES, Shape, make_run

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
pytestmark = pytest.mark.skipif(
    "CI" not in os.environ and not (CHROMIUM.exists() and DRIVER.exists()),
    reason="needs the Debian packages chromium and chromium-driver",
)
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
WIDTHS = (1600, 400)

#: Visible shapes of a part of a figure: the union of what is drawn in it, on the page.
SHAPES = """
return [...document.querySelectorAll(arguments[0])].map(shape => {
  const box = shape.getBoundingClientRect();
  const figure = shape.closest('svg').getBoundingClientRect();
  return {width: box.width, height: box.height, drawn: shape.getAttribute('d') !== null,
          inside: box.left >= figure.left - 1 && box.right <= figure.right + 1
                  && box.top >= figure.top - 1 && box.bottom <= figure.bottom + 1};
});
"""
#: Text that sticks out of its figure.
CUT_OFF = """
return [...document.querySelectorAll('svg text')].filter(text => {
  const box = text.getBoundingClientRect();
  const figure = text.closest('svg').getBoundingClientRect();
  return box.width > 0 && (box.left < figure.left - 2 || box.right > figure.right + 2);
}).map(text => text.closest('svg').id + ': ' + text.textContent);
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = Shape(failures=(("timeout", "ended at its limit of 340 s"),), pause_s=90_000.0)
    return write_report(make_run(tmp_path_factory.mktemp("run"), shape))


def _open(browser: Any, path: Path, width: int) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False},
    )
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(path.as_uri())


@pytest.mark.parametrize("width", WIDTHS)
def test_report_opened_from_a_file_has_no_errors_and_asks_for_nothing(
    browser: Any, report: Path, width: int
) -> None:
    _open(browser, report, width)
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    asked = [
        event["params"]["request"]["url"]
        for event in (json.loads(e["message"])["message"] for e in browser.get_log("performance"))
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if url not in (report.as_uri(), "data:,")] == []


@pytest.mark.parametrize("width", WIDTHS)
def test_report_any_width_has_no_sideways_scroll(browser: Any, report: Path, width: int) -> None:
    _open(browser, report, width)
    page = "return [document.documentElement.scrollWidth, window.innerWidth]"
    wanted, given = browser.execute_script(page)
    assert given == width
    assert wanted <= given


@pytest.mark.parametrize("width", WIDTHS)
def test_report_every_figure_is_drawn(browser: Any, report: Path, width: int) -> None:
    _open(browser, report, width)
    suffix = "" if width > 640 else "-narrow"

    def shapes(selector: str) -> list[dict[str, Any]]:
        found = browser.execute_script(SHAPES, selector)
        assert found, f"{selector} is not in the page"
        for shape in found:
            assert shape["drawn"], selector
            assert shape["inside"], (selector, shape)
            assert shape["width"] + shape["height"] > 0, (selector, shape)
        return list(found)

    bars = shapes(f"svg#scores{suffix} g[id*='scores{suffix}-bar-'] path")
    assert len(bars) == len(L5PC_OBJECTIVES)
    assert all(bar["width"] > 0.2 and bar["height"] > 3 for bar in bars)
    assert shapes(f"#fitness{suffix} g[id$='-minimum'] path")[0]["height"] > 50
    assert shapes(f"#parameters{suffix} g[id$='-population'] path")[0]["width"] > 100
    assert len(shapes("#timeline g[id*='-unit-'] path")) == 5  # bAP, three steps, and whole
    assert shapes("#timeline g[id$='-unit-0'] path")[0]["width"] > 100
    assert shapes("#timeline g[id$='-failed'] path")
    assert len(shapes(f"#balance{suffix} g[id*='-part-'] path")) == 7
    for protocol, recordings in enumerate((3, 1, 1, 1)):
        traces = shapes(f"#traces-{protocol} g[id*='-trace-'] path")
        assert len(traces) == recordings
        assert all(trace["width"] > 100 and trace["height"] > 30 for trace in traces)


@pytest.mark.parametrize("width", WIDTHS)
def test_report_letters_in_figures_are_not_cut_off(browser: Any, report: Path, width: int) -> None:
    _open(browser, report, width)
    assert browser.execute_script(CUT_OFF) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_report_only_one_size_of_a_figure_is_shown(browser: Any, report: Path, width: int) -> None:
    _open(browser, report, width)
    shown = browser.execute_script(
        "return [...document.querySelectorAll('svg')]"
        ".filter(svg => svg.getBoundingClientRect().width > 0).map(svg => svg.id)"
    )
    suffix = "" if width > 640 else "-narrow"
    assert sorted(shown) == sorted(
        ["timeline", *(f"traces-{i}" for i in range(4)),
         *(f"{name}{suffix}" for name in ("fitness", "scores", "parameters", "balance"))]
    )  # fmt: skip


def test_report_dark_screen_gives_light_letters_on_dark(browser: Any, report: Path) -> None:
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    try:
        _open(browser, report, 1600)
        letters, page = browser.execute_script(
            "return [getComputedStyle(document.querySelector('#scores text')).fill,"
            " getComputedStyle(document.body).backgroundColor]"
        )
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    brightness = [sum(map(int, c.strip("rgb()").split(","))) / 3 for c in (letters, page)]
    assert brightness[0] - brightness[1] > 120


def test_report_printed_holds_every_row_of_its_tables(browser: Any, report: Path) -> None:
    _open(browser, report, 1600)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        hidden = browser.execute_script(
            "return [...document.querySelectorAll('.scroll')]"
            ".filter(box => box.scrollHeight > box.clientHeight + 1"
            " && getComputedStyle(box).overflowY !== 'visible').length"
        )
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert hidden == 0
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")


def test_report_names_like_markup_run_no_code(browser: Any, tmp_path: Path) -> None:
    bad = "<img src=x onerror=document.title='broken'>"
    shape = Shape(generations=2, offspring=3, name=bad, parameters=(bad, "</svg>" + "x" * 200),
                  objectives=(f"bAP.{bad}",), protocols=("bAP",), penalised=(),
                  failures=(("raised", bad),))  # fmt: skip
    _open(browser, write_report(make_run(tmp_path, shape)), 400)
    assert browser.title.startswith("<img src=x")
    assert browser.get_log("browser") == []
    wide = "return document.documentElement.scrollWidth <= window.innerWidth"
    assert browser.execute_script(wide)
