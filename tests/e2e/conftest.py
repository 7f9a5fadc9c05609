"""Every test leaves no process behind, and a failing one shows what the engines said."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.processes import MARK, awaited, command, end, processes_with
from e2e.running import Bench, Upstream

#: How long processes may take to notice that nobody needs them [s].
GONE_WITHIN_S = 60.0


@pytest.fixture(autouse=True)
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Mark every process that the test starts; none may be left when it is over."""
    value = uuid.uuid4().hex
    monkeypatch.setenv(MARK, value)
    yield value
    left = processes_with(value)
    try:
        awaited(lambda: not processes_with(value), GONE_WITHIN_S, "no process is left")
    except AssertionError:
        left = processes_with(value)
        names = [f"{process.pid} {command(process)}" for process in left]
        end(left)
        pytest.fail("left behind:\n" + "\n".join(names))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the tests share, so that each model is compiled once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def bench(mark: str, tmp_path: Path, cache: Path) -> Iterator[Bench]:
    """An empty working directory; its clients are ended if the test has not."""
    bench = Bench(tmp_path, cache)
    yield bench
    for client in bench.clients:
        if client.running():
            client.process.kill()
            client.process.wait()


@pytest.fixture(scope="session")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Upstream:
    """BluePyOpt's own runs of the models."""
    return Upstream(tmp_path_factory.mktemp("upstream"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, Any, Any]:
    """Show the engines' and the clients' words beside a failure."""
    report: Any = yield
    home = getattr(item, "funcargs", {}).get("tmp_path")
    if report.failed and isinstance(home, Path):
        for log in sorted([*home.rglob("log/*"), *home.glob("*.log"), *home.glob("client-*.*")]):
            with contextlib.suppress(OSError):
                text = log.read_text(errors="replace").strip()
                if text:
                    report.sections.append((str(log.relative_to(home)), text[-3000:]))
    return report
