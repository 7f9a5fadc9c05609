"""What playbooks do to a fleet that is up, and what they say of settings that cannot work."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from e2e import booted
from e2e.booted import (
    ADDRESSES,
    BRIDGE,
    HEAD,
    ROOT,
    WORKERS,
    Fleet,
    Made,
    changed,
    inventory,
    playbook,
)
from e2e.running import Finished

# The fleet is made before the first of them, which has a limit of its own.
pytestmark = pytest.mark.timeout(600, func_only=True)

HOSTS = """
head: {hosts: {head1: {ansible_host: 10.231.77.10}}}
workers:
  hosts:
    worker1: {ansible_host: 10.231.77.11}
"""
BOTH = HOSTS + "    worker2: {ansible_host: 10.231.77.12}\n"


def message(done: Finished) -> str:
    """Return the one message of a playbook that failed."""
    assert done.code != 0, done.out
    assert "Traceback" not in done.out + done.err, done.out + done.err
    found = re.findall(r'^ *"?msg"?: (.+?)(?=^ *"?\w+"?: |^\S|\Z)', done.out, re.M | re.S)
    said = {" ".join(text.split()).strip("'\">-| ") for text in found}
    assert said, done.out + done.err
    return "\n".join(sorted(said))


class Wrong(NamedTuple):
    """An inventory or a setting that cannot work, and what must be said of it."""

    says: tuple[str, ...]
    hosts: str = HOSTS
    variables: Mapping[str, Any] = {}
    options: tuple[str, ...] = ("--check",)
    name: str = "playbooks/configure.yml"


#: Only the role that says so, as somebody would who corrects a setting.
ENGINES = ("--check", "--tags=ipengine")
PROFILE = ("--check", "--tags=ipython_profile")
#: Any settings, of an installation that has not been made.
ELSEWHERE = {"fleet_install_dir": "/opt/elsewhere"}
WRONG = {
    "no head": Wrong(
        ("The inventory has no head", "group 'head'"),
        "head: {}\nworkers: {hosts: {worker1: {ansible_host: 10.231.77.11}}}",
        name="site.yml",
    ),
    "two heads": Wrong(
        ("has 2 heads (other, head1)", "move the others to 'workers'"),
        HOSTS.replace("{head1:", "{other: {ansible_host: 10.231.77.13}, head1:"), name="site.yml",
    ),
    "no worker": Wrong(
        ("no worker",), "head: {hosts: {head1: {ansible_host: 10.231.77.10}}}", name="site.yml"
    ),
    "host in no group": Wrong(
        ("In no group: lost",),
        HOSTS + "ungrouped: {hosts: {lost: {ansible_host: 10.231.77.14}}}", name="site.yml",
    ),
    "head that is a worker": Wrong(
        ("head1 is head and worker", "Take it out of ''workers''"),
        HOSTS + "    head1: {}\n", name="site.yml",
    ),
    "host that is not there": Wrong(
        ("gone cannot be reached at root@10.231.77.200", "take it out of the inventory"),
        HOSTS + "    gone: {ansible_host: 10.231.77.200}\n",
    ),
    "account that is not root": Wrong(
        ("user cannot become root", "--ask-become-pass"), variables={"ansible_user": "user"}
    ),
    "port base out of range": Wrong(
        ("fleet_port_base is 40000", "from 1024 to 32750"), variables={"fleet_port_base": 40000}
    ),
    "port base that is no number": Wrong(
        ("fleet_port_base", "int"), variables={"fleet_port_base": "many"}
    ),
    "no engines": Wrong(
        ("ipengine_count is 0", "at least 1"), variables={"ipengine_count": 0}, options=ENGINES
    ),
    "more engines than memory": Wrong(
        ("5000 engines of 400 MB need more than the", "of worker1. Set ipengine_count to at most"),
        variables={"ipengine_count": 5000}, options=ENGINES,
    ),
    "misspelt setting": Wrong(
        ("ipengine_cuont", "which no role knows", "Correct the spelling"),
        variables={"ipengine_cuont": 1},
    ),
    "misspelt setting of the contract": Wrong(
        ("fleet_memebers", "which no role knows"), variables={"fleet_memebers": ["user"]}
    ),
    "full disk": Wrong(
        ("MB free where /opt/elsewhere is", "needs 99999999 MB", "Make room"),
        variables={**ELSEWHERE, "python_env_disk_mb": 99999999},
    ),
    "wheelhouse that is not there": Wrong(
        ("python_env_wheelhouse is /nowhere", "scripts/wheelhouse /nowhere"),
        variables={**ELSEWHERE, "python_env_wheelhouse": "/nowhere"},
    ),
    "address that the head does not have": Wrong(
        ("head1 has no address 192.0.2.9", "Set fleet_address"),
        HOSTS.replace("77.10}", "77.10, fleet_address: 192.0.2.9}"), options=PROFILE,
    ),
    "network that is in use": Wrong(
        ("in use on", "local_machines_network"), HOSTS.replace("10.231.77.", "127.0.0."),
        {"local_machines_network": "127.0.0.9/8", "local_machines_bridge": "nfelsewhere",
         "local_machines_dir": "/var/lib/neurofleet-elsewhere"},
        options=(), name="site.yml",
    ),
    "address outside the network": Wrong(
        ("worker1 has the address '10.9.9.9'", "Give it another ansible_host"),
        HOSTS.replace("10.231.77.11", "10.9.9.9"), options=(), name="site.yml",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_work_is_said_once_with_the_remedy(
    made: Made, tmp_path: Path, log: Path, name: str
) -> None:
    wrong = WRONG[name]
    wanted = inventory(tmp_path / "inventory", wrong.hosts, wrong.variables)
    said = message(playbook(wrong.name, log, *wrong.options, inventory=wanted))
    for part in wrong.says:
        assert part in said
    assert not Path("/var/lib/neurofleet-elsewhere").exists()


@pytest.fixture
def worker_without_python(made: Made) -> Iterator[None]:
    """Worker 2 has no Python."""
    fleet = made.fleet
    fleet.done(WORKERS[1], "mv /usr/bin/python3 /usr/bin/python3.away")
    yield
    fleet.done(WORKERS[1], "mv /usr/bin/python3.away /usr/bin/python3")


def test_machine_without_python_is_named(worker_without_python: None, log: Path) -> None:
    said = message(playbook("playbooks/configure.yml", log))
    assert said == "worker2 has no Python. Run `apt-get install python3` on it."


def test_port_that_another_program_has_is_named(fleet: Fleet, log: Path, tmp_path: Path) -> None:
    fleet.done(HEAD, "systemd-run --unit=other python3 -m http.server 24405")
    try:
        fleet.done(HEAD, "until ss -Hltn | grep -q :24405; do sleep 0.1; done")
        wanted = inventory(tmp_path / "inventory", BOTH, {"fleet_port_base": 24400})
        said = message(playbook("playbooks/configure.yml", log, *PROFILE, inventory=wanted))
    finally:
        fleet.done(HEAD, "systemctl stop other")
    assert "port 24405 of head1 is in use by python3" in said
    assert "fleet_port_base" in said


def test_short_fleet_says_which_worker_lacks_what(fleet: Fleet, log: Path) -> None:
    fleet.done(WORKERS[1], "systemctl stop ipengines.target")
    try:
        said = message(playbook("playbooks/verify.yml", log, "-e", "verify_timeout_s=3"))
    finally:
        fleet.done(WORKERS[1], "systemctl start ipengines.target")
    assert "worker2 shows 0 of 1" in said
    assert "journalctl" in said


def test_another_version_of_ansible_is_refused(made: Made, tmp_path: Path) -> None:
    control = ROOT / ".venv-control" / "bin" / "python"
    other = tmp_path / "ansible"
    words = [control, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*words, "--target", other, "ansible-core==2.18.6"], check=True)
    done = subprocess.run(
        [control, "-m", "ansible.cli.playbook", "site.yml", "--inventory", booted.INVENTORY],
        cwd=ROOT, env={**booted.control_environment(), "PYTHONPATH": str(other)},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    said = message(Finished(done.returncode, done.stdout, done.stderr))
    assert "This is ansible-core 2.18.6; neurofleet needs 2.19" in said


NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def test_booting_machines_without_root_is_refused() -> None:
    with tempfile.TemporaryDirectory() as folder:  # an account without rights need not see ours
        place = Path(folder)
        place.chmod(0o755)
        fleet = shutil.copy(ROOT / "scripts/fleet", place)
        role = shutil.copytree(ROOT / "roles/local_machines/files", place / "files")
        refused = [
            subprocess.run(
                [*NOBODY, *words], cwd="/", capture_output=True, text=True, timeout=60, check=False
            )
            for words in (["bash", fleet], ["/usr/bin/python3", role / "machines.py", "down"])
        ]
    for done in refused:
        assert done.returncode != 0
        assert re.fullmatch(r"error: .* needs root.*\n", done.stderr), done.stderr


def test_check_on_bare_machines_says_what_would_be_done(made: Made) -> None:
    if made.checked is None:
        pytest.skip("the fleet was kept")
    assert made.checked.code == 0, made.checked.out + made.checked.err
    assert changed(made.checked) > 30
    assert "+ExecStart=/opt/neurofleet/venv/bin/python -P -m ipyparallel.engine" in made.checked.out


def test_limit_to_one_worker_changes_nothing_anywhere(fleet: Fleet, log: Path) -> None:
    done = playbook("site.yml", log, "--limit", "worker1")
    assert done.code == 0, done.out + done.err
    assert changed(done) == 0, done.out
    assert fleet.engines() == dict.fromkeys(WORKERS, 1)


def test_removed_worker_leaves_no_trace_and_an_added_one_works(
    fleet: Fleet, tmp_path: Path, log: Path
) -> None:
    bridge = Path("/sys/class/net", BRIDGE)
    # An address of its own (NET_ADDR_SET), not a machine's that may end.
    assert (bridge / "addr_assign_type").read_text() == "3\n"
    address = (bridge / "address").read_text()
    one = inventory(tmp_path / "one", HOSTS)
    removed = playbook("site.yml", log, inventory=one)
    assert removed.code == 0, removed.out + removed.err
    assert fleet.engines() == {"worker1": 1}
    assert (bridge / "address").read_text() == address
    trace = f"worker2|{re.escape(ADDRESSES['worker2'])}"
    where = "/etc /var/lib/neurofleet /run/systemd"
    assert fleet.ssh(HEAD, f"grep --recursive --extended-regexp --text '{trace}' {where}").out == ""
    assert not re.search(trace, fleet.done(HEAD, "nft list ruleset"))
    assert not (booted.MACHINES / "machines" / "worker2").exists()

    # As the user would add it: a line, and the same command.
    again = booted.make("fleet", log, "OFFSPRING=1")
    assert again.code == 0, again.out + again.err
    assert fleet.engines() == dict.fromkeys(WORKERS, 1)
    # The same run was there: resumed for nothing.
    assert "0 simulated" in again.err


def test_collections_playbook_checks_a_live_fleet_and_finds_nothing_to_change(
    fleet: Fleet, tmp_path: Path
) -> None:
    """The collection is built, installed, and used by its full names."""
    galaxy = ROOT / ".venv-control" / "bin" / "ansible-galaxy"
    build = [galaxy, "collection", "build", "--output-path", tmp_path]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("neurofleet-fleet-*.tar.gz")
    place = tmp_path / "collections"
    install = [galaxy, "collection", "install", "--offline", "--no-deps", "-p", place, archive]
    subprocess.run(install, cwd=tmp_path, check=True, capture_output=True)
    done = subprocess.run(
        [
            ROOT / ".venv-control/bin/ansible-playbook", "neurofleet.fleet.site",
            "--check", "--diff", "--inventory", booted.INVENTORY,
        ],
        cwd=tmp_path,
        env={**booted.control_environment(), "ANSIBLE_COLLECTIONS_PATH": str(place),
             "ANSIBLE_HOST_KEY_CHECKING": "true"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "neurofleet.fleet.ipcontroller : " in done.stdout
    assert changed(Finished(done.returncode, done.stdout, done.stderr)) == 0, done.stdout
