"""Random numbers depend on the run's seed and the item, on nothing that ran before."""

from __future__ import annotations

from pathlib import Path

import pytest

from unit.engine_side import call, run, write

pytestmark = pytest.mark.timeout(120)

MINE = """
    import random
    import numpy as np
    RNG = np.random.default_rng(0)
    OLD = np.random.RandomState(0)
    PLAIN = random.Random(0)
    NOISE = np.random.normal(size=2).tolist()
    np.random.seed(3)
    class Model:
        def __init__(self):
            self.rng = np.random.default_rng(0)
    MODEL = Model()
    def draws():
        return [RNG.normal(), OLD.normal(), PLAIN.random(), MODEL.rng.normal(), random.random(),
                np.random.normal()]
    def work(x, rng=np.random.default_rng(0)):
        return [*draws(), rng.normal()]
    def noise(x):
        return NOISE
    """
PROGRAM = """
    import random
    import numpy as np
    import mine
    HERE = np.random.default_rng(0)
    LOT = [random.Random(0), np.random.RandomState(0), np.random.Generator(np.random.PCG64(0))]
    def work(x, shared):
        inside = [HERE.normal(), *(one.uniform(0, 1) for one in LOT), shared.normal()]
        return mine.work(x) + inside
    send(work, {"shared": np.random.default_rng(0)})
    """


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    return write(tmp_path / "desk", {"mine.py": MINE})


def test_each_generator_has_numbers_of_its_own_for_each_item_and_seed(desk: Path) -> None:
    run(desk, PROGRAM)
    first = call(desk, [0, 0, 0], seed=5)
    again = call(desk, [0, 0, 0], seed=5)
    other = call(desk, [0, 0, 0], seed=6)
    assert first["results"] == again["results"], first
    assert first["drew"] == [True] * 3
    numbers = [n for told in (first, other) for item in told["results"] for n in item]
    assert len(numbers) == len(set(numbers)) == 72


def test_numbers_do_not_depend_on_the_items_before(desk: Path) -> None:
    run(desk, "import mine; send(lambda x: mine.draws() if x else None)")
    ended = call(desk, [1, 1], seed=5)["results"]
    later = call(desk, [0, 1], seed=5)
    assert later["results"] == [None, ended[1]]
    assert later["drew"] == [False, True]


def test_what_an_own_module_draws_when_it_is_imported_is_the_same_for_all_items(
    desk: Path,
) -> None:
    run(desk, "import mine; send(mine.noise)")
    told = call(desk, [0, 0], seed=5)
    first, second = told["results"]
    assert first == second
    assert told["drew"] == [False, False]


def test_generator_that_is_an_item_travels_as_it_is(desk: Path) -> None:
    import pickle

    import numpy as np

    from neurofleet.jobs import pickled

    generator = np.random.default_rng(4)
    (sent,) = pickled([generator])
    assert pickle.loads(sent).normal() == generator.normal()
