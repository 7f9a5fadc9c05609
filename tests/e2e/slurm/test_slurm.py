"""Engines of a real Slurm: two compute machines, an ordinary user, a shared home."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from e2e.processes import awaited
from e2e.running import Evolution, Finished, Upstream, course, differences, quick, rows
from e2e.slurm.cluster import LOGIN, USER_HOME, SlurmCluster
from e2e.test_tutorial import blocks

pytestmark = pytest.mark.timeout(600)

BIN = f"{USER_HOME}/neurofleet/bin"
#: Units of about 0.3, 0.5 and 1 s.
LONG = Evolution(quick(pause_s=2.0), offspring=4, generations=3)
#: What BluePyOpt's own serial run prints of its first individual.
FIRST_L5PC = r"^1\s+1\s+4980.91\s+0\s+4980.91\s+4980.91"


@dataclass
class Desk:
    """The user's shell on the login machine, in a directory of its own."""

    cluster: SlurmCluster
    there: str
    tmp_path: Path
    clients: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def here(self) -> Path:
        return self.cluster.path(self.there)

    def run(self, command: str, timeout_s: float = 240) -> Finished:
        """Run a command to its end."""
        done = self.cluster.ssh(self._line(command), check=False, timeout_s=timeout_s)
        return Finished(done.returncode, done.stdout, done.stderr)

    def start(self, command: str) -> subprocess.Popen[bytes]:
        """Start a command; its words are in ``told()``."""
        log = self.tmp_path / "client-0.log"
        self.clients.append(self.cluster.start(self._line(f"exec {command}"), log))
        return self.clients[-1]

    def told(self) -> str:
        return (self.tmp_path / "client-0.log").read_text(errors="replace")

    def _line(self, command: str) -> str:
        return f"cd {self.there} && PATH={BIN}:$PATH && {command}"

    def engines_job(self, state: str) -> int:
        """Wait until a job of this user's has a state; return its number."""

        def found() -> int:
            return next((n for n, s in self.cluster.jobs().items() if s == state), 0)

        return awaited(found, 60, f"a job is {state}: {self.told()}")

    def scored(self, at_least: int, run: str = "run") -> None:
        awaited(lambda: len(rows(self.here / run)) >= at_least, 90, f"{at_least} scores")


@pytest.fixture
def desk(cluster: SlurmCluster, tmp_path: Path) -> Iterator[Desk]:
    there = f"{USER_HOME}/{uuid.uuid4().hex[:8]}"
    cluster.ssh(f"mkdir {there}")
    desk = Desk(cluster, there, tmp_path)
    yield desk
    for client in desk.clients:
        if client.poll() is None:
            client.kill()
            client.wait()


def optimise(evolution: Evolution, *more: str, run: str = "run") -> str:
    """Return the command line of an optimisation on the cluster."""
    words = [*evolution.options(), f"--run-dir={run}", "--no-report", *more]
    words[0] = f"{USER_HOME}/{evolution.model.name}"
    return shlex.join(["neurofleet", "optimise", *words])


#: Engines say where they are, map, and stay until told to stop.
SCRIPT = """
import os
import time

from neurofleet import Fleet

with Fleet.slurm(4, partition="short", time="5") as fleet:
    fleet.client.wait_for_engines(4, timeout=60)
    print(sorted(fleet.client[:].apply_sync(os.getenv, "SLURMD_NODENAME")))
    print(fleet.map(lambda x: x * x, range(5)), flush=True)
    while not os.path.exists("stop"):
        time.sleep(0.1)
"""
SLURM = ("--backend=slurm", "--engines=4", "--partition=short", "--time=10")


def simulated(*told: str) -> int:
    """Sum what runs say that they simulated."""
    return sum(int(n) for text in told for n in re.findall(r"(\d+) simulated, ", text))


