"""What Ansible, a controller or an account leaves for us: fleet.json and its like."""

from __future__ import annotations

import contextlib
import getpass
import grp
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from neurofleet import costs, guards, manifest
from neurofleet.backends import profile
from neurofleet.backends.profile import ProfileEngines
from neurofleet.controller import connection_files
from neurofleet.errors import EnginesUnreachable, UsageError
from neurofleet.guards import expiry, idle
from neurofleet.guards.service import Guard
from neurofleet.hub import HubAddress
from unit.hostile.inputs import (
    NO_FILES,
    assert_documented,
    assert_in_words,
    command,
    hostile,
    json_texts,
    scratch,
)
from unit.support import snapshot

pytestmark = pytest.mark.timeout(180)

FLEET: dict[str, Any] = {
    "schema_version": 1,
    "name": "mylab",
    "profile": "neurofleet",
    "profile_dir": "/nowhere/profile_neurofleet",
    "client_file": "/nowhere/client.json",
    "workers": [
        {"name": "w1", "hostname": "node1", "engines": 2},
        {"name": "w2", "hostname": "node2", "engines": 4},
    ],
    "lock": "0123abcd",
}
GUARDS: dict[str, Any] = {
    "schema_version": 1,
    "on_head": True,
    "idle_s": 900.0,
    "ttl_s": 28800,
    "connection_file": "/nowhere/engine.json",
    "metadata_url": "",
    "timer": "neurofleet-expiry.timer",
    "most_h": 24.0,
    "wishes": "/nowhere/guard",
    "results_below": ["/nowhere/home"],
}
CONNECTION: dict[str, Any] = {
    "ssh": "",
    "key": "0" * 64,
    "curve_serverkey": "x" * 40,
    "location": "127.0.0.1",
    "pack": "json",
    "unpack": "json",
    "signature_scheme": "hmac-sha256",
    "interface": "tcp://127.0.0.1",
    "registration": 1,
    "control": 1,
    "mux": 1,
    "task": 1,
    "iopub": 1,
    "notification": 1,
    "broadcast": 1,
    "task_scheme": "leastload",
}
COSTS: dict[str, Any] = {
    "schema_version": 1,
    "fleet": "mylab",
    "machines": [
        {
            "id": "i-1", "name": "w1", "pool": "spot", "type": "c7a.large", "spot": True,
            "launched": 1.7e9, "hourly_usd": 0.1, "price_of": "2026-11-21", "ended": None,
        }
    ],
}  # fmt: skip


