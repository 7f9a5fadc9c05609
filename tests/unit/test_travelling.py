"""Functions work on an engine as they do in the program that sends them, or are refused by name."""

from __future__ import annotations

import functools
import pickle
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neurofleet.engine.of_json import OfJson
from neurofleet.errors import UsageError
from neurofleet.jobs import Job, pickled
from unit.engine_side import call, run, write

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    return write(tmp_path / "desk", {})


@pytest.fixture
def away(tmp_path: Path) -> Path:
    return write(tmp_path / "away", {})


# -- as in plain Python --------------------------------------------------------------


def test_module_with_the_interpreter_at_its_top_and_a_lock_is_imported_there(
    desk: Path, away: Path
) -> None:
    module = """
        import logging, threading
        from neuron import h
        h.load_file("stdrun.hoc")
        LOCK = threading.Lock()
        LOG = logging.getLogger(__name__)
        def simulate(amp):
            with LOCK:
                soma = h.Section(name="soma")
                soma.L = soma.diam = 20
                soma.insert("hh")
                clamp = h.IClamp(soma(0.5))
                clamp.delay, clamp.dur, clamp.amp = 1, 5, amp
                v = h.Vector().record(soma(0.5)._ref_v)
                h.finitialize(-65)
                h.continuerun(8)
                LOG.info("done")
                return max(v)
        """
    write(desk, {"nrnsim.py": module})
    run(desk, "import nrnsim; send(nrnsim.simulate, as_imported=True)")
    ended = call(desk, [-0.1, 0.5], away=away)
    assert ended["own_process"]
    quiet, spike = ended["results"]
    assert quiet < 0 < spike


def test_program_s_own_globals_travel_locks_new_and_the_interpreter_as_itself(
    desk: Path, away: Path
) -> None:
    program = """
        import contextvars, functools, logging, random, sys, threading
        from random import random as draw
        import numpy as np
        from neuron import h

        lock, again, ready = threading.Lock(), threading.RLock(), threading.Event()
        condition, three, mine = threading.Condition(), threading.Semaphore(3), threading.local()
        log, out, depth = logging.getLogger("mine"), sys.stdout, contextvars.ContextVar("depth")
        lock.acquire()
        mine.cell = 1

        @functools.lru_cache(maxsize=7)
        def square(x):
            return x * x

        def work(x):
            with lock, again, condition, three:
                log.info("%s", ready.is_set())
                depth.set(square.cache_parameters()["maxsize"])
                h.celsius = 20 + x
                values = [draw(), random.random(), np.random.random()]
            told = [h.celsius, square(x), depth.get(), hasattr(mine, "cell"), out is sys.stdout]
            return told, values

        send(work)
        """
    assert {"neuron", "numpy"} <= set(run(desk, program)["versions"])
    ended = call(desk, [1, 2], away=away)
    assert ended["own_process"]  # NEURON keeps a state
    assert [told for told, _ in ended["results"]] == [
        [21, 1, 7, False, True],
        [22, 4, 7, False, True],
    ], ended
    first, second = (values for _, values in ended["results"])
    assert not set(first) & set(second)


def test_traceback_shows_the_person_s_file_line_and_text(desk: Path, away: Path) -> None:
    write(desk, {"mine.py": "def work(x):\n    return 1 / x  # by zero\n"})
    run(desk, "import mine; send(mine.work)")
    (desk / "mine.py").unlink()
    told = call(desk, [0], away=away)["traceback"]
    assert f'File "{desk}/mine.py", line 2, in work' in told
    assert "return 1 / x  # by zero" in told


def test_each_call_finds_own_modules_as_import_makes_them(desk: Path, away: Path) -> None:
    module = "CALLS = []\ndef work(x):\n    CALLS.append(x)\n    return len(CALLS)\n"
    write(desk, {"mine.py": module})
    run(desk, "import mine; send(mine.work)")
    assert call(desk, [1, 2, 3], away=away)["results"] == [1, 1, 1]


def test_own_module_with_the_name_of_one_of_python_s_is_the_own_one(desk: Path, away: Path) -> None:
    write(desk, {"queue.py": "def work(x):\n    return 'mine'\n"})
    run(desk, "import queue; send(queue.work)", env={"PYTHONSAFEPATH": ""})
    assert call(desk, [1], away=away)["results"] == ["mine"]