def test_installation_is_in_the_users_directory_only(cluster: SlurmCluster) -> None:
    elsewhere = cluster.ssh(
        f"find / -xdev -newer {USER_HOME}/installing -user user -not -path '/proc/*'"
        " -not -path '/run/user/*' -not -path '/tmp/ssh-*' -not -path '/dev/*' -type f",
        user="root",
        check=False,
    ).stdout
    assert elsewhere == ""
    root_owned = cluster.ssh(f"find {USER_HOME}/neurofleet -not -user user", user="root").stdout
    assert root_owned == ""
    assert Path(cluster.path(f"{BIN}/opt_l5pc")).exists()


def test_commands_load_the_sites_modules(cluster: SlurmCluster) -> None:
    asked = "import os; print(os.environ['SITE_COMPILER'])"
    assert cluster.ssh(f'{BIN}/neurofleet-python -c "{asked}"').stdout == "loaded\n"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("~/elsewhere --module compiler/13", "module load compiler/13 failed"),
        ("~/elsewhere --python /bin/sh", "/bin/sh is no Python 3.11 to 3.13. Name another"),
        ("/proc/elsewhere", "/proc/elsewhere cannot be written. Name a directory of your own"),
        ("~/elsewhere --wheels /tmp", "the lock could not be installed"),
    ],
)
def test_installation_that_cannot_be_done_is_refused_and_leaves_nothing(
    cluster: SlurmCluster, options: str, says: str
) -> None:
    source = f"{USER_HOME}/neurofleet/source"
    done = cluster.ssh(
        f"{source}/user-install {options} --lock {source}/fleet.txt"
        f" --client $(ls {source}/neurofleet-*.tar.gz)",
        check=False,
    )
    assert done.returncode in (1, 2)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert says in errors[0]
    assert cluster.ssh("find ~/elsewhere -type f", check=False).stdout == ""


def test_hello_comes_from_both_machines_and_no_key_is_in_the_environment(desk: Desk) -> None:
    (desk.here / "script.py").write_text(SCRIPT)
    client = desk.start("neurofleet-python script.py")
    try:
        awaited(lambda: "[0, 1, 4, 9, 16]" in desk.told(), 90, desk.told())
        assert "['compute1', 'compute1', 'compute2', 'compute2']" in desk.told()
        (security,) = desk.here.glob(".neurofleet-*/engines/1/security")
        assert security.stat().st_mode & 0o077 == 0
        files = list(security.glob("ipcontroller-*.json"))
        assert len(files) == 2, "engines' and clients' connection files"
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
        keys = {json.loads(path.read_text())["key"] for path in files}
        assert len(keys) == 1
        key = keys.pop()
        assert len(key) == 64, "messages are signed"
        assert all(json.loads(path.read_text())["curve_serverkey"] for path in files)
        for machine in ("compute1", "compute2"):
            visible = desk.cluster.ssh(
                "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'",
                on=machine,
                user="root",
                check=False,
            ).stdout
            assert "neurofleet.backends.slurm_task" in visible
            assert key not in visible
        job = desk.engines_job("RUNNING")
        assert key not in desk.cluster.ssh(f"scontrol show job {job}").stdout
    finally:
        (desk.here / "stop").touch()
    assert client.wait(60) == 0, desk.told()
    awaited(lambda: not desk.cluster.jobs(), 60, "no job is left")
    assert not list(desk.here.glob(".neurofleet-*")), "connection files are gone"


def test_l5pc_on_engines_of_two_machines_has_the_serial_numbers(desk: Desk) -> None:
    done = desk.run(
        "opt_l5pc --start --offspring-size 1 --max-ngen 2 --seed 42 -v --no-report --run-dir run"
        f" {' '.join(SLURM)}",
        timeout_s=500,
    )
    assert done.code == 0, done.out + done.err
    assert re.search(FIRST_L5PC, done.out, re.M), done.out
    assert {row.host for row in rows(desk.here / "run")} == {"compute1", "compute2"}