@given(content=json_texts(FLEET))
@hostile("fleet.json", 100)
def test_fleet_file_is_read_or_refused_in_one_line(
    content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scratch() as folder:
        (folder / "fleet.json").write_bytes(content)
        monkeypatch.setenv("NEUROFLEET_MANIFEST", str(folder / "fleet.json"))
        monkeypatch.setenv("NEUROFLEET_GUARDS", str(folder / "none.json"))
        before = snapshot(folder)
        assert assert_documented(command("extend", "1", cwd=folder)).code == 2
        assert snapshot(folder) == before
        try:
            fleet = manifest.read()
        except UsageError as error:
            assert_in_words(error)
        else:
            assert fleet is not None
            assert fleet.engines >= 0


@given(content=json_texts(GUARDS))
@hostile("guards.json", 80)
def test_guards_file_is_read_or_refused_in_one_line(
    content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scratch() as folder:
        (folder / "guards.json").write_bytes(content)
        monkeypatch.setenv("NEUROFLEET_GUARDS", str(folder / "guards.json"))
        try:
            settings = guards.read()
        except UsageError as error:
            assert_in_words(error)
        else:
            assert settings is not None
            Guard(settings)


def settings(folder: Path) -> guards.Settings:
    (folder / "guards.json").write_text(json.dumps({**GUARDS, "wishes": str(folder)}))
    found = guards.read(folder / "guards.json")
    assert found is not None
    return found


@given(content=json_texts({"until": 5000.0}))
@example(content=b'{"until": ' + b"9" * 400 + b"}")
@example(content=b"\xff" * 2000)
@example(content=b"[" * 1000)
@hostile("wish", 80)
def test_wish_is_done_or_told_and_always_taken(
    content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[float] = []
    monkeypatch.setattr(expiry, "put_off", lambda _timer, until: ends.append(until))
    with scratch() as folder:
        mine = settings(folder)
        (folder / expiry.WISH).write_bytes(content)
        assert expiry.take_wish(mine, now=1000.0)
        assert not (folder / expiry.WISH).exists()
        assert all(1000.0 < end <= 1000.0 + 24 * 3600 for end in ends)


def test_wish_that_is_a_directory_is_told_and_removed(tmp_path: Path) -> None:
    mine = settings(tmp_path)
    (tmp_path / expiry.WISH / "below").mkdir(parents=True)
    assert "could not be read" in expiry.take_wish(mine, now=1000.0)
    assert not (tmp_path / expiry.WISH).exists()


@given(content=json_texts({"engine": 5, "file": "/nowhere"}))
@hostile("note of an engine", 40)
def test_note_of_an_engine_is_read_or_left_out(content: bytes) -> None:
    with scratch() as folder:
        (folder / "ipengine-1").mkdir()
        (folder / "ipengine-1" / "neurofleet-engine-1.json").write_bytes(content)
        os.mkfifo(folder / "ipengine-1" / "neurofleet-engine-2.json")
        assert all(number >= 0 for number in idle.engines_here(folder))


@given(content=json_texts(CONNECTION))
@example(content=json.dumps({**CONNECTION, "pack": "os.system", "unpack": "os.system"}).encode())
@example(content=json.dumps({**CONNECTION, "pack": "a\nb"}).encode())
@hostile("connection file", 100)
def test_connection_file_is_refused_in_one_line(
    content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "HUB_TIMEOUT_S", 0.05)
    with contextlib.suppress(ValueError, RecursionError, TypeError):
        # Other names of hosts would be looked up in the network.
        read = json.loads(content)
        hosts = {key: read[key] for key in ("location", "interface") if key in read}
        assume(all(CONNECTION[key] == host for key, host in hosts.items()))
    with scratch() as folder:
        file = folder / "client.json"
        file.write_bytes(content)
        fleet = manifest.Manifest("mylab", "neurofleet", folder, file, (), "0")
        with pytest.raises(EnginesUnreachable, match="no controller answers") as caught:
            ProfileEngines(None, fleet).connect()
        assert_in_words(caught.value)
        assert file.read_bytes() == content
        with contextlib.suppress(ValueError):
            HubAddress.from_file(file)


@pytest.mark.parametrize("kind", ["pipe", "directory", "device"])
def test_files_that_are_none_are_refused_without_waiting(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "file.json"
    NO_FILES[kind](file)
    for read in (manifest.read, guards.read, costs.read):
        with pytest.raises(UsageError, match="cannot be used: it is not a plain file"):
            read(file)
    fleet = manifest.Manifest("mylab", "neurofleet", tmp_path, file, (), "0")
    with pytest.raises(EnginesUnreachable, match="it is not a plain file"):
        ProfileEngines(None, fleet).connect()
    assert idle.asker(file)() is None
    assert connection_files.main(["check", str(file)]) == 2


@pytest.mark.parametrize("ssh", ["-oProxyCommand=touch gone", "a b", "$(id)", "a\nb"])
def test_connection_file_with_more_than_a_host_for_ssh_is_refused(tmp_path: Path, ssh: str) -> None:
    file = tmp_path / "client.json"
    file.write_text(json.dumps({**CONNECTION, "ssh": ssh}))
    fleet = manifest.Manifest("mylab", "neurofleet", tmp_path, file, (), "0")
    with pytest.raises(EnginesUnreachable, match="its ssh is not a host"):
        ProfileEngines(None, fleet).connect()


@given(content=json_texts(COSTS))
@hostile("costs.json", 80)
def test_costs_are_told_or_refused_in_one_line(content: bytes) -> None:
    with scratch() as folder:
        (folder / "costs.json").write_bytes(content)
        try:
            _, machines = costs.read(folder / "costs.json")
        except UsageError as error:
            assert_in_words(error)
        else:
            costs.by_pool(machines, time.time())


CONTROLLER: dict[str, Any] = {
    "schema_version": 1,
    "head_address": "192.0.2.7",
    "engine_ports": list(range(24100, 24109)),
    "client_ports": list(range(24109, 24115)),
    "scheme": "leastload",
    "user": getpass.getuser(),
    "group": grp.getgrgid(os.getgid()).gr_name,
}
FILES = ("keys_file", "engine_file", "client_file")


@pytest.mark.skipif(os.geteuid() != 0, reason="files are given to root")
@given(data=st.data(), which=st.sampled_from([None, *FILES]))
@hostile("controller's files", 100)
def test_files_of_the_controller_are_made_or_refused_and_no_key_is_told(
    data: st.DataObject, which: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with scratch() as folder:
        valid = CONTROLLER | {name: str(folder / f"{name}.json") for name in FILES}
        asked = folder / "controller.json"
        asked.write_text(json.dumps(valid))
        assert connection_files.main(["write", str(asked)]) == 0
        keys = json.loads((folder / "keys_file.json").read_text())
        capsys.readouterr()
        target = folder / f"{which}.json" if which else asked
        damaged = data.draw(json_texts(json.loads(target.read_text())))
        with contextlib.suppress(ValueError, RecursionError, TypeError):
            # The names of the files are believed; none is to be made elsewhere.
            read = json.loads(damaged)
            names = [read.get(name) for name in FILES if isinstance(read, dict)]
            places = [folder / name for name in names if isinstance(name, str)]
            assume(all(place.parent == folder for place in places))
        target.chmod(0o600)
        target.write_bytes(damaged)
        with contextlib.chdir(folder):
            codes = [connection_files.main([verb, str(asked)]) for verb in ("check", "write")]
        said = capsys.readouterr()
        assert set(codes) <= {0, 2}
        assert said.err.count("\n") == codes.count(2)
        assert "Traceback" not in said.err
        assert not any(secret in said.out + said.err for secret in keys.values())
        if which == "keys_file" and codes[1] == 2:
            assert target.read_bytes() == damaged
