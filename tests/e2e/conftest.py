"""Every test leaves no process behind, and a failing one shows what the engines said.

All tests on a booted fleet share one: made, used, and gone without a trace. With
NEUROFLEET_TEST_FLEET=keep in the environment they use the fleet that is up, or make one, and
leave it: for somebody who works on one test.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import filelock
import pytest

from e2e import booted
from e2e.booted import Made
from e2e.processes import MARK, awaited, command, end, end_with_children, processes_with
from e2e.running import Bench, Finished, PageRun, Upstream, ipcluster

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would every program
# that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

#: L5PC with 8 individuals, on a machine that does other things as well [s].
L5PC_LIMIT_S = 900.0
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


@pytest.fixture(scope="session")
def page_run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> PageRun:
    """L5PC, seed 42, offspring 1, two generations, on this computer.

    With NEUROFLEET_TEST_SHARED in the environment it is below that directory, and the suites
    of one `scripts/test` compute it once.
    """
    shared = os.environ.get("NEUROFLEET_TEST_SHARED")
    home = Path(shared or tmp_path_factory.mktemp("shared")) / "l5pc"
    home.mkdir(exist_ok=True)
    bench = Bench(home, cache)
    said = home / "said.json"
    with filelock.FileLock(home / "lock"):
        if not said.exists():
            said.write_text(json.dumps(computed_page_run(bench, cache)))
    done, stayed = json.loads(said.read_text())
    return PageRun(bench, Finished(*done), stayed)


def computed_page_run(bench: Bench, cache: Path) -> tuple[Finished, bool]:
    """Return what the command said, and whether the cluster still had its engines."""
    home = bench.cwd
    with ipcluster(home, "default", 2, {"NEUROFLEET_CACHE": str(cache)}) as engines:
        before = engines.ids
        done = bench.start(
            "opt_l5pc", "-vv", "--checkpoint", "check.pkl", "--offspring_size=1", "--max_ngen=2",
            "--ipyparallel", "--start", env={"IPYTHONDIR": str(home)},
        ).ended(L5PC_LIMIT_S)  # fmt: skip
        stayed = engines.ids == before
    assert done.code == 0, done.err
    return done, stayed


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """`make fleet`, killed while it installs, and again; afterwards `make fleet-down`."""
    if os.geteuid() != 0:
        pytest.skip("booting machines takes root")
    log = tmp_path_factory.mktemp("fleet")
    if os.environ.get("NEUROFLEET_TEST_FLEET") == "keep":
        said = booted.make("fleet", log / "made", "OFFSPRING=1")
        assert said.code == 0, said.out + said.err
        yield Made(booted.Fleet(log), None, said)
        return
    if booted.MACHINES.exists():
        pytest.fail("a fleet is up on this computer; end it first with: make fleet-down")
    before = booted.host_state()
    try:
        booted_only = booted.playbook("playbooks/provision.yml", log / "provision")
        assert booted_only.code == 0, booted_only.out + booted_only.err
        checked = booted.playbook(
            "site.yml", log / "check", "--check", "--diff", "--limit=head1,worker1"
        )
        first = booted.start(["make", "fleet", "OFFSPRING=1"], log / "killed")
        installing = "TASK [python_env : Install the locks]"
        awaited(
            lambda: not first.running() or installing in (log / "killed.out").read_text(),
            booted.INSTALL_LIMIT_S,
            installing,
        )
        assert first.running(), first.ended().err
        # The machines themselves are nobody's children: they stay.
        end_with_children(first.pid)
        first.process.wait()
        said = booted.make("fleet", log / "made", "OFFSPRING=1")
        assert said.code == 0, said.out + said.err
        yield Made(booted.Fleet(log), checked, said)
    finally:
        for number in range(2):  # the second finds nothing to do
            down = booted.make("fleet-down", log / f"down{number}")
            assert down.code == 0, down.err
            assert booted.host_state() == before
    assert "removed" not in down.out


@pytest.fixture
def fleet(made: Made, request: pytest.FixtureRequest) -> booted.Fleet:
    """The fleet, whole: each test leaves it so, unless it fails."""
    failed = request.session.testsfailed
    if made.seen_whole_after_failures != failed:
        made.fleet.whole_again(time.monotonic())
        made.seen_whole_after_failures = failed
    return made.fleet


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where a command's output goes."""
    return tmp_path / "said.log"


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
