"""One fleet for all tests of this directory: made, used, and gone without a trace.

With NEUROFLEET_TEST_FLEET=keep in the environment the tests use the fleet that is up, or make
one, and leave it: for somebody who works on one test.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from e2e import booted
from e2e.booted import Fleet
from e2e.processes import awaited
from e2e.running import Finished


class Made(NamedTuple):
    """The fleet, and what `make fleet` said when it made it."""

    fleet: Fleet
    #: What `--check` said while the machines were bare; nothing when the fleet was kept.
    checked: Finished | None
    said: Finished


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """`make fleet`, killed while it installs, and again; afterwards `make fleet-down`."""
    if os.geteuid() != 0:
        pytest.skip("booting machines takes root")
    log = tmp_path_factory.mktemp("fleet")
    if os.environ.get("NEUROFLEET_TEST_FLEET") == "keep":
        said = booted.make("fleet", log / "made")
        assert said.code == 0, said.out + said.err
        yield Made(Fleet(log), None, said)
        return
    if booted.MACHINES.exists():
        pytest.fail("a fleet is up on this computer; end it first with: make fleet-down")
    before = booted.host_state()
    try:
        booted_only = booted.playbook("playbooks/provision.yml", log / "provision")
        assert booted_only.code == 0, booted_only.out + booted_only.err
        checked = booted.playbook("site.yml", log / "check", "--check", "--diff")
        first = booted.start(["make", "fleet"], log / "killed")
        installing = "TASK [python_env : Install the lock]"
        awaited(
            lambda: not first.running() or installing in (log / "killed.out").read_text(),
            booted.INSTALL_LIMIT_S,
            installing,
        )
        assert first.running(), first.ended().err
        booted.end_with_children(first)
        said = booted.make("fleet", log / "made")
        assert said.code == 0, said.out + said.err
        yield Made(Fleet(log), checked, said)
    finally:
        for number in range(2):  # the second finds nothing to do
            down = booted.make("fleet-down", log / f"down{number}")
            assert down.code == 0, down.err
            assert booted.host_state() == before
    assert "removed" not in down.out


@pytest.fixture
def fleet(made: Made) -> Fleet:
    """The fleet, whole."""
    made.fleet.engines()
    return made.fleet


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where a command's output goes."""
    return tmp_path / "said.log"
