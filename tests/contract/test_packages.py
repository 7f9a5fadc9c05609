"""Packages that models need: locked beside neurofleet's own, whose versions stay."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
LOCKER = ROOT / "roles" / "python_env" / "files" / "lock_packages.py"
OWN_LOCK = "numpy==2.4.6 \\\n    --hash=sha256:00\nneo==0.14.6 \\\n    --hash=sha256:00\n"

WHEEL = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@dataclass
class Desk:
    """A directory with a small package index, and what is asked of it."""

    path: Path

    def publish(self, name: str, version: str, needs: str = "") -> str:
        """Add a package, and return its hash."""
        stem = f"{name}-{version}"
        wheel = self.path / "files" / f"{stem}-py3-none-any.whl"
        wheel.parent.mkdir(exist_ok=True)
        about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        about += f"Requires-Dist: {needs}\n" if needs else ""
        contents = {
            f"{name}.py": f"VERSION = {version!r}\n",
            f"{stem}.dist-info/METADATA": about,
            f"{stem}.dist-info/WHEEL": WHEEL,
        }
        record = ""
        for file, text in contents.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
            record += f"{file},sha256={digest.decode().rstrip('=')},{len(text)}\n"
        contents[f"{stem}.dist-info/RECORD"] = f"{record}{stem}.dist-info/RECORD,,\n"
        with zipfile.ZipFile(wheel, "w") as archive:
            for file, text in contents.items():
                archive.writestr(zipfile.ZipInfo(file), text)
        page = self.path / "simple" / name / "index.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        link = f'<a href="{wheel.as_uri()}#sha256={found}">{wheel.name}</a>\n'
        page.write_text((page.read_text() if page.exists() else "<!DOCTYPE html>\n") + link)
        return found

    def ask(self, text: str, name: str = "packages.txt") -> Path:
        """Write a requirements file."""
        file = self.path / name
        file.write_text(text)
        return file

    @property
    def lock(self) -> Path:
        return self.path / "packages.lock.txt"

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        index = (self.path / "simple").as_uri()
        only_here = {"UV_DEFAULT_INDEX": index, "PIP_INDEX_URL": index}
        return subprocess.run(
            [*words], env={**os.environ, **only_here},
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    def locked(self, *words: str | Path) -> dict[str, Any]:
        """Lock, and return what the program says."""
        beside = self.path / "own.txt"
        done = self.run(
            sys.executable, LOCKER, self.path / "packages.txt", "--beside", beside, *words
        )
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert isinstance(told, dict)
        return told

    def refused(self) -> str:
        """Lock what cannot be, and return the line that says so."""
        beside = self.path / "own.txt"
        done = self.run(sys.executable, LOCKER, self.path / "packages.txt", "--beside", beside)
        assert done.returncode in (1, 2)
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert not self.lock.exists()
        return line


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    desk.publish("numpy", "2.4.6")
    desk.publish("numpy", "3.0")
    (tmp_path / "own.txt").write_text(OWN_LOCK)
    return desk


def test_lock_has_what_is_needed_with_hashes_and_nothing_of_our_own(desk: Desk) -> None:
    hashes = {desk.publish("spikes", "1.0", "traces>=2"), desk.publish("traces", "2.1", "numpy")}
    desk.publish("traces", "1.9")
    desk.ask("Spikes  # for the features\n")
    told = desk.locked()
    assert told["path"] == str(desk.lock)
    assert told["made"] is True
    text = desk.lock.read_text()
    assert told["checksum"] == hashlib.sha256(text.encode()).hexdigest()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert [line.rstrip(" \\") for line in lines if "==" in line] == ["spikes==1.0", "traces==2.1"]
    assert {line.partition("sha256:")[2] for line in lines if "sha256" in line} == hashes
    assert "://" not in text


def test_lock_that_was_made_of_the_same_is_left_as_it_is_and_another_is_made(desk: Desk) -> None:
    desk.publish("spikes", "1.0")
    desk.ask("spikes\n")
    first = desk.locked()
    desk.publish("spikes", "1.1")
    assert desk.locked() == {**first, "made": False}
    # Another package does not change the version of the one that is there.
    desk.publish("traces", "1.0")
    desk.ask("spikes\ntraces\n")
    seen = desk.locked("--check", desk.path / "seen")
    assert seen["made"] is True
    assert "traces" not in desk.lock.read_text()
    assert desk.locked()["checksum"] == seen["checksum"]
    assert "spikes==1.0" in desk.lock.read_text()
    (desk.path / "own.txt").write_text(OWN_LOCK + "deap==1.4 \\\n    --hash=sha256:00\n")
    assert desk.locked()["made"] is True


def test_hashes_of_the_persons_own_are_kept_also_of_included_files(desk: Desk) -> None:
    desk.publish("spikes", "1.0")
    desk.publish("traces", "1.0")
    desk.ask("traces==1.0 \\\n  --hash=sha256:" + "0" * 64 + "\n", "more.txt")
    desk.ask("-r more.txt\nspikes\n")
    before = desk.locked()
    assert f"traces==1.0 \\\n    --hash=sha256:{'0' * 64}\n" in desk.lock.read_text()
    desk.ask("traces\n", "more.txt")
    assert desk.locked()["checksum"] != before["checksum"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\nnumpy==1.26.0\n", ("line 2: numpy==1.26.0, but neurofleet itself has numpy 2.4.6",)),
        ("numpy>=3\n", ("beside neurofleet's own", "numpy>=3")),
        ("nowhere\n", ("nowhere was not found",)),
        ("-e ./mine\n", ("line 1: -e ./mine is a file or a repository", "beside the model")),
        ("mine @ git+https://example.org/mine\n", ("line 1", "is a file or a repository")),
        ("--extra-index-url=https://example.org\n", ("--extra-index-url", "UV_DEFAULT_INDEX")),
        ("spikes 1.0\n", ("line 1: 'spikes 1.0' is no package", "name==version")),
        ("-r packages.txt\n", ("it includes itself",)),
        ("-r none.txt\n", ("none.txt cannot be read",)),
    ],
)
def test_packages_that_cannot_be_locked_are_refused_in_one_line(
    desk: Desk, text: str, words: tuple[str, ...]
) -> None:
    desk.ask(text)
    line = desk.refused()
    for word in words:
        assert word in line


def test_persons_own_file_of_the_locks_name_is_not_written_over(desk: Desk) -> None:
    desk.publish("spikes", "1.0")
    desk.ask("spikes\n")
    desk.lock.write_text("spikes==0.9\n")
    done = desk.run(sys.executable, LOCKER, desk.path / "packages.txt")
    assert done.returncode == 2
    assert "is no lock of neurofleet's" in done.stderr
    assert desk.lock.read_text() == "spikes==0.9\n"


def test_packages_are_added_to_an_environment_once_and_by_hash(desk: Desk) -> None:
    desk.publish("spikes", "1.0", "traces")
    desk.publish("traces", "1.0")
    desk.ask("spikes\n")
    environment = desk.path / "env"
    venv.create(environment, with_pip=True)
    add = (ROOT / "scripts" / "with-packages", desk.path / "packages.txt", environment)
    done = desk.run(*add)
    assert done.returncode == 0, done.stderr
    assert "has what" in done.stderr
    python = environment / "bin" / "python"
    assert desk.run(python, "-c", "import spikes; print(spikes.VERSION)").stdout == "1.0\n"
    assert desk.run(python, "-c", "import traces").returncode == 0
    assert desk.run(*add).stderr == ""
    desk.ask("spikes==1.0 --hash=sha256:" + "0" * 64 + "\n")
    assert desk.run(python, "-m", "pip", "uninstall", "--yes", "spikes").returncode == 0
    done = desk.run(*add)
    assert done.returncode == 1
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert desk.run(python, "-c", "import spikes").returncode == 1