@pytest.mark.timeout(900)
def test_job_that_reaches_its_limit_goes_on_by_itself_and_simulates_nothing_twice(
    desk: Desk, upstream: Upstream
) -> None:
    # Slurm looks at limits every 30 s, and sends a signal at the last look before it is due:
    # here 70 to 100 s after the start, of which engines need 10 to 50. All is not done in the rest:
    # the units alone take 105 s on four engines.
    evolution = Evolution(quick(pause_s=5.0), offspring=4, generations=12)
    command = optimise(evolution).removeprefix("neurofleet ")
    printed = desk.run(
        "neurofleet slurm script --engines 4 --partition short --time 3 --stop-before 80 --"
        f" neurofleet {command} > job.sh; sbatch --parsable job.sh"
    )
    assert printed.code == 0, printed.err
    job = int(printed.out)
    _goes_on_by_itself(desk, job, f"neurofleet-{job}.log")
    found = course(desk.here / "run" / "checkpoint.pkl")
    assert differences(found, upstream.course(evolution)) == []
    kept = rows(desk.here / "run")
    starts = [(row.unit, row.parameters) for row in kept]
    assert len(starts) == len(set(starts))
    logged = (desk.here / "run").rglob("engines.log")
    assert all("Traceback" not in path.read_text(errors="replace") for path in logged)
    # What was begun before a stop was kept: the phases sum up to the rows, none was repeated.
    assert _phases(desk.here / "run") == len(kept)


def _goes_on_by_itself(desk: Desk, job: int, log_name: str) -> str:
    """Return what a job has said at its end, which is not in its first stretch."""
    log = desk.here / log_name
    stretches = 0

    def is_done() -> bool:
        nonlocal stretches
        if desk.cluster.state(job) == "PENDING" and log.exists():
            stretches += 1
            # Slurm lets a job that was queued again wait for two minutes.
            desk.cluster.ssh(f"scontrol update JobId={job} StartTime=now")
            awaited(lambda: desk.cluster.state(job) != "PENDING", 60, "it starts again")
        return desk.cluster.state(job) in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")

    awaited(is_done, 700, f"the job ends: {log.read_text() if log.exists() else ''}")
    told = log.read_text()
    assert desk.cluster.state(job) == "COMPLETED", told
    assert stretches >= 1, told
    assert told.count("stopped at a safe point") == stretches
    return told


#: A program of one's own: each item writes down that it began.
MINE = """
import pathlib
import time

from neurofleet import Fleet

BEGUN = pathlib.Path("begun").absolute()


def slow(x):
    with BEGUN.open("a") as file:
        file.write(f"{x}\\n")
    time.sleep(4)
    return x * x


with Fleet.slurm() as fleet:
    print("sum", sum(fleet.map(slow, range(60), run_dir="run")))
"""


def test_program_of_ones_own_stops_near_the_limit_and_goes_on_with_what_is_missing(
    desk: Desk,
) -> None:
    (desk.here / "mine.py").write_text(MINE)
    printed = desk.run(
        "neurofleet slurm script --engines 4 --partition short --time 2 --stop-before 70 --"
        " neurofleet-python mine.py > job.sh; sbatch --parsable job.sh"
    )
    assert printed.code == 0, printed.err
    job = int(printed.out)
    told = _goes_on_by_itself(desk, job, f"neurofleet-python-{job}.log")
    assert f"sum {sum(x * x for x in range(60))}" in told
    assert "Traceback" not in told
    begun = (desk.here / "begun").read_text().split()
    assert sorted(map(int, begun)) == list(range(60)), "no item was called twice"


def _phases(run: Path) -> int:
    import contextlib
    import sqlite3

    with contextlib.closing(sqlite3.connect(run / "scores.sqlite")) as db:
        return int(db.execute("SELECT sum(simulated) FROM phase").fetchone()[0])


