"""Which of a person's modules travel with a function, and what name the code gets."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from neurofleet import own_code, source_scan
from neurofleet.installed import Kind, kind_of
from neurofleet.jobs import Job
from unit.engine_side import call, run, write

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    (tmp_path / "desk").mkdir()
    return tmp_path / "desk"


# -- installed or own ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("cell.py", Kind.OWN),
        ("models/purkinje/cell.py", Kind.OWN),
        ("venv/lib/python3.11/site-packages/cell.py", Kind.INSTALLED),
        ("user/lib/python3/dist-packages/cell.py", Kind.INSTALLED),
        ("target/cell.py", Kind.INSTALLED),
        ("site/cell.py", Kind.LIBRARY),
        ("../elsewhere/cell.py", Kind.OWN),
        ("cell.so", Kind.INSTALLED),
    ],
)
def test_module_is_own_or_installed_by_where_it_was_found(
    desk: Path, monkeypatch: pytest.MonkeyPatch, file: str, kind: Kind
) -> None:
    record = "cell.py,sha256=abc,10\ncell-1.0.dist-info/METADATA,,\n"
    write(desk, {"target/cell-1.0.dist-info/RECORD": record})
    monkeypatch.chdir(desk)
    monkeypatch.setenv("PYTHONPATH", f"{desk}/site:{desk}")
    path = str((desk / file).resolve())
    name = "models.purkinje.cell" if "models" in file else "cell"
    assert kind_of(name, path) is kind


def test_modules_of_python_and_of_packages_here_are_installed() -> None:
    for name in ("json", "sys", "numpy", "neurofleet.jobs", "click"):
        __import__(name)
        file = getattr(sys.modules[name], "__file__", None)
        assert kind_of(name, file) is Kind.INSTALLED, name


def test_library_on_the_python_path_travels_as_a_name_but_its_code_counts(desk: Path) -> None:
    write(
        desk,
        {
            "site/simlib/__init__.py": """
                import threading
                _lock = threading.Lock()
                def double(x):
                    with _lock:
                        return 2 * x
                """,
            "mine.py": "from simlib import double\ndef work(x):\n    return double(x)\n",
        },
    )
    path = {"PYTHONPATH": str(desk / "site")}
    first = run(desk, "import mine; send(mine.work)", env=path)
    assert call(desk, [1])["sources"] == ["mine"]
    init = desk / "site/simlib/__init__.py"
    init.write_text(init.read_text().replace("2 *", "3 *"))
    second = run(desk, "import mine; send(mine.work)", env=path)
    assert first["code"]["simlib"] != second["code"]["simlib"]
    assert first["code"]["mine"] == second["code"]["mine"]


# -- what is reached -----------------------------------------------------------------

FAR = {
    "mine.py": """
        from pkg import near
        def work(x):
            import helper
            from pkg.deep import far
            return helper.scale(x) + far.shift(x) + near.ONE
        """,
    "helper.py": "FACTOR = 10\ndef scale(x):\n    return FACTOR * x\n",
    "pkg/__init__.py": "from .base import *\n",
    "pkg/base.py": "BASE = 1\n",
    "pkg/near.py": "from . import base\nfrom .base import BASE\nONE = base.BASE\n",
    "pkg/deep/far.py": """
        import importlib
        def shift(x):
            importlib.import_module("..plugin_a", __package__)
            kind = "b"
            return importlib.import_module(f"plugins.{kind}").SHIFT + x
        """,
    "pkg/plugin_a.py": "",
    "plugins/__init__.py": "",
    "plugins/b.py": "SHIFT = 100\n",
    "unrelated.py": "raise ValueError\n",
}


def test_function_takes_along_what_it_imports_late_relatively_and_by_text(desk: Path) -> None:
    write(desk, FAR)
    told = run(desk, "import mine; send(mine.work)")
    assert set(told["code"]) == {
        "mine", "helper", "pkg", "pkg.base", "pkg.near", "pkg.deep.far", "pkg.plugin_a",
        "plugins", "plugins.b",
    }  # fmt: skip
    ended = call(desk, [1, 2], away=write(desk.parent / "away", {}))
    assert ended["results"] == [112, 123], ended


def test_finding_what_is_imported_runs_nothing(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(desk, {"late.py": "raise RuntimeError('was run')\n", "opening.py": "import late\n"})
    monkeypatch.chdir(desk)
    monkeypatch.syspath_prepend(desk)
    reached = own_code.reach(["opening"])
    assert set(reached.sources) == {"opening", "late"}
    assert not {"opening", "late"} & set(sys.modules)


def test_name_of_a_module_that_only_a_run_can_know_takes_its_neighbours(desk: Path) -> None:
    write(
        desk,
        {
            "models/__init__.py": "",
            "models/chooser.py": """
                from importlib import import_module
                def work(name):
                    return import_module(name).VALUE
                """,
            "models/granule.py": "VALUE = 'granule'\n",
            "models/mitral.py": "VALUE = 'mitral'\n",
        },
    )
    run(desk, "from models.chooser import work; send(work)")
    ended = call(desk, ["models.mitral", "models.granule"], away=write(desk.parent / "away", {}))
    assert ended["results"] == ["mitral", "granule"], ended


def test_class_of_the_items_travels_though_the_function_does_not_name_it(desk: Path) -> None:
    write(desk, {"cells.py": "class Cell:\n    def area(self):\n        return 7\n"})
    program = """
        from cells import Cell
        from neurofleet.jobs import pickled
        items = pickled([Cell()])
        send(lambda cell: cell, None, items)
        """
    assert "cells" in run(desk, program)["code"]
    assert call(desk, [])["sources"] == ["cells"]


# -- the name of the code ------------------------------------------------------------


def test_code_changes_with_a_late_import_and_not_with_an_unrelated_file(desk: Path) -> None:
    write(desk, FAR)
    program = "import mine; send(mine.work)"
    first = run(desk, program)
    (desk / "unrelated.py").write_text("x = 1\n")
    assert run(desk, program) == first
    (desk / "helper.py").write_text(FAR["helper.py"].replace("10", "1000"))
    second = run(desk, program)
    assert {n for n in second["code"] if second["code"][n] != first["code"][n]} == {"helper"}


def test_code_covers_a_sibling_of_a_script_in_another_directory(desk: Path) -> None:
    write(desk, {"scripts/sibling.py": "FACTOR = 2\n"})
    program = "import sibling\ndef fit(x):\n    return sibling.FACTOR * x\nsend(fit)\n"
    first = run(desk, program, script="scripts/fit.py")
    assert call(desk, [3])["results"] == [6]
    (desk / "scripts/sibling.py").write_text("FACTOR = 3\n")
    second = run(desk, program, script="scripts/fit.py")
    assert first["code"]["sibling"] != second["code"]["sibling"]
    assert first["code"]["fit()"] == second["code"]["fit()"]


MAIN = """
from dataclasses import dataclass
import numpy as np
KINDS = {"soma", "axon", "dend", "apic"}
DATA = np.arange(5.0)
@dataclass
class Cell:
    diam: float = 2.0
    def area(self):
        return 3 * self.diam
