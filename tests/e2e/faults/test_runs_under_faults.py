"""Faults in the middle of a run on the booted fleet: the short form of ``make chaos``."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from e2e.booted import ADDRESSES, HEAD, PYTHON, WORKERS, Fleet
from e2e.faults.campaign import (
    Ended,
    Undisturbed,
    broken_promises,
    disturbed,
    scores_that_decide,
    table,
    undisturbed,
)
from e2e.faults.disturbed import COUNTED, HOME, L5PC, USER, DisturbedRun, optimise, put_model
from e2e.faults.kinds import FAULTS, Fault
from e2e.processes import awaited
from e2e.running import Evolution, PageRun, course, misbehaving, quick, rows, scored

# The fleet is made before the first of them, which has a limit of its own.
pytestmark = pytest.mark.timeout(900, func_only=True)

#: One of each that is quick; what lasts longer is in `make chaos`.
SHORT = (
    "engine SIGKILL",
    "engine and nanny SIGKILL",
    "client SIGKILL",
    "worker off and on",
    "controller SIGKILL",
    "client SIGTERM",
    "both workers off, one back, the other",
    "controller's child SIGKILL",
    "client SIGINT",
    "worker cut off for 20 s",
    "engine SIGSTOP 25 s",
    "controller SIGSTOP 20 s",
    "head rebooted",
)
#: 120 units of 0.25, 0.5 and 1 s.
EVOLUTION = Evolution(quick(pause_s=1.0, log=COUNTED), offspring=10, generations=4)
#: What an optimisation of L5PC, which takes a minute, can see.
FEW = ("engine and nanny SIGKILL", "client SIGKILL", "controller SIGKILL")


@pytest.fixture(scope="module")
def seed() -> int:
    """What decides which worker, which child and when; told by a failing test."""
    found = random.SystemRandom().randrange(10**6)
    print(f"seed {found}")
    return found


@pytest.fixture(scope="module")
def peace_at() -> list[Undisturbed]:
    """The undisturbed run, once it has been made."""
    return []


@pytest.fixture
def peace(fleet: Fleet, tmp_path: Path, peace_at: list[Undisturbed]) -> Undisturbed:
    if not peace_at:
        peace_at.append(undisturbed(fleet, tmp_path, EVOLUTION))
    return peace_at[0]


def injected_one_by_one(
    fleet: Fleet,
    faults: Sequence[Fault],
    peace: Undisturbed,
    chance: random.Random,
    log: Path,
    name: str,
) -> list[Ended]:
    """Inject all faults, in as many runs as they need."""
    runs: list[Ended] = []
    left = list(faults)
    while left:
        one = disturbed(fleet, left, peace, chance, log, f"{name}{len(runs)}")
        runs.append(one)
        assert one.injected, "a run was over before its first fault"
        left = left[len(one.injected) :]
    return runs


def test_run_under_one_fault_after_the_other_comes_to_the_undisturbed_numbers(
    fleet: Fleet, peace: Undisturbed, seed: int, tmp_path: Path
) -> None:
    chance = random.Random(seed)
    left = [FAULTS[name] for name in SHORT]
    chance.shuffle(left)
    runs = injected_one_by_one(fleet, left, peace, chance, tmp_path, "short")
    print(f"seed {seed}\n{table(runs)}")
    assert broken_promises(runs) == []
    told = "".join(path.read_text() for path in tmp_path.glob("*.err"))
    assert "waiting for engines since" in told


def test_l5pc_under_faults_comes_to_the_local_bits(
    fleet: Fleet, page_run: PageRun, seed: int, tmp_path: Path
) -> None:
    ours = scores_that_decide(rows(page_run.directory))
    peace = Undisturbed(L5PC, course(page_run.checkpoint), ours)
    chance = random.Random(seed)
    left = [FAULTS[name] for name in chance.sample(FEW, len(FEW))]
    runs = injected_one_by_one(fleet, left, peace, chance, tmp_path, "l5pc")
    print(f"seed {seed}\n{table(runs)}")
    assert broken_promises(runs) == []


def test_worker_with_another_neuron_is_named_and_left_out(fleet: Fleet, tmp_path: Path) -> None:
    """It would give other scores: not one of them counts."""
    other = WORKERS[1]
    site = fleet.done(other, f"{PYTHON} -c 'import neuron; print(neuron.__path__[0])'")
    metadata = fleet.done(other, f"ls -d {site}-*.dist-info || ls -d {site}_*.dist-info")
    put_model(fleet, "quick")
    words = optimise(Evolution(quick(), generations=1))
    run = DisturbedRun(fleet, words, "disturbed-mixed", tmp_path)
    try:
        fleet.done(other, f"sed -i.kept 's/^Version: .*/Version: 8.2.6/' {metadata}/METADATA")
        since = fleet.now(other)
        fleet.done(other, "systemctl restart ipengine@1")
        registered = "Completed registration"
        awaited(lambda: registered in fleet.journal(other, "ipengine@1", since), 60, registered)
        run.begin()
        done = run.to_its_end(120)
    finally:
        fleet.done(other, f"mv {metadata}/METADATA.kept {metadata}/METADATA")
        fleet.done(other, "systemctl restart ipengine@1")
        fleet.whole_again(time.monotonic())
    assert done.code == 0, done.err
    assert re.search(
        rf"engine \d+ is left out: the engine on {other} has neuron 8\.2\.6, this machine has",
        done.err,
    )
    assert {row.host for row in run.scored()} == {WORKERS[0]}


def test_verify_names_the_worker_that_scores_wrongly(fleet: Fleet, tmp_path: Path) -> None:
    put_model(fleet, "misbehaving")
    liar = WORKERS[1]
    evolution = Evolution(misbehaving("nothing", liar=liar), offspring=6, generations=2)
    # Units and wholes differ by host, so individuals are scored whole: that must not hide it.
    words = optimise(evolution, "--verify=6", "--unit-timeout=60")
    run = DisturbedRun(fleet, words, "disturbed-liar", tmp_path)
    run.begin()
    done = run.to_its_end(240)
    assert done.code == 1, done.err
    assert len(done.errors) == 1
    assert done.errors[0].startswith(f"error: {liar} scores unit ")
    assert f"neurofleet repair --without-host {liar}" in done.errors[0]
    kept = [row for row in run.scored() if row.host != liar]
    said = fleet.done(
        HEAD, f"cd {HOME} && neurofleet repair --without-host {liar} {run.name}", user=USER
    )
    assert said.startswith(f"kept {len(kept)} scores")
    assert {row.host for row in run.scored()} == {WORKERS[0]}


@pytest.fixture
def faked_clock(fleet: Fleet) -> Iterator[str]:
    """A clock for programs on the head that can be set; yields the file that sets it."""
    file, library = "/opt/clock", "/opt/libclock.so"
    fleet.copy(Path(__file__).with_name("clock.c"), HEAD, "/opt/clock.c")
    fleet.done(HEAD, f"gcc -shared -fPIC -o {library} /opt/clock.c && echo 0 > {file}")
    words = f"LD_PRELOAD={library} CLOCK_FILE={file}"
    unit = f"[Service]\\nEnvironment={words}\\n"
    folder = "/run/systemd/system/ipcontroller.service.d"
    again = "systemctl daemon-reload && systemctl restart ipcontroller"
    try:
        fleet.done(
            HEAD,
            f"mkdir -p {folder} && printf '{unit}' > {folder}/clock.conf && {again}",
        )
        yield f"{file} {words}"
    finally:
        fleet.done(HEAD, f"rm -rf {folder} /opt/clock /opt/clock.c {library} && {again}")
        fleet.whole_again(time.monotonic())


def test_clock_of_the_head_that_jumps_by_an_hour_either_way_ends_nothing(
    fleet: Fleet, faked_clock: str, tmp_path: Path
) -> None:
    file, _, words = faked_clock.partition(" ")
    fleet.whole_again(time.monotonic())
    put_model(fleet, "quick")
    evolution = Evolution(quick(pause_s=2.0), offspring=6, generations=2)
    run = DisturbedRun(
        fleet, optimise(evolution, "--unit-timeout=60", "--engine-timeout=240"),
        "disturbed-clock", tmp_path, environment=words,
    )  # fmt: skip

    def since_start() -> float:
        said = run.status()
        return float(said["updated"] - said["started"])

    run.begin()
    run.wait_until_computing()
    before = fleet.restarts(HEAD, "ipcontroller")
    scored(run.directory, 3, run.client)
    fleet.done(HEAD, f"echo +3600 > {file}")
    awaited(lambda: since_start() > 3000, 60, "the jump was felt")
    scored(run.directory, 6, run.client)
    fleet.done(HEAD, f"echo 0 > {file}")  # an hour back
    # Who comes now is known to the controller once it has answered a heartbeat.
    fleet.done(WORKERS[0], "systemctl restart ipengine@1")
    done = run.to_its_end(300)
    assert done.code == 0, done.err
    assert {row.status for row in run.scored()} == {"ok"}
    assert "connecting to" not in done.err
    assert fleet.restarts(HEAD, "ipcontroller") == before
    assert since_start() < 600, "the jump back was felt"
    fleet.whole_again(time.monotonic())


def test_run_directory_that_fills_up_loses_nothing(fleet: Fleet, tmp_path: Path) -> None:
    """A full disk ends the run with one line; with space again it goes on."""
    put_model(fleet, "quick")
    evolution = Evolution(quick(), offspring=6, generations=6)
    full = f"{HOME}/disturbed-full"
    fleet.done(
        HEAD,
        f"mkdir {full} && mount -t tmpfs -o size=64k,mode=0777 none {full}"
        f" && mkdir {full}/run && chown {USER} {full}/run",
    )
    try:
        run = DisturbedRun(fleet, optimise(evolution), "disturbed-full/run", tmp_path)
        run.begin()
        done = run.to_its_end(120)
        assert done.code in (1, 2), done.err
        assert len(done.errors) == 1
        assert "No space left" in done.errors[0] or "disk is full" in done.errors[0]
        count = f"{PYTHON} -c \"import sqlite3; print(sqlite3.connect('{full}/run/scores.sqlite')"
        count += ".execute('select count(*) from score').fetchone()[0])\""
        kept = int(fleet.done(HEAD, count))
        fleet.done(HEAD, f"mount -o remount,size=64m {full}")
        run.begin()
        again = run.to_its_end(120)
        assert again.code == 0, again.err
        simulated, _, _ = again.counts
        assert int(fleet.done(HEAD, count)) == kept + simulated
    finally:
        fleet.done(HEAD, f"umount {full} && rmdir {full}")


def test_worker_reads_no_secret_of_the_head_and_no_run_of_anybody(fleet: Fleet) -> None:
    """A task runs as the engines' user; what it may read is what it could send home."""
    task = (
        "import glob, json, os; tried = ['/etc/shadow', '/root/.ssh/authorized_keys',"
        f" '{HOME}/.ssh/authorized_keys', *glob.glob('/etc/ssh/ssh_host_*_key')];"
        "print(json.dumps([name for name in tried if os.access(name, os.R_OK)]),"
        " os.path.exists('/var/lib/neurofleet/ipython/profile_neurofleet/security/keys.json'))"
    )
    said = fleet.done(
        HEAD,
        "cd && printf '%s\\n' 1 2 > items.jsonl && cat > reads.py <<'END'\n"
        "def reads(_item):\n    import contextlib, io\n    text = io.StringIO()\n"
        f"    with contextlib.redirect_stdout(text):\n        exec({task!r}, {{}})\n"
        "    return text.getvalue()\nEND\n"
        "rm -rf reads-run && neurofleet map reads:reads items.jsonl --run-dir reads-run"
        " --output reads.out && cat reads.out",
        user=USER,
    )
    assert said.count("[] False") == 2, said


def test_messages_that_are_too_large_or_sent_again_are_dropped(fleet: Fleet) -> None:
    main = fleet.done(HEAD, "systemctl show --property=MainPID --value ipcontroller")
    since = fleet.now(HEAD)
    sent = fleet.client(WORKERS[0], "replay.py", ADDRESSES[HEAD])
    assert sent.code == 0, sent.err
    assert sent.out.splitlines() == ["answered", "dropped", "cut off"], sent.out
    assert fleet.journal(HEAD, "ipcontroller", since).count("ValueError: Duplicate Signature") == 1
    awaited(lambda: fleet.verification(30).code == 0, 60, "the fleet is whole")
    assert fleet.done(HEAD, "systemctl show --property=MainPID --value ipcontroller") == main