def test_closures_decorated_functions_and_methods_share_their_module(
    desk: Path, away: Path
) -> None:
    write(
        desk,
        {
            "mine.py": """
                import functools, sqlite3
                NOTES = sqlite3.connect(":memory:")
                STATE = {"n": 0}
                def counted(function):
                    @functools.wraps(function)
                    def inner(x):
                        STATE["n"] += 1
                        return function(x)
                    return inner
                @counted
                def work(x):
                    return x + STATE["n"]
                @functools.lru_cache
                def remembered(x):
                    return 10 * x
                def adder(n):
                    return lambda x: work(x) + n + len(NOTES.execute("select 1").fetchall())
                class Model:
                    def __init__(self, gain):
                        self.gain = gain
                    def run(self, x):
                        return self.gain * work(x)
                """
        },
    )
    for function, expected in (
        ("adder(5)", 8),
        ("Model(3).run", 6),
        ("work", 2),
        ("remembered", 10),
    ):
        run(desk, f"import mine; send(mine.{function})")
        ended = call(desk, [1, 1], away=away)
        assert ended["results"] == [expected] * 2, ended


# -- what was set since import -------------------------------------------------------

CONFIG = """
    import os
    import types
    DT = 0.025
    NAME = None
    PID = os.getpid()
    P = dict(g=1.0)
    LIST = [1, 2]
    ns = types.SimpleNamespace(tau=5)
    STARTED = False
    class Model:
        scale = 1
        def __init__(self):
            self.gain = 1
        def run(self, x):
            return x
    MODEL = Model()
    def start():
        global STARTED
        STARTED = True
    def noise(x):
        return 0
    """
READER = """
    import config
    from config import DT, MODEL, P, noise
    def work(x):
        return [config.DT, DT, config.NAME, P["g"], P.get("h"), config.LIST, config.ns.tau,
                config.STARTED, config.Model.scale, MODEL.gain, MODEL.run(2), config.noise(1),
                noise(1), getattr(config, "EXTRA", None)]
    def pid(x):
        return config.PID
    """


def test_what_a_program_set_in_its_modules_since_import_is_set_there(
    desk: Path, away: Path
) -> None:
    write(desk, {"config.py": CONFIG, "reader.py": READER})
    plain = "import config, reader\nprint(reader.work(0))\n"
    settings = """
        config.DT = 0.1
        config.NAME = "pyramidal"
        config.P["g"], config.P["h"] = 2.0, 3.0
        config.LIST.append(3)
        config.ns.tau = 7
        config.start()
        config.Model.scale = 4
        config.Model.run = lambda self, x: 10 * x
        config.MODEL.gain = 9
        config.noise = lambda x: x + 100
        config.EXTRA = (1, 2)
        """
    run(desk, plain + "send(reader.work)")
    unset = [0.025, 0.025, None, 1.0, None, [1, 2], 5, False, 1, 1, 2, 0, 0, None]
    assert call(desk, [1], away=away)["results"] == [unset]
    lines = "\n".join(line.strip() for line in settings.splitlines())
    told = run(desk, f"import config, reader\n{lines}\nprint(reader.work(0))\nsend(reader.work)")
    ended = call(desk, [1, 1], away=away)
    # ``from config import DT, noise`` came first, so it has what they were then.
    was_set = [0.1, 0.025, "pyramidal", 2.0, 3.0, [1, 2, 3], 7, True, 4, 9, 20, 101, 0, [1, 2]]
    assert ended["results"] == [was_set] * 2, ended
    assert {"config.DT", "config.P", "config.EXTRA", "config.Model.scale"} <= set(told["code"])
    run(desk, f"import config, reader\n{lines}\nsend(reader.pid)")
    (pid,) = call(desk, [1], away=away)["results"]
    run(desk, f"import config, reader\nprint(config.PID)\n{lines}\nsend(reader.pid)")
    assert call(desk, [1], away=away)["results"] != [pid]  # import finds it out, there


KINDS = """
    from __future__ import annotations
    import abc, enum, functools, logging, random
    from dataclasses import dataclass, field
    from typing import NamedTuple, Protocol, TypedDict, TypeVar, overload
    from pathlib import *
    T = TypeVar("T")
    try:
        import ujson as json
    except ImportError:
        import json
    if T:
        def chosen(): return 1
    for i in range(3):
        last = i
    A = B = 3
    X, Y = 1, float("nan")
    COUNT: int = 0
    class Color(enum.Enum):
        RED = 1
    class Point(NamedTuple):
        x: int = 1
    class Shape(Protocol):
        z: int
    class Options(TypedDict, total=False):
        a: int
    class Base(abc.ABC):
        table = {"a": 1}
        @abc.abstractmethod
        def f(self): ...
        @property
        def p(self): return 1
        @staticmethod
        def s(): return 1
        class Inner:
            Q = 2
    @dataclass(slots=True)
    class Cell:
        x: int = 1
        parts: list = field(default_factory=list)
    class Meta(type):
        def __new__(cls, name, bases, content):
            return super().__new__(cls, name, bases, {**content, "added": 3})
    class Made(metaclass=Meta):
        V = 1
    @functools.singledispatch
    def kind(x): return 0
    @kind.register
    def _(x: int): return 1
    @functools.lru_cache
    def cached(x): return x
    def twice(): return 1
    def twice(): return 2
    made = lambda x: x
    def counts():
        global COUNT
        COUNT += 1
    log = logging.getLogger(__name__)
    RNG = random.Random(0)
    class Options2:
        def __init__(self, **values):
            for key, value in values.items():
                setattr(self, key, value)
    def work(x):
        log.info("%s", RNG.random())
        return x
    """


