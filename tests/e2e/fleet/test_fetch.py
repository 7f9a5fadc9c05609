"""Results come to where a person stands: all of them, whole, and nobody else's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.booted import HEAD, Fleet, playbook, start_playbook
from e2e.processes import awaited
from e2e.running import Finished

# The fleet is made before the first of them, which has a limit of its own.
pytestmark = pytest.mark.timeout(300, func_only=True)

HOME = "/home/user"
RUNS = f"{HOME}/fetched/neurofleet-runs/one", f"{HOME}/fetched/one"
SECRET = "/root/secret-of-root"


@pytest.fixture
def runs(fleet: Fleet) -> Iterator[None]:
    """Two runs of one name, one of which has links that its owner laid; nothing else to fetch."""
    fleet.done(HEAD, f"echo of root > {SECRET} && chmod 600 {SECRET}")
    for number, run in enumerate(RUNS):
        fleet.done(
            HEAD,
            f"mkdir -p {run}/files/1 && cd {run} && echo '{{}}' > neurofleet-run.json"
            f" && echo {number} > files/1/number && echo old > scores.sqlite-journal",
            user="user",
        )
    fleet.done(HEAD, f"cd {RUNS[1]} && ln -s {SECRET} .fetching && ln -s {SECRET} stolen", "user")
    yield
    fleet.done(HEAD, f"rm -rf {HOME}/fetched {SECRET}")


def fetch(here: Path, log: Path) -> Finished:
    return playbook("playbooks/fetch.yml", log, *options(here))


def options(here: Path) -> list[str]:
    settings = {"results_dir": str(here), "results_below": [f"{HOME}/fetched"]}
    return ["-e", json.dumps(settings)]


def test_runs_are_fetched_with_their_paths_and_links_lead_nowhere(
    fleet: Fleet, runs: None, tmp_path: Path, log: Path
) -> None:
    here = [tmp_path / "local" / run[1:] for run in RUNS]
    before = fleet.done(HEAD, f"stat -c '%a %Y' {SECRET}")
    done = fetch(tmp_path, log)
    # One of the links cannot be written to by its owner, and that run is named; the other came.
    assert done.code != 0
    said = " ".join(done.out.split())
    assert f"Not fetched: {RUNS[1]} (tee: {RUNS[1]}/.fetching: Permission denied)" in said, said
    assert (here[0] / "files/1/number").read_text() == "0\n"

    fleet.done(HEAD, f"rm {RUNS[1]}/.fetching", user="user")
    done = fetch(tmp_path, log)
    assert done.code == 0, done.out + done.err
    assert (here[1] / "files/1/number").read_text() == "1\n"
    assert not (here[1] / "stolen").is_symlink()
    assert fleet.done(HEAD, f"stat -c '%a %Y' {SECRET}") == before
    assert "of root" not in "".join(p.read_text() for p in tmp_path.rglob("*") if p.is_file())
    # Nothing changed: nothing is copied, and what somebody put beside the results stays.
    (here[0] / "notes.txt").write_text("mine")
    assert f"{RUNS[0]}: " not in fetch(tmp_path, log).out

    # Deep below something changes, and a journal ends: what is here follows.
    fleet.done(
        HEAD, f"cd {RUNS[0]} && echo new > files/1/number && rm scores.sqlite-journal", "user"
    )
    done = fetch(tmp_path, log)
    assert done.code == 0, done.out + done.err
    assert (here[0] / "files/1/number").read_text() == "new\n"
    assert not (here[0] / "scores.sqlite-journal").exists()
    assert (here[0] / "notes.txt").read_text() == "mine"

    # Another run at the same path, of the next fleet say, takes nothing of this one.
    fleet.done(HEAD, f"cd {RUNS[0]} && rm .fetched && echo another > files/1/number", "user")
    done = fetch(tmp_path, log)
    assert done.code == 0, done.out + done.err
    (aside,) = here[0].parent.glob("one.until-*")
    assert (aside / "files/1/number").read_text() == "new\n"
    assert (here[0] / "files/1/number").read_text() == "another\n"


def test_fetch_that_is_broken_off_says_so_and_goes_on(
    fleet: Fleet, runs: None, tmp_path: Path, log: Path
) -> None:
    run = RUNS[0]
    fleet.done(HEAD, f"rm -r {RUNS[1]} && truncate --size 1500M {run}/large", user="user")
    here = tmp_path / "local" / run[1:]
    client = start_playbook("playbooks/fetch.yml", log, *options(tmp_path))

    def part() -> bool:
        assert client.running(), client.ended().out
        return any(file.stat().st_size > 2**24 for file in here.glob(".large.*"))

    awaited(part, 120, "a part was copied")
    fleet.done(HEAD, "pkill --full '^rsync --server'")
    done = client.ended(60)
    assert done.code != 0
    assert re.search(
        rf"Not fetched: {run} \(.+\)\. What was copied is kept", " ".join(done.out.split())
    )
    assert not (here / "large").exists()
    part_of_it = (here / ".neurofleet-partial" / "large").stat().st_size
    assert part_of_it > 2**24

    again = fetch(tmp_path, log)
    assert again.code == 0, again.out + again.err
    assert (here / "large").stat().st_size == 1500 * 2**20
    assert not (here / ".neurofleet-partial").exists()
