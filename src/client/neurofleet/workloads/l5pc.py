"""BluePyOpt's L5PC example: where its model files come from.

They are not part of this project: the morphology and the mechanisms are licensed
CC-BY-NC-SA 4.0. They are taken from BluePyOpt's source distribution on PyPI, whose
hash is checked, and kept in the user's cache.

Reference: E. Hay, S. Hill, F. Schuermann, H. Markram, I. Segev, PLoS Comput. Biol.
7(7), e1002107 (2011), for the model; the example is of the Blue Brain Project.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import filelock

from neurofleet.checkpoint import read as read_checkpoint
from neurofleet.checkpoint import read_own_pickle
from neurofleet.engine import host_cache
from neurofleet.engine.host_cache import cache_directory
from neurofleet.engine.warm_process import without_display
from neurofleet.errors import UsageError, WorkloadFailed
from neurofleet.model import EvaluatorSpec, pack

#: The source distribution that the model is taken from.
VERSION = "1.14.26"
SHA256 = "105a0e810c2cb49b96f5ea38d9faa88614d67e046a19699699bf2b85c4d7b37b"
#: Where the example is inside it.
EXAMPLE = f"bluepyopt-{VERSION}/examples/l5pc"
#: What of the example the model and its analysis read.
WANTED = ("*.py", "config/*", "mechanisms/*", "morphology/*", "exp_data/*", "cADpyr_76.hoc")

#: Ours, put beside upstream's files; see there.
ARBOR_EVALUATOR = Path(__file__).with_name("l5pc_arbor.py")

LICENCE = (
    "The L5PC morphology and mechanisms are licensed CC-BY-NC-SA 4.0"
    " (attribution, non-commercial, share alike); see {where}"
)


def spec(sim: str = "nrn") -> EvaluatorSpec:
    """Return the example's evaluator.

    Parameters
    ----------
    sim : str
        ``nrn`` or ``arb``.
    """
    factory = "l5pc_evaluator:create" if sim == "nrn" else f"{ARBOR_EVALUATOR.stem}:create"
    return EvaluatorSpec(factory, mechanisms=("mechanisms",))


def fetch(says: Callable[[str], None]) -> Path:
    """Return the directory with the model's files; fetches them the first time.

    ``NEUROFLEET_BLUEPYOPT_SDIST`` names a file to take instead of PyPI's (it must be
    the same one), for machines without a network.

    Parameters
    ----------
    says : callable
        Told what is done, and the licence.

    Raises
    ------
    WorkloadFailed
        The source distribution cannot be had, or is not the pinned one.
    """
    target = cache_directory() / "downloads" / f"l5pc-{VERSION}-{SHA256[:12]}"
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            filelock.FileLock(target.with_suffix(".lock")),
            tempfile.TemporaryDirectory(dir=target.parent, prefix=".l5pc-") as scratch,
        ):
            if not target.is_dir():
                says(f"fetching the L5PC model from BluePyOpt {VERSION}'s source distribution")
                archive = _source_distribution(Path(scratch))
                _check_hash(archive)
                unpacked = Path(scratch) / "l5pc"
                _extract(archive, unpacked)
                shutil.copyfile(ARBOR_EVALUATOR, unpacked / ARBOR_EVALUATOR.name)
                unpacked.rename(target)
                says(LICENCE.format(where=target / "mechanisms" / "LICENSE"))
    except OSError as error:
        raise WorkloadFailed(
            f"the L5PC model cannot be kept in {str(target.parent)!r} ({error.strerror or error})",
            remedy="Make room or name another cache with NEUROFLEET_CACHE",
        ) from error
    return target


def _source_distribution(scratch: Path) -> Path:
    given = os.environ.get("NEUROFLEET_BLUEPYOPT_SDIST")
    if given:
        if not Path(given).is_file():
            raise WorkloadFailed(
                f"NEUROFLEET_BLUEPYOPT_SDIST names {given!r}, which is not a file",
                remedy=f"Name the file bluepyopt-{VERSION}.tar.gz, or unset the variable",
            )
        return Path(given)
    wanted = scratch / "wanted.txt"
    wanted.write_text(f"bluepyopt=={VERSION} --hash=sha256:{SHA256}\n")
    # pip looks at what it downloads with the build tools of this environment, which
    # the lock pins (hence setuptools-scm among our dependencies), and checks the hash
    # before it does so.
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--no-input",
            "--disable-pip-version-check",
            "--no-build-isolation",
            "--no-binary",
            ":all:",
            "--require-hashes",
            "--dest",
            str(scratch),
            "--requirement",
            str(wanted),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    found = sorted(scratch.glob("*.tar.gz"))
    if not found:
        last = [line for line in done.stderr.splitlines() if "ERROR" in line] or ["no answer"]
        raise WorkloadFailed(
            f"BluePyOpt {VERSION}'s source distribution cannot be fetched ({last[-1]})",
            remedy="Connect to the network, or fetch it elsewhere and name it with"
            " NEUROFLEET_BLUEPYOPT_SDIST",
        )
    return found[0]


def _check_hash(archive: Path) -> None:
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != SHA256:
        raise WorkloadFailed(
            f"{archive.name} has SHA-256 {digest[:16]}..., expected {SHA256[:16]}...",
            remedy="Do not use it: fetch it again from a source that you trust",
        )


def _extract(archive: Path, target: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if not member.isfile() or not path.is_relative_to(EXAMPLE):
                continue
            inside = path.relative_to(EXAMPLE)
            stream = tar.extractfile(member)
            if stream is None or not any(inside.match(pattern) for pattern in WANTED):
                continue
            if ".." in inside.parts or len(inside.parts) > 2:
                continue
            destination = target / inside
            destination.parent.mkdir(parents=True, exist_ok=True)
            with destination.open("wb") as file:
                shutil.copyfileobj(stream, file)


def compile_mechanisms(model: Path, evaluator: EvaluatorSpec) -> str:
    """Compile the mechanisms anew on this machine; return a line that says where.

    Raises
    ------
    ModelError
        They do not compile.
    """
    bundle = pack(model, evaluator)
    host_cache.receive(bundle.digest, bundle.archive)
    compiled, _ = host_cache.ensure_compiled(bundle.digest, again=True)
    return f"compiled the mechanisms of model {bundle.digest[:12]} in {compiled}"


def draw(
    model: Path,
    evaluator: EvaluatorSpec,
    what: str,
    checkpoint: Path | None,
    responses: Path | None,
) -> list[str]:
    """Draw upstream's figures, in a process of their own, into ``figures/``.

    Parameters
    ----------
    model : Path
    evaluator : EvaluatorSpec
    what : str
        ``analyse`` or ``diversity``.
    checkpoint, responses : Path or None
        Pickles, read only if they are this user's; responses are written if absent.

    Returns
    -------
    list of str
        The files.
    """
    if checkpoint is not None and checkpoint.exists():
        read_checkpoint(checkpoint)  # upstream's code opens it without a look
    if responses is not None and responses.exists():
        read_own_pickle(responses)
    if what == "diversity" and checkpoint is not None and not checkpoint.exists():
        raise UsageError(
            f"there is no checkpoint {str(checkpoint)!r} to draw the diversity of",
            remedy="Run the optimisation first with --start",
        )
    bundle = pack(model, evaluator)
    host_cache.receive(bundle.digest, bundle.archive)
    copy, _ = host_cache.private_copy(bundle.digest)
    figures = str(Path("figures").absolute())
    job = {
        "what": what,
        "sim": "nrn" if evaluator == spec("nrn") else "arb",
        "model": str(copy.model),
        "evaluator": evaluator.as_json(),
        "checkpoint": str(checkpoint.absolute()) if checkpoint and checkpoint.exists() else None,
        "responses": str(responses.absolute()) if responses else None,
        "figures": figures,
    }
    with tempfile.TemporaryDirectory() as neutral, contextlib.closing(copy):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "neurofleet.workloads.l5pc_figures", json.dumps(job)],
            cwd=neutral,
            env=without_display(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise WorkloadFailed(f"the figures cannot be drawn ({last})", remedy="Check the checkpoint")
    return [line for line in done.stdout.splitlines() if line.startswith(figures)]