def test_scancel_in_the_middle_is_told_and_the_same_command_goes_on(
    desk: Desk, upstream: Upstream
) -> None:
    client = desk.start(optimise(LONG, *SLURM))
    desk.scored(8)
    job = desk.engines_job("RUNNING")
    desk.cluster.ssh(f"scancel {job}")
    assert client.wait(60) == 4, desk.told()
    errors = [line for line in desk.told().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert f"Slurm job {job} is cancelled" in errors[0]
    assert "run the same command again to go on" in errors[0]
    assert "Traceback" not in desk.told()
    kept = len(rows(desk.here / "run"))
    done = desk.run(optimise(LONG, *SLURM))
    assert done.code == 0, done.err
    assert simulated(done.err) == len(rows(desk.here / "run")) - kept
    found = course(desk.here / "run" / "checkpoint.pkl")
    assert differences(found, upstream.course(LONG)) == []


def test_client_that_is_killed_leaves_no_job(desk: Desk) -> None:
    client = desk.start(optimise(LONG, *SLURM))
    desk.scored(4)
    desk.engines_job("RUNNING")
    pid = desk.cluster.ssh("pgrep -u user -f 'bin/neurofleet optimise'").stdout.split()[0]
    desk.cluster.ssh(f"kill -9 {pid}")
    client.wait(30)
    awaited(lambda: not desk.cluster.jobs(), 90, "the job ends")
    assert desk.cluster.ssh("pgrep -u user -f ipyparallel", check=False).stdout == ""


def test_engine_that_is_killed_is_replaced(desk: Desk, upstream: Upstream) -> None:
    client = desk.start(optimise(LONG, *SLURM))
    desk.scored(4)
    before = desk.cluster.ssh("pgrep -u user -f ipyparallel.engine", on="compute2").stdout.split()
    desk.cluster.ssh(f"kill -9 {before[0]}", on="compute2", user="root")
    assert client.wait(120) == 0, desk.told()
    found = course(desk.here / "run" / "checkpoint.pkl")
    assert differences(found, upstream.course(LONG)) == []
    assert "starting another" in "".join(
        log.read_text() for log in (desk.here / "run/engines").rglob("engines.log")
    )


def test_compute_machine_that_is_drained_finishes_its_work_and_gets_no_more(
    desk: Desk, upstream: Upstream
) -> None:
    client = desk.start(optimise(LONG, *SLURM))
    desk.scored(6)
    desk.cluster.ssh("scontrol update NodeName=compute2 State=DRAIN Reason=test", user="root")
    assert client.wait(120) == 0, desk.told()
    found = course(desk.here / "run" / "checkpoint.pkl")
    assert differences(found, upstream.course(LONG)) == []
    done = desk.run("neurofleet run hello --backend slurm --engines 4 --queue-timeout 5")
    assert done.code == 4, done.err
    assert re.search(
        r"error: Slurm job \d+ has been pending \(.*(DRAINED|UnavailableNodes).*\) for 5 s\.",
        done.err,
    )
    awaited(lambda: not desk.cluster.jobs(), 60, "the pending job was cancelled")
    done = desk.run("neurofleet run hello --backend slurm --engines 2")
    assert done.code == 0, done.err
    assert done.out.count("on compute1, ") == 2


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("--engines 5", 2, "has 4 cores, 5 engines were asked for. Ask for --engines 4"),
        ("--engines 2 --partition long", 2, "no partition 'long'. There are short."),
        ("--engines 2 --time 99", 2, "pending for ever: PartitionTimeLimit. Change --time"),
        ("--engines 2 --slurm-option=--nosuch", 2, "Slurm rejects the job (unrecognized option"),
        ("", 2, "how many engines is not said. Give --engines"),
    ],
)
def test_job_that_slurm_cannot_give_is_refused_in_one_line(
    desk: Desk, command: str, code: int, says: str
) -> None:
    done = desk.run(f"neurofleet run hello --backend slurm {command}")
    assert done.code == code, done.err
    assert len(done.errors) == 1
    assert says in done.errors[0], done.err
    assert done.out == ""
    awaited(lambda: not desk.cluster.jobs(), 60, "no job is left")


def test_engines_that_never_register_are_told_with_what_they_said(desk: Desk) -> None:
    # The nodes do not see this directory.
    done = desk.run(
        "cd $(mktemp -d) && neurofleet run hello --backend slurm --engines 2 --engine-timeout 8"
    )
    assert done.code == 4, done.err
    assert len(done.errors) == 1
    assert "The nodes must see this directory" in done.errors[0]


#: Found by every Python of a job: the engines of one machine begin late, and write down that they
#: do, and whether their file system is slow.
LATE = """
import os, pathlib, sys, time
if "ipyparallel.engine" in sys.orig_argv and os.environ["SLURMD_NODENAME"] == "compute2":
    slow = "/slow.so" in pathlib.Path("/proc/self/maps").read_text()
    pathlib.Path(__file__).with_name(f"late-{os.getpid()}").write_text(f"slow: {slow}")
    time.sleep(12)
"""


