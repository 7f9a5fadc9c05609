"""Measure the fleet on this computer's booted machines and print the tables of docs/benchmarks.md.

Run as root, with nothing else to do for the machine. It boots a head and each number of workers
in turn, on a bridge of its own, and removes them again.

    python benchmarks/fleet.py [WORKERS ...]
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
CONTROL = ROOT / ".venv-control" / "bin"
#: Beside the machines of `make fleet` and of the tests.
PLACE = {
    "local_machines_dir": "/var/lib/neurofleet-bench",
    "local_machines_bridge": "neurofleet3",
    "local_machines_network": "10.231.79.1/24",
}
SIZE = ["--offspring_size=4", "--max_ngen=2", "--seed=42", "--no-report"]
#: Runs of each side, alternating, after one of each that is not counted.
REPEATS = 1


def inventory(home: Path, workers: int) -> Path:
    """Write an inventory of a head and so many workers."""
    target = home / f"workers{workers}"
    shutil.copytree(ROOT / "inventories" / "local", target, dirs_exist_ok=True)
    hosts = {f"worker{n}": {"ansible_host": f"10.231.79.{10 + n}"} for n in range(1, workers + 1)}
    content = {
        "head": {"hosts": {"head1": {"ansible_host": "10.231.79.10"}}},
        "workers": {"hosts": hosts},
    }
    (target / "hosts.yml").write_text(json.dumps(content))
    (target / "group_vars" / "all" / "zz_place.yml").write_text(json.dumps(PLACE))
    return target


def site(wanted: Path) -> tuple[float, str]:
    """Run site.yml; return its wall time [s] and its ten slowest tasks."""
    started = time.monotonic()
    done = subprocess.run(
        [CONTROL / "ansible-playbook", "site.yml", "--inventory", wanted],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return time.monotonic() - started, done.stdout.rpartition("====")[2]


def remove() -> None:
    """End the machines."""
    script = ROOT / "roles" / "local_machines" / "files" / "machines.py"
    words = ["/usr/bin/python3", script, "down", "--directory", PLACE["local_machines_dir"]]
    subprocess.run(words, check=True, capture_output=True)


def growth(home: Path, workers: int) -> str:
    """Return a row: so many workers, from bare machines to a verified fleet, and again."""
    wanted = inventory(home, workers)
    first, slowest = site(wanted)
    second, _ = site(wanted)
    print(f"The slowest tasks with {workers} workers:\n{slowest}", file=sys.stderr)
    return f"| {workers} | {first:.0f} s | {second:.0f} s |"


def opt_l5pc(command: list[str], directory: Path) -> float:
    """Run the optimisation from nothing; return its wall time [s]."""
    started = time.monotonic()
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode or "simulated, 0 from the store" not in done.stderr:
        sys.exit(done.stdout + done.stderr)
    return time.monotonic() - started


def comparison(home: Path) -> str:
    """Compare opt_l5pc on two engines of two workers with two engines of this computer."""
    config = f"{PLACE['local_machines_dir']}/ssh/config"
    there, here = [], []
    # Both have the model compiled and compared before anything is measured.
    for repeat in range(REPEATS + 1):
        directory = home / f"local{repeat}"
        directory.mkdir()
        for taken, words in (
            (here, [str(BIN / "opt_l5pc"), "--start", "--ipyparallel", "--engines=2", *SIZE]),
            (there, ["ssh", "-F", config, "head1",
                     f"mkdir r{repeat} && cd r{repeat} && opt_l5pc --start --ipyparallel "
                     + " ".join(SIZE)]),
        ):  # fmt: skip
            seconds = opt_l5pc(words, directory)
            if repeat:
                taken.append(seconds)
    return (
        f"| opt_l5pc, two engines of two workers / two local engines |"
        f" {min(there) / min(here):.3f} | at most 1.05 | {min(there):.1f} s and {min(here):.1f} s,"
        " after a run of each that is not counted |"
    )


def main() -> None:
    """Print the tables."""
    if os.geteuid() != 0:
        sys.exit("error: booting machines takes root. Run the same command as root.")
    workers = [int(word) for word in sys.argv[1:]] or [2, 4, 8]
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        rows, compared = [], ""
        try:
            for count in workers:
                remove()
                rows.append(growth(home, count))
                if count == 2:
                    compared = comparison(home)
        finally:
            remove()
    print("| workers | bare machines to verified fleet | again |\n| --- | --- | --- |")
    print(*rows, sep="\n")
    print(f"\n| what | measured | wanted | compared with |\n| --- | --- | --- | --- |\n{compared}")


if __name__ == "__main__":
    main()