def helper(x, factor={FACTOR}):
    return factor * x
def fit(x, table={"b": 1, "a": (2, KINDS)}):
    return [helper(y) for y in DATA], sorted(KINDS), Cell().area(), lambda: x
send(fit, {"kinds": KINDS, "cell": Cell(), "data": DATA})
"""


def test_code_of_a_program_is_the_same_in_every_run_and_counts_no_lines(desk: Path) -> None:
    program = MAIN.replace("{FACTOR}", "2")
    first = run(desk, program, env={"PYTHONHASHSEED": "1"})
    assert run(desk, "# a comment\n\n" + program, env={"PYTHONHASHSEED": "2"}) == first
    changed = run(desk, MAIN.replace("{FACTOR}", "3"))
    assert changed["code"] != first["code"]
    assert changed["data"] == first["data"]
    for old, new in (("3 * self", "4 * self"), ("arange(5.0)", "arange(6.0)")):
        assert run(desk, program.replace(old, new))["code"] != first["code"], new


# -- whether a call needs a process of its own; versions -----------------------------


@pytest.mark.parametrize(
    ("source", "alone"),
    [
        ("import math, numpy as np\nfrom scipy import optimize\nimport sklearn.ensemble\n", False),
        ("from neuron import h\n", True),
        ("def f(x):\n    import bluepyopt\n", True),
        ("import os\nos.environ['OMP_NUM_THREADS'] = '1'\n", True),
        ("import numpy\nnumpy.seterr(all='raise')\n", True),
        ("import numpy\nnumpy.float = float\n", True),
        ("import numpy\nsetattr(numpy, 'float', float)\n", True),
        ("import json\ndef f(x):\n    json.encoder.ESCAPE_DCT.update(x)\n", True),
        ("import sys, numpy\nsys.path.append('.')\nx = numpy.append([1], 2)\n", False),
        ("import signal\n", True),
        ("from scipy import signal\n", False),
    ],
)
def test_call_needs_its_own_process_if_what_it_reaches_keeps_a_state(
    desk: Path, monkeypatch: pytest.MonkeyPatch, source: str, alone: bool
) -> None:
    write(desk, {"work_of_mine.py": source})
    monkeypatch.chdir(desk)
    monkeypatch.syspath_prepend(desk)
    assert own_code.reach(["work_of_mine"]).own_process is alone


@pytest.mark.parametrize(
    ("body", "alone"),
    [
        ("import json\n    json.mark = x", True),
        ("string.mark = x", True),
        ("string.mark += x", True),
        ("string.templates.plain = x", True),
        ("string.table['x'] = x", True),
        ("string.table[x] += 1", True),
        ("del string.mark", True),
        ("setattr(string, 'mark', x)", True),
        ("string.table.update(x)", True),
        ("import sys\n    sys.path.append(x)", False),
        ("import numpy\n    return numpy.append(x, 1)", False),
        ("from os import path as p\n    p.mark = x", True),
        ("import json\n    def inner():\n        json.mark = x\n    inner()", True),
        ("x.mark = string.digits", False),
        ("x.mark += len(string.digits)", False),
        ("x[string.digits] = 1", False),
        ("import json\n    found = {}\n    found['x'] = json.dumps(x)", False),
    ],
)
def test_code_without_a_source_keeps_a_state_if_it_sets_something_in_a_module(
    body: str, alone: bool
) -> None:
    code = compile(f"def f(x):\n    {body}\n", "<cell>", "exec").co_consts[0]
    assert source_scan.of_code(code, "", ["string"]).stateful is alone


def test_function_of_the_program_that_sets_something_in_a_module_gets_its_own_process(
    desk: Path,
) -> None:
    program = """
        import string
        def count(x):
            string.mark = getattr(string, "mark", 0) + 1
            return string.mark
        send(count)
        """
    run(desk, program)
    assert call(desk, [1, 2, 3])["own_process"]


@pytest.mark.parametrize(
    ("before", "there"), [("pass", True), ("os.environ['OMP_NUM_THREADS'] = '1'", False)]
)
def test_installed_module_that_a_function_imports_late_is_there_unless_it_sets_something_first(
    desk: Path, before: str, there: bool
) -> None:
    module = f"""
        import os, sys
        def late(x):
            {before}
            found = "scipy.special" in sys.modules
            from scipy.special import gamma
            return found
        """
    write(desk, {"late_ones.py": module})
    run(desk, "import late_ones; send(late_ones.late)")
    assert call(desk, [1])["results"] == [there]


def test_versions_of_what_is_imported_and_of_what_that_computes_with() -> None:
    asked = source_scan.of_source(b"import sklearn.ensemble, json\n", "")
    versions = own_code.reach([], [asked]).versions()
    assert {"scikit-learn", "numpy", "scipy"} <= set(versions)
    assert Job.of(abs).versions == {}
    assert own_code.reach(["neuron"]).versions()["neuron"]