def test_late_engines_and_a_slow_shared_file_system_change_nothing(
    desk: Desk, upstream: Upstream
) -> None:
    desk.cluster.ssh(f"mkdir {desk.there}/late")  # the user's, whose engines write into it
    (desk.here / "late/sitecustomize.py").write_text(LATE)
    shutil.copy(Path(__file__).with_name("slow.c"), desk.here)
    desk.cluster.ssh(f"cd {desk.there} && gcc -shared -fPIC -o slow.so slow.c")
    slow = f"SLOW_UNDER={desk.there} LD_PRELOAD={desk.there}/slow.so PYTHONPATH={desk.there}/late"
    done = desk.run(f"env {slow} {optimise(LONG, *SLURM)}")
    assert done.code == 0, done.err
    late = [path.read_text() for path in (desk.here / "late").glob("late-*")]
    assert late == ["slow: True"] * 2
    kept = rows(desk.here / "run")
    assert {row.host for row in kept} == {"compute1", "compute2"}
    assert simulated(done.err) == len(kept)
    found = course(desk.here / "run" / "checkpoint.pkl")
    assert differences(found, upstream.course(LONG)) == []


def test_full_shared_file_system_is_told(desk: Desk) -> None:
    desk.cluster.ssh(
        f"mkdir {desk.there}/full && mount -t tmpfs -o size=64k,mode=0777 none {desk.there}/full"
        f" && head -c 64k /dev/zero > {desk.there}/full/fill || true",
        user="root",
    )
    try:
        done = desk.run(optimise(LONG, *SLURM, run="full/run"))
        assert done.code in (1, 2), done.err
        assert len(done.errors) == 1
        assert "No space left on device" in done.errors[0]
        assert "Traceback" not in done.err
    finally:
        desk.cluster.ssh(f"umount {desk.there}/full", user="root")


def test_login_machine_without_a_compiler_is_told(desk: Desk) -> None:
    done = desk.run(
        "mkdir bin && for tool in /usr/bin/*; do case $tool in"
        " */*++* | */*gcc* | */cc) ;; *) ln -s $tool bin/ ;; esac; done;"
        # Without the module, whose script would look where /etc/profile says.
        f" NEUROFLEET_CACHE=$PWD/cache PATH=$(echo {USER_HOME}/neurofleet/env-*/bin):$PWD/bin"
        f" {optimise(LONG, *SLURM)}"
    )
    assert done.code == 2, done.err
    assert len(done.errors) == 1
    assert f"no C++ compiler on {LOGIN}" in done.errors[0]
    assert "module load gcc" in done.errors[0]


def test_tutorials_steps_for_slurm_do_what_they_say(desk: Desk) -> None:
    hello, script = blocks("slurm")
    done = desk.run(hello.text)
    assert done.code == 0, done.err
    assert len(re.findall(r"^engine \d on compute[12], .*Hello, World$", done.out, re.M)) == 4
    done = desk.run(script.text)
    assert done.code == 0, done.err + done.out
    log = next(desk.here.glob("neurofleet-*.log")).read_text()
    assert re.search(r"^rmse \d", log, re.M), log
    assert "engines ready: 4 (slurm)" in log
    predictions = next(desk.here.glob("neurofleet-runs/loo-forest*/predictions.csv"))
    assert len(predictions.read_text().splitlines()) == 7


# -- from a laptop -------------------------------------------------------------------