def test_module_in_which_nothing_was_set_counts_by_its_source_alone(desk: Path) -> None:
    write(desk, {"kinds.py": KINDS})
    assert set(run(desk, "import kinds; send(kinds.work)")["code"]) == {"kinds"}
    assert call(desk, [4])["results"] == [4]


def test_function_whose_file_was_edited_since_it_was_imported_is_the_one_imported(
    desk: Path, away: Path
) -> None:
    write(desk, {"mine.py": "def work(x):\n    return 1\ndef other(x):\n    return work(x)\n"})
    program = """
        import mine
        from pathlib import Path
        file = Path("mine.py")
        file.write_text(file.read_text().replace("return 1", "return 2"))
        send(mine.other)
        """
    run(desk, program)
    assert call(desk, [1], away=away)["results"] == [1]


# -- what cannot be sent -------------------------------------------------------------


def test_global_that_cannot_be_sent_matters_only_to_a_function_that_uses_it(
    desk: Path, away: Path
) -> None:
    program = """
        import sqlite3
        conn = sqlite3.connect(":memory:")
        def read(x):
            return conn.execute("select ?", (x,)).fetchone()
        def work(x):
            return x if x < 3 else read(x)
        send(work)
        """
    run(desk, program)
    ended = call(desk, [1, 3], away=away)
    assert ended["results"] == [1, None]
    assert ended["errors"] == [
        "NotSentError: read uses the global 'conn', a sqlite3.Connection, which cannot be sent;"
        " open it inside the function"
    ]


class Simulation:
    """Has what cannot be sent, not at once to be seen."""

    def __init__(self) -> None:
        self.parts = {"log": [sqlite3.connect(":memory:")]}

    def run(self, x: int) -> int:
        return x


def _defaults(notes: Any) -> Callable[[Any], Any]:
    def work(x: Any, store: Any = notes) -> Any:
        return x, store

    return work


def _closure(notes: Any) -> Callable[[Any], Any]:
    return lambda x: (x, notes)


@pytest.mark.parametrize(
    ("make", "shared", "says"),
    [
        (_closure, None, "its variable 'notes' is a sqlite3.Connection"),
        (_defaults, None, "the default of its argument 'store' is a sqlite3.Connection"),
        (lambda n: functools.partial(max, n), None, "max cannot be .*: argument 1 is a sqlite3"),
        (lambda n: OfJson(_defaults(n)), None, "work cannot be sent to engines: the default"),
        (
            lambda _: Simulation().run,
            None,
            r"Simulation.run cannot .*: its object.parts\['log'\]\[0\]",
        ),
        (
            lambda _: abs,
            {"a": {"b": [1, "N"]}},
            r"abs cannot be .*: shared\['a'\]\['b'\]\[1\] is a",
        ),
    ],
)
def test_function_that_cannot_be_sent_is_refused_with_the_part_and_no_name_of_ours(
    make: Any, shared: Any, says: str
) -> None:
    notes = sqlite3.connect(":memory:")
    if shared:
        shared["a"]["b"][1] = notes
    with pytest.raises(UsageError, match=says) as refused:
        Job.of(make(notes), shared)
    assert not any(word in str(refused.value) for word in ("OfJson", "WithData", "Bound"))


def test_item_that_cannot_be_sent_is_refused_with_its_number_and_part() -> None:
    with pytest.raises(UsageError, match="item 1, a generator, cannot be sent"):
        pickled([1, (i for i in range(3))])
    with pytest.raises(UsageError, match=r"item 0: item 0\['log'\], a sqlite3.Connection, cannot"):
        pickled([{"log": sqlite3.connect(":memory:")}])


def test_making_a_job_draws_no_random_number() -> None:
    class Draws:
        def __reduce__(self) -> Any:
            return float, (random.random() + np.random.random(),)

    random.seed(1)
    np.random.seed(1)
    expected = [random.random(), random.random(), np.random.random()]
    random.seed(1)
    np.random.seed(1)
    Job.of(lambda x: x, {"data": Draws()})
    pickled([Draws()])
    (item,) = pickled(random.random() for _ in range(1))  # this one does draw
    assert [pickle.loads(item), random.random(), np.random.random()] == expected
