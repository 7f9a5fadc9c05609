"""Shared by the unit tests: a model cache of their own, and how long hypothesis may take."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would every program
# that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "unit",
    database=None,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("unit")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the tests' models out of the user's cache, and the user's settings out of the tests."""
    cache = tmp_path_factory.mktemp("cache")
    kept = dict(os.environ)
    for name in ("IPYTHON_PROFILE", "BLUEPYOPT_SEED", "L5PCBENCHMARK_USEIPYP", "NEUROFLEET_DEBUG"):
        os.environ.pop(name, None)
    os.environ["NEUROFLEET_CACHE"] = str(cache)
    os.environ["IPYTHONDIR"] = str(tmp_path_factory.mktemp("ipython"))
    yield cache
    os.environ.clear()
    os.environ.update(kept)