def neurofleet_here(cluster: SlurmCluster, *words: str, **how: Any) -> subprocess.Popen[str]:
    """Start the command on this computer, with a head."""
    import os

    program = Path(sys.executable).parent / "neurofleet"
    return subprocess.Popen(
        [program, f"--head={LOGIN}:{BIN}/neurofleet", *words],
        env={**os.environ, "NEUROFLEET_SSH": f"ssh -F {cluster.ssh_config}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **how,
    )


def test_command_on_a_head_has_its_output_and_exit_code(cluster: SlurmCluster) -> None:
    client = neurofleet_here(cluster, "run", "hello", "--backend=local", "--engines=1", "--json")
    out, err = client.communicate(timeout=60)
    assert client.returncode == 0, err
    assert [engine["host"] for engine in json.loads(out)["engines"]] == [LOGIN]
    client = neurofleet_here(cluster, "run", "nothing of the kind; touch ~/injected")
    out, err = client.communicate(timeout=60)
    assert client.returncode == 2, err
    assert "there is no workload 'nothing of the kind; touch ~/injected'" in err
    assert not cluster.path(f"{USER_HOME}/injected").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_command_on_a_head_stops_with_the_one_here(
    desk: Desk, number: signal.Signals, upstream: Upstream
) -> None:
    words = shlex.split(optimise(LONG, "--backend=local", "--engines=1"))[1:]
    words = [w.replace("--run-dir=run", f"--run-dir={desk.there}/run") for w in words]
    client = neurofleet_here(desk.cluster, *words, process_group=0)
    desk.scored(3)
    client.send_signal(number)
    _, err = client.communicate(timeout=60)
    awaited(
        lambda: not desk.cluster.ssh("pgrep -u user -f neurofleet", check=False).stdout,
        60,
        "nothing runs on the head",
    )
    if number is signal.SIGINT:
        assert client.returncode == 130, err
        assert re.search(r"^stopped at a safe point; .* to go on\.$", err, re.M), err
    kept = len(rows(desk.here / "run"))
    assert kept >= 3
    done = desk.run(optimise(LONG, "--backend=local", "--engines=2"))
    assert done.code == 0, done.err
    assert simulated(done.err) == len(rows(desk.here / "run")) - kept
    found = course(desk.here / "run" / "checkpoint.pkl")
    assert differences(found, upstream.course(LONG)) == []


def test_head_that_does_not_answer_or_has_no_program_is_told(cluster: SlurmCluster) -> None:
    import os

    program = Path(sys.executable).parent / "neurofleet"
    for head, code, says in (
        ("nosuch.invalid", 3, "ssh did not reach nosuch.invalid"),
        (LOGIN, 2, f"no program 'neurofleet' on {LOGIN}. Say where it is"),
    ):
        done = subprocess.run(
            [program, "--head", head, "run", "hello"],
            env={**os.environ, "NEUROFLEET_SSH": f"ssh -F {cluster.ssh_config}"},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert says in done.stderr


# The laptop does not know the head by the name that the head has for itself.
@pytest.mark.filterwarnings("ignore:IPython could not determine IPs:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:\\s*Controller appears to be listening:RuntimeWarning")
def test_client_on_a_laptop_reaches_engines_through_an_ssh_tunnel(
    desk: Desk, tmp_path: Path
) -> None:
    import ipyparallel

    desk.start(f"env IPYTHONDIR={desk.there}/ipython ipcluster start -n 2")
    there = desk.here / "ipython/profile_default/security/ipcontroller-client.json"
    try:
        awaited(there.exists, 60, desk.told())
        file = tmp_path / "ipcontroller-client.json"
        file.write_bytes(there.read_bytes())
        ports = json.loads(file.read_text())
        names = ["registration", "control", "mux", "task", "iopub", "notification", "broadcast"]
        tunnel = subprocess.Popen(
            ["ssh", "-F", str(desk.cluster.ssh_config), "-N"]
            + [f"-L{ports[name]}:127.0.0.1:{ports[name]}" for name in names]
            + [f"user@{LOGIN}"]
        )
        try:
            awaited(lambda: _listens(ports["registration"]), 30, "the tunnel stands")
            with ipyparallel.Client(str(file), timeout=30) as client:
                client.wait_for_engines(2, timeout=60)
                hosts = client[:].apply_sync(socket.gethostname)
        finally:
            tunnel.terminate()
            tunnel.wait(30)
        assert hosts == [LOGIN, LOGIN]
    finally:
        desk.cluster.ssh("pkill -u user -INT -f 'ipcluster start'", check=False)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True
