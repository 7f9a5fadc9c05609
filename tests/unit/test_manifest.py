"""The fleet's manifest, read on a head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from neurofleet import manifest
from neurofleet.backends.profile import ProfileEngines
from neurofleet.errors import EnginesUnreachable, UsageError

GOOD: dict[str, Any] = {
    "schema_version": 1,
    "name": "mylab",
    "profile": "neurofleet",
    "profile_dir": "/srv/profile_neurofleet",
    "client_file": "/srv/profile_neurofleet/security/ipcontroller-client.json",
    "workers": [
        {"name": "w1", "hostname": "node1", "engines": 2},
        {"name": "w2", "hostname": "node2", "engines": 4},
    ],
    "lock": "0123abcd",
}


def _write(folder: Path, content: Any) -> Path:
    file = folder / "fleet.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_read_good_file_gives_the_fleet(tmp_path: Path) -> None:
    fleet = manifest.read(_write(tmp_path, GOOD))
    assert fleet is not None
    assert fleet.engines == 6
    assert fleet.workers[1] == manifest.Worker("w2", "node2", 4)
    assert fleet.client_file.name == "ipcontroller-client.json"


def test_read_no_file_is_no_fleet(tmp_path: Path) -> None:
    assert manifest.read(tmp_path / "fleet.json") is None


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "Expecting value"),
        ("[]", "not an object"),
        ({**GOOD, "schema_version": 2}, "schema_version is 2, this program knows 1"),
        ({k: v for k, v in GOOD.items() if k != "name"}, "it has no 'name'"),
        ({**GOOD, "profile_dir": 7}, "'profile_dir' is 7"),
        ({**GOOD, "workers": [{"name": "w", "hostname": "w", "engines": "2"}]}, "'engines' is '2'"),
        ({**GOOD, "workers": [{"name": "w", "hostname": "w", "engines": -1}]}, "not a count"),
    ],
)
def test_read_bad_file_is_one_line_with_exit_code_two(
    tmp_path: Path, content: Any, why: str
) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        manifest.read(_write(tmp_path, content))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "fleet.json") in str(caught.value)


def test_connect_fleet_without_its_connection_file_names_the_fleet(tmp_path: Path) -> None:
    fleet = manifest.read(_write(tmp_path, {**GOOD, "client_file": str(tmp_path / "none.json")}))
    for profile in (None, "neurofleet"):
        with pytest.raises(EnginesUnreachable, match="fleet mylab") as caught:
            ProfileEngines(profile, fleet).connect()
        assert "systemctl status ipcontroller" in caught.value.remedy


def test_connect_another_profile_is_looked_for_in_ipython(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    fleet = manifest.read(_write(tmp_path, GOOD))
    with pytest.raises(EnginesUnreachable, match="IPython profile other"):
        ProfileEngines("other", fleet).connect()
