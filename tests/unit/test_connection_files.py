"""Keys and connection files: made once, compared before every start, never told."""

from __future__ import annotations

import getpass
import grp
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from neurofleet.controller import connection_files


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    security = tmp_path / "security"
    security.mkdir()
    content = {
        "schema_version": 1,
        "head_address": "192.0.2.7",
        "engine_ports": list(range(24100, 24109)),
        "client_ports": list(range(24109, 24115)),
        "scheme": "leastload",
        "keys_file": str(security / "keys.json"),
        "engine_file": str(security / "ipcontroller-engine.json"),
        "client_file": str(security / "ipcontroller-client.json"),
        "user": getpass.getuser(),
        "group": grp.getgrgid(os.getgid()).gr_name,
    }
    file = tmp_path / "controller.json"
    file.write_text(json.dumps(content))
    return file


def _security(settings: Path) -> dict[str, dict[str, Any]]:
    folder = settings.parent / "security"
    return {path.name: json.loads(path.read_text()) for path in folder.iterdir()}


def _run(action: str, settings: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = connection_files.main([*action.split(), str(settings)])
    said = capsys.readouterr()
    for secret in _secrets(settings):
        assert secret not in said.out + said.err
    return code, said.out + said.err


def _secrets(settings: Path) -> list[str]:
    try:
        return list(_security(settings)["keys.json"].values())
    except (KeyError, ValueError):
        return []


ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="files are given to root")


@ROOT
def test_write_nothing_there_makes_three_files_that_agree(
    settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = _run("write", settings, capsys)
    assert code == 0
    assert json.loads(said)["changed"] == [
        "keys.json", "ipcontroller-engine.json", "ipcontroller-client.json",
    ]  # fmt: skip
    files = _security(settings)
    engine, client = files["ipcontroller-engine.json"], files["ipcontroller-client.json"]
    for key in ("key", "registration", "pack", "unpack", "signature_scheme", "curve_serverkey"):
        assert engine[key] == client[key]
    assert engine["interface"] == "tcp://192.0.2.7"
    assert client["interface"] == "tcp://127.0.0.1"
    ports = [port for port in engine.values() if isinstance(port, int)] + engine["broadcast"]
    assert sorted(ports) == list(range(24100, 24109))
    secret = files["keys.json"]["curve_secretkey"]
    assert secret not in json.dumps([engine, client])
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in settings.parent.glob("*/*")}
    assert modes == {
        "keys.json": 0o400,
        "ipcontroller-engine.json": 0o640,
        "ipcontroller-client.json": 0o640,
    }
    assert _run("check", settings, capsys) == (0, "")


@ROOT
def test_write_again_changes_nothing(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run("write", settings, capsys)
    before = _security(settings)
    assert _run("write", settings, capsys) == (0, '{"changed": []}\n')
    assert _security(settings) == before


@ROOT
def test_write_dry_run_says_and_makes_nothing(
    settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = _run("write --dry-run", settings, capsys)
    assert code == 0
    assert len(json.loads(said)["changed"]) == 3
    assert _security(settings) == {}


@ROOT
def test_write_other_ports_keeps_the_keys(
    settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _run("write", settings, capsys)
    before = _security(settings)
    content = json.loads(settings.read_text())
    content["engine_ports"] = list(range(25100, 25109))
    settings.write_text(json.dumps(content))
    code, said = _run("check", settings, capsys)
    assert code == 2
    assert "ipcontroller-engine.json differs in broadcast, control" in said
    _run("write", settings, capsys)
    after = _security(settings)
    assert after["keys.json"] == before["keys.json"]
    assert after["ipcontroller-client.json"]["registration"] == 25100


@ROOT
@pytest.mark.parametrize("name", ["ipcontroller-engine.json", "ipcontroller-client.json"])
@pytest.mark.parametrize("damage", ["remove", "key"])
def test_check_file_missing_or_of_another_key_is_refused_in_one_line(
    settings: Path, capsys: pytest.CaptureFixture[str], name: str, damage: str
) -> None:
    _run("write", settings, capsys)
    file = settings.parent / "security" / name
    if damage == "remove":
        file.unlink()
    else:
        file.write_text(json.dumps({**json.loads(file.read_text()), "key": "0" * 64}))
    code, said = _run("check", settings, capsys)
    assert code == 2
    assert said.count("\n") == 1
    assert name in said
    assert "site.yml" in said


@ROOT
def test_write_keys_damaged_is_refused_and_nothing_is_replaced(
    settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _run("write", settings, capsys)
    keys = settings.parent / "security" / "keys.json"
    keys.write_text('{"curve_secretkey": "abc')
    code, said = _run("write", settings, capsys)
    assert code == 2
    assert "no JSON" in said
    assert "abc" not in said
    assert keys.read_text() == '{"curve_secretkey": "abc'
