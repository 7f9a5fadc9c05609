"""A host's models: received whole, compiled once whoever asks, mended when damaged."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest

from neurofleet.engine import host_cache
from neurofleet.errors import ModelError, WorkloadFailed
from neurofleet.model import Bundle, EvaluatorSpec, pack
from unit.support import CREATE, MODELS, PURE_PYTHON, write_model

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEUROFLEET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def received(model: Path = PURE_PYTHON, spec: EvaluatorSpec = CREATE) -> Bundle:
    bundle = pack(model, spec)
    host_cache.receive(bundle.digest, bundle.archive)
    return bundle


def test_received_model_is_known_and_unpacked_once() -> None:
    bundle = pack(PURE_PYTHON, CREATE)
    assert not host_cache.is_known(bundle.digest)
    host_cache.receive(bundle.digest, bundle.archive)
    assert host_cache.is_known(bundle.digest)
    model, spec = host_cache.ensure_compiled(bundle.digest)
    assert spec == CREATE
    assert (model / "evaluator.py").read_bytes() == (PURE_PYTHON / "evaluator.py").read_bytes()
    (model / "mark").touch()
    assert host_cache.ensure_compiled(bundle.digest) == (model, spec)
    assert (model / "mark").exists()
    host_cache.ensure_compiled(bundle.digest, again=True)
    assert not (model / "mark").exists()


def test_unpacking_that_was_interrupted_is_done_anew() -> None:
    bundle = received()
    model, _ = host_cache.ensure_compiled(bundle.digest)
    (model.parent / "ready").unlink()
    (model / "evaluator.py").write_text("half a fi")
    model, _ = host_cache.ensure_compiled(bundle.digest)
    assert (model / "evaluator.py").read_bytes() == (PURE_PYTHON / "evaluator.py").read_bytes()


def damage_archive(bundle: Bundle) -> None:
    archive = host_cache.model_directory(bundle.digest) / "bundle.tar.gz"
    archive.write_bytes(bundle.archive[: len(bundle.archive) // 2])


def test_damaged_archive_is_refused_and_forgotten_so_that_it_is_sent_again() -> None:
    bundle = received()
    damage_archive(bundle)
    with pytest.raises(ModelError, match="is not usable"):
        host_cache.ensure_compiled(bundle.digest)
    assert not host_cache.is_known(bundle.digest)
    host_cache.receive(bundle.digest, bundle.archive)
    host_cache.ensure_compiled(bundle.digest)


def test_damaged_archive_of_a_model_that_is_unpacked_does_no_harm() -> None:
    bundle = received()
    ready = host_cache.ensure_compiled(bundle.digest)
    damage_archive(bundle)
    assert host_cache.ensure_compiled(bundle.digest) == ready


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_damaged_mark_of_readiness_makes_it_unpack_anew(content: str) -> None:
    bundle = received()
    model, spec = host_cache.ensure_compiled(bundle.digest)
    (model.parent / "ready").write_text(content)
    (model / "evaluator.py").unlink()
    assert host_cache.ensure_compiled(bundle.digest) == (model, spec)
    assert (model / "evaluator.py").exists()


def test_archive_of_another_model_is_not_unpacked(tmp_path: Path) -> None:
    bundle, other = received(), pack(write_model(tmp_path / "other"), CREATE)
    host_cache.receive(bundle.digest, other.archive)
    with pytest.raises(ModelError, match="another model's"):
        host_cache.ensure_compiled(bundle.digest)


def test_compile_asked_for_by_two_at_once_is_done_once() -> None:
    bundle = received(MODELS / "quick", EvaluatorSpec("quick_evaluator:create"))
    context = multiprocessing.get_context("fork")
    results = context.Queue()

    def ask() -> None:
        model, _ = host_cache.ensure_compiled(bundle.digest)
        library = next(model.glob("*/libnrnmech.so"))
        results.put((str(library), library.stat().st_ino, library.stat().st_mtime_ns))

    both = [context.Process(target=ask) for _ in range(2)]
    for process in both:
        process.start()
    found = {results.get(timeout=60) for _ in both}
    for process in both:
        process.join(20)
    assert len(found) == 1


def test_compile_that_fails_says_the_compilers_words_and_is_tried_again() -> None:
    bundle = received(MODELS / "does_not_compile")
    for _ in range(2):
        with pytest.raises(ModelError, match=r"do not compile: .*nfbroken.mod"):
            host_cache.ensure_compiled(bundle.digest)


def test_compile_held_by_another_for_too_long_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import filelock

    bundle = received()
    monkeypatch.setattr(host_cache, "COMPILE_TIMEOUT_S", 0.2)
    started = time.monotonic()
    with (
        filelock.FileLock(host_cache.model_directory(bundle.digest) / "lock"),
        pytest.raises(WorkloadFailed, match="another process has been compiling"),
    ):
        host_cache.ensure_compiled(bundle.digest)
    assert time.monotonic() - started < 5


def test_compile_without_a_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = received(MODELS / "quick", EvaluatorSpec("quick_evaluator:create"))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ModelError, match=r"no C\+\+ compiler .* Install g\+\+ and make"):
        host_cache.ensure_compiled(bundle.digest)


def test_cache_that_is_a_file_is_told(empty_cache: Path) -> None:
    empty_cache.write_text("in the way")
    bundle = pack(PURE_PYTHON, CREATE)
    with pytest.raises(WorkloadFailed, match="NEUROFLEET_CACHE"):
        host_cache.receive(bundle.digest, bundle.archive)
    with pytest.raises(WorkloadFailed, match="NEUROFLEET_CACHE"):
        host_cache.ensure_compiled(bundle.digest)


def test_cache_directory_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert host_cache.cache_directory() == tmp_path / "cache"
    monkeypatch.delenv("NEUROFLEET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert host_cache.cache_directory() == tmp_path / "xdg" / "neurofleet"
    assert list(tmp_path.iterdir()) == []
