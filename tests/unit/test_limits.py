"""What a process may use is what its cgroups leave of the machine; it ends with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from neurofleet.backends.local import usable_cores
from neurofleet.engine import limits
from neurofleet.engine.limits import memory_limit_bytes, usable_cpus
from unit.support import wait_until

GB = 1_000_000_000
V2 = "30 25 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = (
    "31 30 0:27 {top} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    "32 30 0:28 {top} /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct"
)
#: What version 1 says of a cgroup without a limit.
MUCH = "9223372036854771712"


def tree(root: Path, own: str, mounts: str, **files: str) -> Path:
    """Make what the kernel shows: ``files`` by path below ``sys/fs/cgroup``, ``__`` for ``/``."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"{own}\n")
    (root / "proc/self/mountinfo").write_text(
        f"25 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n{mounts}\n"
    )
    for name, content in files.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")
    return root


@pytest.fixture(autouse=True)
def sixteen_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(16)))


def test_limits_without_cgroups_are_the_machines(tmp_path: Path) -> None:
    assert (usable_cpus(tmp_path), memory_limit_bytes(tmp_path)) == (16, None)


def test_limits_of_a_slurm_job_are_the_smallest_on_the_way_up(tmp_path: Path) -> None:
    job = "system.slice/slurmstepd.scope/job_7"
    root = tree(
        tmp_path, f"0::/{job}/step_0/user", V2,
        **{
            f"{job}/step_0/user/memory.max": "max",
            f"{job}/step_0/memory.max": str(6 * GB),
            f"{job}/memory.max": str(4 * GB),
            f"{job}/cpu.max": "350000 100000",
            f"{job}/step_0/cpu.max": "max 100000",
        },
    )  # fmt: skip
    assert (usable_cpus(root), memory_limit_bytes(root)) == (3, 4 * GB)


def test_limits_of_version_1_are_those_of_each_controllers_own_tree(tmp_path: Path) -> None:
    root = tree(
        tmp_path, "4:memory:/slurm/uid_1000/job_7\n3:cpu,cpuacct:/slurm\n0::/", V1.format(top="/"),
        **{
            "memory/memory.limit_in_bytes": MUCH,
            "memory/slurm/uid_1000/memory.limit_in_bytes": MUCH,
            "memory/slurm/uid_1000/job_7/memory.limit_in_bytes": str(2 * GB),
            "cpu,cpuacct/cpu.cfs_quota_us": "-1",
            "cpu,cpuacct/cpu.cfs_period_us": "100000",
            "cpu,cpuacct/slurm/cpu.cfs_quota_us": "200000",
            "cpu,cpuacct/slurm/cpu.cfs_period_us": "100000",
        },
    )  # fmt: skip
    assert (usable_cpus(root), memory_limit_bytes(root)) == (2, 2 * GB)


@pytest.mark.parametrize("own", ["/docker/abc", "/docker/abc/job", "/elsewhere", "/../../up"])
def test_limits_of_a_container_that_sees_its_group_as_the_top(tmp_path: Path, own: str) -> None:
    root = tree(
        tmp_path, f"4:memory:{own}\n3:cpu,cpuacct:{own}", V1.format(top="/docker/abc"),
        **{
            "memory/memory.limit_in_bytes": str(GB),
            "cpu,cpuacct/cpu.cfs_quota_us": "150000",
            "cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
    )  # fmt: skip
    assert (usable_cpus(root), memory_limit_bytes(root)) == (1, GB)


def test_limits_below_one_cpu_leave_one(tmp_path: Path) -> None:
    root = tree(tmp_path, "0::/", V2, **{"cpu.max": "10000 100000", "memory.max": "max"})
    assert (usable_cpus(root), memory_limit_bytes(root)) == (1, None)


def test_limits_that_are_unreadable_or_nonsense_are_none(tmp_path: Path) -> None:
    root = tree(
        tmp_path, "nonsense\n0::/a b", V2.replace("/sys/fs/cgroup", r"/sys/fs/cgroup/x\040y"),
        **{"x y/a b/cpu.max": "what", "x y/a b/memory.max": "-5", "x y/memory.max": str(GB)},
    )  # fmt: skip
    assert (usable_cpus(root), memory_limit_bytes(root)) == (16, GB)


def test_limits_of_this_machine_are_read() -> None:
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 1 <= usable_cpus() <= 16
    assert (memory_limit_bytes() or most) > 0


def test_local_engines_are_as_many_as_the_quota_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_quota", lambda _group: 3.0)
    monkeypatch.setattr(limits, "_groups", lambda *_: [Path("/")])
    assert usable_cores() == 3


# -- the parent ----------------------------------------------------------------------

#: Forks a child that waits until its parent has gone, if wanted, and then calls the function.
ORPHAN = """
import os, sys, time
from neurofleet.engine.limits import die_with_parent
parent = os.getpid()
if os.fork():
    if sys.argv[2] == "later":
        while not os.path.exists(sys.argv[1]):
            time.sleep(0.01)
    os._exit(0)
while sys.argv[2] == "before" and os.getppid() == parent:
    time.sleep(0.01)
with open(sys.argv[1] + ".pid", "w") as file:
    file.write(str(os.getpid()))
die_with_parent(parent)
open(sys.argv[1], "w").close()
time.sleep(60)
"""


@pytest.mark.parametrize("when", ["before", "later"])
def test_process_whose_parent_ended_before_or_after_it_was_told_ends(
    tmp_path: Path, when: str
) -> None:
    mark = tmp_path / "mark"
    subprocess.run([sys.executable, "-c", ORPHAN, mark, when], check=True, timeout=30)
    note = mark.with_name("mark.pid")
    wait_until(lambda: note.exists() and note.read_text())
    pid = int(note.read_text())
    try:
        wait_until(lambda: not psutil.pid_exists(pid) or _is_zombie(pid), 10)
        assert mark.exists() == (when == "later")
    finally:
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGKILL)


def _is_zombie(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
