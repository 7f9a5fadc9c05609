"""``opt_l5pc`` before it simulates: its options, what it refuses, where the model comes from."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest

from neurofleet.cli.l5pc import opt_l5pc
from neurofleet.workloads import l5pc
from unit.support import assert_refused, command, snapshot

pytestmark = pytest.mark.timeout(120)

#: The options of upstream's opt_l5pc.py (BluePyOpt 1.14.26), and whether each takes a value.
UPSTREAM = {
    "--sim": True, "--start": False, "--continu": False, "--checkpoint": True,
    "--offspring_size": True, "--max_ngen": True, "--responses": True, "--analyse": False,
    "--compile": False, "--hocanalyse": False, "--seed": True, "--ipyparallel": False,
    "--diversity": True, "-v": False, "--verbose": False,
}  # fmt: skip
#: And what each is when it is not given.
DEFAULTS = {"sim": "nrn", "offspring_size": 2, "max_ngen": 2, "seed": 42, "verbose": 0}


def parsed(*arguments: str) -> dict[str, object]:
    with opt_l5pc.make_context("opt_l5pc", list(arguments)) as context:
        return dict(context.params)


@pytest.mark.parametrize("name", UPSTREAM)
def test_option_of_upstream_is_taken_in_both_spellings(name: str) -> None:
    value = {"--sim": "arb", "--checkpoint": "a", "--responses": "a", "--diversity": "a"}
    given = [value.get(name, "3")] if UPSTREAM[name] else []
    usual = parsed(name, *given)
    assert usual != parsed()
    assert parsed("--" + name.lstrip("-").replace("_", "-") if "--" in name else name, *given) == usual  # noqa: E501  # fmt: skip


def test_options_defaults_are_upstreams() -> None:
    found = parsed()
    assert {name: found[name] for name in DEFAULTS} == DEFAULTS
    flags = ("start", "continu", "analyse", "compile_again", "hocanalyse", "ipyparallel")
    assert not any(found[name] for name in flags)


def test_command_of_bluepyopts_page_is_taken_as_printed() -> None:
    printed = "-vv --checkpoint check.pkl --offspring_size=50 --max_ngen=2 --ipyparallel --start"
    found = parsed(*printed.split())
    assert (found["verbose"], found["offspring_size"], found["max_ngen"]) == (2, 50, 2)
    assert (found["checkpoint"], found["ipyparallel"], found["start"]) == (
        Path("check.pkl"), True, True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-vvv", "--start"), ("-vv",)),
        (("--hocanalyse",), ("bglibpy",)),
        (("--sim", "arb", "--start"), ("neurofleet[arbor]",)),
        (("--sim", "brian", "--start"), ("nrn",)),
        (("--start", "--offspring_size", "x"), ("offspring",)),
        (("--start", "--max-ngen", "1.5"), ("max-ngen",)),
        (("--start", "--seed", "abc"), ("seed",)),
        (("--unknown",), ("--unknown",)),
    ],
    ids=str,
)
def test_opt_l5pc_what_cannot_work_is_said_in_one_line(
    tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    done = command("opt_l5pc", *arguments, cwd=tmp_path)
    assert_refused(done, 2, *words)
    assert snapshot(tmp_path) == {}


def test_opt_l5pc_without_anything_to_do_says_what_there_is(tmp_path: Path) -> None:
    done = command("opt_l5pc", cwd=tmp_path)
    assert done.returncode == 0
    assert "--start" in done.stderr
    assert snapshot(tmp_path) == {}


# -- where the model comes from ------------------------------------------------------


def cached(tmp_path: Path) -> set[str]:
    """What is in the cache besides locks."""
    below = (tmp_path / "cache").rglob("*")
    return {path.name for path in below if path.is_file() and path.suffix != ".lock"}


def test_opt_l5pc_wrong_source_distribution_is_refused(tmp_path: Path) -> None:
    forged = tmp_path / f"bluepyopt-{l5pc.VERSION}.tar.gz"
    with tarfile.open(forged, "w:gz") as tar:
        member = tarfile.TarInfo(f"{l5pc.EXAMPLE}/l5pc_evaluator.py")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
    (tmp_path / "cwd").mkdir()
    env = {"NEUROFLEET_BLUEPYOPT_SDIST": str(forged), "NEUROFLEET_CACHE": str(tmp_path / "cache")}
    done = command("opt_l5pc", "--start", cwd=tmp_path / "cwd", env=env)
    told = done.stderr.splitlines()
    assert done.returncode == 1
    assert [line for line in told if line.startswith("error: ")] == told[-1:]
    digest = hashlib.sha256(forged.read_bytes()).hexdigest()
    assert digest[:16] in told[-1]
    assert "Do not use it" in told[-1]
    assert cached(tmp_path) == set()
    assert snapshot(tmp_path / "cwd") == {}


def test_opt_l5pc_source_distribution_that_is_not_there_is_said(tmp_path: Path) -> None:
    env = {"NEUROFLEET_BLUEPYOPT_SDIST": "nowhere.gz", "NEUROFLEET_CACHE": str(tmp_path / "cache")}
    done = command("opt_l5pc", "--start", cwd=tmp_path, env=env)
    assert done.returncode == 1
    assert "'nowhere.gz', which is not a file" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_opt_l5pc_without_network_and_cache_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "cwd").mkdir()
    env = {
        "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull,
        "NEUROFLEET_CACHE": str(tmp_path / "cache"), "PIP_CACHE_DIR": str(tmp_path / "pip"),
    }  # fmt: skip
    done = command("opt_l5pc", "--start", cwd=tmp_path / "cwd", env=env)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1, done.stderr
    assert len(errors) == 1
    assert "cannot be fetched" in errors[0]
    assert "NEUROFLEET_BLUEPYOPT_SDIST" in errors[0]
    assert "Traceback" not in done.stderr
    assert cached(tmp_path) == set()
    assert snapshot(tmp_path / "cwd") == {}


def test_opt_l5pc_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = command(
        "opt_l5pc", "--start", cwd=tmp_path, env={"NEUROFLEET_CACHE": str(tmp_path / "file")}
    )
    assert_refused(done, 1, "cannot be kept", "NEUROFLEET_CACHE")


def test_extract_takes_the_example_only_and_nothing_outside_it(tmp_path: Path) -> None:
    archive, target = tmp_path / "a.tar.gz", tmp_path / "below" / "target"
    names = {
        f"{l5pc.EXAMPLE}/l5pc_evaluator.py": True,
        f"{l5pc.EXAMPLE}/mechanisms/a.mod": True,
        f"{l5pc.EXAMPLE}/README.md": False,
        f"{l5pc.EXAMPLE}/deep/er/x.py": False,
        f"{l5pc.EXAMPLE}/../escaped.py": False,
        f"{l5pc.EXAMPLE}/../../../../escaped.py": False,
        "bluepyopt-1.14.26/setup.py": False,
        "/etc/escaped.py": False,
    }
    with tarfile.open(archive, "w:gz") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
        link = tarfile.TarInfo(f"{l5pc.EXAMPLE}/link.py")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    l5pc._extract(archive, target)
    found = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert found == {"l5pc_evaluator.py", "mechanisms/a.mod"}
    assert not list(tmp_path.rglob("escaped.py"))
