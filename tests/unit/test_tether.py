"""Nothing that is tethered outlives who wanted it; real processes throughout."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from neurofleet.backends import tether
from unit.support import wait_until

TETHER = [sys.executable, "-I", "-S", tether.__file__]
#: Starts a grandchild, writes both process ids, and waits.
FAMILY = """
import os, subprocess, sys, time
{before}
inner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open(sys.argv[1] + ".part", "w") as file:
    file.write(f"{{os.getpid()}} {{inner.pid}}")
os.rename(sys.argv[1] + ".part", sys.argv[1])
time.sleep(600)
"""
IGNORE = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"


def family(before: str, file: Path) -> list[str]:
    return [sys.executable, "-c", FAMILY.format(before=before), str(file)]


@pytest.fixture
def ids(tmp_path: Path) -> Iterator[Path]:
    """The file that processes are named in; those that a failed test leaves are ended."""
    file = tmp_path / "ids"
    yield file
    for pid in map(int, file.read_text().split()) if file.exists() else []:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def pids(file: Path) -> list[int]:
    wait_until(file.exists)
    return [int(pid) for pid in file.read_text().split()]


def tethered(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*TETHER, str(os.getpid()), *command])


@pytest.mark.parametrize("code", [0, 1, 75, 255])
def test_tether_exit_code_passes_through(code: int) -> None:
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.exit({code})"]
    assert tethered(command).wait(20) == code


def test_tether_output_passes_through() -> None:
    done = subprocess.run(
        [*TETHER, str(os.getpid()), "echo", "a  b"], capture_output=True, timeout=20, check=True
    )
    assert done.stdout == b"a  b\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_tether_signal_ends_the_command_and_its_children(ids: Path, number: signal.Signals) -> None:
    process = tethered(family("", ids))
    members = pids(ids)
    assert all(map(alive, members))
    started = time.monotonic()
    process.send_signal(number)
    process.wait(20)
    wait_until(lambda: not any(map(alive, members)), 5)
    assert time.monotonic() - started < tether.GRACE_S + 2 * tether.POLL_S


def test_tether_command_that_ignores_sigterm_is_killed_after_its_grace(ids: Path) -> None:
    process = tethered(family(IGNORE, ids))
    members = pids(ids)
    started = time.monotonic()
    process.terminate()
    process.wait(20)
    assert tether.GRACE_S <= time.monotonic() - started < tether.GRACE_S + 3
    wait_until(lambda: not any(map(alive, members)), 5)


def test_tether_grandchild_left_by_a_command_that_ended_is_ended(ids: Path) -> None:
    command = family("", ids)
    command[2] = command[2].replace("time.sleep(600)\n", "\n").rstrip() + "\nsys.exit(7)"
    process = tethered(command)
    assert process.wait(20) == 7
    assert len(pids(ids)) == 2
    wait_until(lambda: not any(map(alive, pids(ids))), 5)


@pytest.mark.parametrize("before", ["", IGNORE], ids=["plain", "ignores SIGTERM"])
def test_tether_owner_killed_ends_everything(ids: Path, before: str) -> None:
    code = (
        "import os, subprocess, sys\n"
        "subprocess.Popen([*sys.argv[2:6], str(os.getpid()), *sys.argv[6:]]).wait()\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code, "", *TETHER, *family(before, ids)])
    members = pids(ids)
    group = psutil.Process(members[0]).parent()
    assert group is not None
    assert all(map(alive, [*members, group.pid]))
    owner.kill()
    owner.wait()
    wait_until(lambda: not any(map(alive, [*members, group.pid])), tether.GRACE_S + 3)


def test_tether_owner_gone_before_it_began_does_not_run_on(ids: Path) -> None:
    nobody = subprocess.Popen([sys.executable, "-I", "-S", "-c", ""])
    nobody.wait()
    process = subprocess.Popen([*TETHER, str(nobody.pid), *family("", ids)])
    process.wait(20)
    if ids.exists():
        wait_until(lambda: not any(map(alive, pids(ids))), 5)
