"""What an evaluation does to the files of its model reaches no other evaluation."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from neurofleet.engine import host_cache
from neurofleet.engine.private_copy import Cached, Keeper, PrivateCopy, plain_temporary_directory
from neurofleet.errors import WorkloadFailed
from neurofleet.model import pack
from unit.support import CREATE, PURE_PYTHON, snapshot, write_model


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("NEUROFLEET_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    here = Path.cwd()
    yield
    os.chdir(here)


def cached(directory: Path) -> Cached:
    """Return a model in the host's cache: two files, one in a directory, and a library."""
    model = write_model(directory / "model")
    (model / "morphology").mkdir()
    (model / "morphology" / "cell.asc").write_text("a dendrite\n")
    bundle = pack(model, CREATE)
    host_cache.receive(bundle.digest, bundle.archive)
    copy, ready = host_cache.private_copy(bundle.digest)
    copy.close()
    library = ready.cached.directory / "x86_64" / "libnrnmech.so"
    library.parent.mkdir()
    library.write_bytes(b"compiled")
    sha256 = hashlib.sha256(b"compiled").hexdigest()
    return Cached(ready.cached.directory, ready.cached.files, {"x86_64/libnrnmech.so": sha256})


def write_new(model: Path) -> None:
    (model / "state.txt").write_text("1")
    (model / "out" / "deep").mkdir(parents=True)
    (model / "out" / "deep" / "trace.csv").write_text("1")


def write_over(model: Path) -> None:
    with (model / "morphology" / "cell.asc").open("a") as file:
        file.write("another dendrite\n")


def write_over_with_the_same_size_and_time(model: Path) -> None:
    file = model / "morphology" / "cell.asc"
    before = file.stat()
    file.write_text("A DENDRITE\n")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def delete(model: Path) -> None:
    (model / "evaluator.py").unlink()
    shutil.rmtree(model / "morphology")


def delete_everything(model: Path) -> None:
    shutil.rmtree(model)


def exchange(model: Path) -> None:
    shutil.rmtree(model.with_name("elsewhere"), ignore_errors=True)
    model.rename(model.with_name("elsewhere"))
    model.mkdir()


def change_kinds(model: Path) -> None:
    shutil.rmtree(model / "morphology")
    (model / "morphology").write_text("now a file")
    (model / "evaluator.py").unlink()
    (model / "evaluator.py").mkdir()
    (model / "evaluator.py" / "inside").touch()


def take_rights(model: Path) -> None:
    (model / "morphology" / "cell.asc").chmod(0)
    (model / "morphology").chmod(0)


def take_rights_of_new(model: Path) -> None:
    write_new(model)
    (model / "out" / "deep").chmod(0o500)
    (model / "out").chmod(0o500)


def replace_library(model: Path) -> None:
    library = model / "x86_64" / "libnrnmech.so"
    library.unlink()
    library.write_bytes(b"other")
    (model / "x86_64" / "special").touch()


def leave_links_and_pipes(model: Path) -> None:
    (model / "link").symlink_to("/etc")
    os.mkfifo(model / "pipe")


@pytest.mark.parametrize(
    "evaluation",
    [
        write_new,
        write_over,
        write_over_with_the_same_size_and_time,
        delete,
        delete_everything,
        exchange,
        change_kinds,
        take_rights,
        take_rights_of_new,
        replace_library,
        leave_links_and_pipes,
    ],
)
def test_copy_after_an_evaluation_that_changed_it_is_as_it_was(
    tmp_path: Path, evaluation: Callable[[Path], None]
) -> None:
    kept = cached(tmp_path)
    before = snapshot(kept.directory)
    copy = PrivateCopy(kept)
    keeper = Keeper(copy.model, kept.directory)
    (copy.model / "made_when_loaded.json").write_text("{}")
    keeper.keep()
    loaded = snapshot(copy.model)
    os.chdir(copy.model)
    for _ in range(2):
        evaluation(copy.model)
        assert keeper.put_back()
        assert snapshot(copy.model) == loaded
        assert (copy.model / "x86_64" / "libnrnmech.so").readlink().parent.parent == kept.directory
        assert Path.cwd() == copy.model
        assert Path("evaluator.py").exists()
        assert not keeper.put_back()
    assert snapshot(kept.directory) == before
    copy.close()
    assert not copy.top.exists()


def test_looking_whether_a_copy_was_changed_takes_less_than_a_millisecond(tmp_path: Path) -> None:
    model = tmp_path / "copy" / "model"
    for number in range(60):  # L5PC has 40 files
        (model / f"folder{number % 6}").mkdir(parents=True, exist_ok=True)
        (model / f"folder{number % 6}" / f"file{number}").touch()
    keeper = Keeper(model, tmp_path)
    keeper.keep()
    taken = []
    for _ in range(50):
        started = time.process_time()
        assert not keeper.put_back()
        taken.append(time.process_time() - started)
    assert sorted(taken)[len(taken) // 2] < 1e-3


def test_cached_copy_is_for_reading_only() -> None:
    bundle = pack(PURE_PYTHON, CREATE)
    host_cache.receive(bundle.digest, bundle.archive)
    model, _ = host_cache.ensure_compiled(bundle.digest)
    assert [stat.S_IMODE(path.stat().st_mode) for path in model.glob("*.py")] == [0o444]


def test_cached_copy_that_somebody_changed_is_made_anew() -> None:
    bundle = pack(PURE_PYTHON, CREATE)
    host_cache.receive(bundle.digest, bundle.archive)
    model, _ = host_cache.ensure_compiled(bundle.digest)
    right = (model / "evaluator.py").read_bytes()
    (model / "evaluator.py").unlink()
    (model / "evaluator.py").write_text("other\n")
    copy, _ = host_cache.private_copy(bundle.digest)
    assert (copy.model / "evaluator.py").read_bytes() == right
    assert (model / "evaluator.py").read_bytes() == right
    copy.close()


def test_copies_that_nobody_holds_are_removed_when_the_next_is_made(tmp_path: Path) -> None:
    nothing = Cached(tmp_path, {}, {})
    held, lost, young = (PrivateCopy(nothing) for _ in range(3))
    for copy in (lost, young):
        os.close(copy.lock)  # as the kernel does when a process is killed
        copy.lock = -1
    for copy in (held, lost):  # made long ago
        os.utime(copy.top, (1_000_000_000, 1_000_000_000))
    PrivateCopy(nothing).close()
    assert held.top.exists()
    assert not lost.top.exists()
    assert young.top.exists()
    held.close()


def test_copy_that_has_no_room_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "full"))
    with pytest.raises(WorkloadFailed, match=r"cannot be copied to .*full.* TMPDIR"):
        PrivateCopy(Cached(tmp_path, {}, {}))


def test_copy_is_made_where_neuron_takes_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plain_temporary_directory() == tmp_path / "tmp"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "müller's files"))
    assert plain_temporary_directory() == Path("/tmp")


def test_lock_of_a_copy_is_held_while_it_is_used(tmp_path: Path) -> None:
    copy = PrivateCopy(Cached(tmp_path, {}, {}))
    other = os.open(copy.top / "owner", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)
    copy.close()
