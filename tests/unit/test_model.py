"""Bundles: the same directory gives the same hash, and nothing else gets out of one."""

from __future__ import annotations

import fnmatch
import gzip
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurofleet.errors import ModelError
from neurofleet.mechanisms import to_compile
from neurofleet.model import (
    NEVER_PACKED,
    RUN_MARKER,
    EvaluatorSpec,
    pack,
    unpack,
)
from unit.support import CREATE, snapshot

NAMES = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12
).filter(lambda name: not any(fnmatch.fnmatch(name, pattern) for pattern in NEVER_PACKED))
FILES = st.dictionaries(
    st.lists(NAMES, min_size=1, max_size=3).map("/".join),
    st.tuples(st.binary(max_size=300), st.booleans()),
    min_size=1,
    max_size=6,
)


def fill(directory: Path, files: dict[str, tuple[bytes, bool]]) -> dict[str, tuple[bytes, bool]]:
    """Write files; return those that could be written (not below another file)."""
    written = {}
    for name, (content, executable) in files.items():
        path = directory / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError:
            continue
        path.chmod(0o755 if executable else 0o644)
        written[name] = (content, executable)
    return written


def unpacked(directory: Path) -> dict[str, tuple[bytes, bool]]:
    return {
        path.relative_to(directory).as_posix(): (path.read_bytes(), os.access(path, os.X_OK))
        if os.getuid()
        else (path.read_bytes(), bool(path.stat().st_mode & 0o100))
        for path in directory.rglob("*")
        if path.is_file()
    }


@given(files=FILES)
def test_bundle_packed_and_unpacked_has_the_same_files(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, tuple[bytes, bool]]
) -> None:
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    written = fill(source, files)
    bundle = pack(source, CREATE)
    assert unpack(bundle.archive, bundle.digest, target) == CREATE
    assert unpacked(target) == written


@given(files=FILES)
def test_bundle_of_the_same_files_elsewhere_is_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, tuple[bytes, bool]]
) -> None:
    one, other = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("other")
    written = fill(one, files)
    fill(other, dict(reversed(written.items())))
    for path in other.rglob("*"):
        os.utime(path, (1, 1))
    first, second = pack(one, CREATE), pack(other, CREATE)
    assert (first.digest, first.archive) == (second.digest, second.archive)


def small_model(directory: Path) -> Path:
    (directory / "mechanisms").mkdir(parents=True)
    (directory / "evaluator.py").write_text("create = 1\n")
    (directory / "mechanisms" / "a.mod").write_text("NEURON {}\n")
    return directory


def test_digest_changes_with_content_name_bit_and_arguments(tmp_path: Path) -> None:
    model = small_model(tmp_path / "model")
    script = model / "evaluator.py"
    seen = {pack(model, CREATE).digest}
    for spec in (
        EvaluatorSpec("evaluator:other"),
        EvaluatorSpec("evaluator:create", search=("mechanisms",)),
        EvaluatorSpec("evaluator:create", kwargs={"stretch": 1}),
        EvaluatorSpec("evaluator:create", mechanisms=("mechanisms",)),
    ):
        seen.add(pack(model, spec).digest)
    script.chmod(0o755)
    seen.add(pack(model, CREATE).digest)
    script.write_text("create = 2\n")
    seen.add(pack(model, CREATE).digest)
    script.rename(model / "evaluator2.py")
    seen.add(pack(model, CREATE).digest)
    assert len(seen) == 8


def test_digest_does_not_change_with_what_tools_leave_behind(tmp_path: Path) -> None:
    model = small_model(tmp_path / "model")
    before = pack(model, CREATE).digest
    for name in (
        ".git/HEAD",
        "x86_64/libnrnmech.so",
        "__pycache__/evaluator.cpython-311.pyc",
        "checkpoints/checkpoint.pkl",
        "my-run/neurofleet-run.json",
        "my-items/items.sqlite",
        "neurofleet-runs/l5pc/scores.sqlite",
    ):
        (model / name).parent.mkdir(parents=True)
        (model / name).write_text("left behind")
    assert (model / "my-run" / RUN_MARKER).exists()
    assert pack(model, CREATE).digest == before


@pytest.mark.parametrize("pattern", ["large.bin", "data/*", "data", "*.bin"])
def test_pack_exclude_leaves_files_out(tmp_path: Path, pattern: str) -> None:
    model = small_model(tmp_path / "model")
    before = pack(model, CREATE).digest
    (model / "data").mkdir()
    (model / "data" / "large.bin").write_bytes(b"1")
    assert pack(model, CREATE).digest != before
    assert pack(model, CREATE, exclude=(pattern,)).digest == before


def test_pack_missing_directory_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no model directory"):
        pack(tmp_path / "nowhere", CREATE)


def test_pack_empty_directory_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is empty"):
        pack(tmp_path, CREATE)


@pytest.mark.parametrize("outside", ["/etc/passwd", "../secret", "/etc"])
def test_pack_link_out_of_the_model_is_refused(tmp_path: Path, outside: str) -> None:
    (tmp_path / "secret").write_text("secret")
    model = small_model(tmp_path / "model")
    (model / "link").symlink_to(outside)
    with pytest.raises(ModelError, match="'link' is a link out of the model directory"):
        pack(model, CREATE)


def test_pack_link_inside_the_model_becomes_the_file(tmp_path: Path) -> None:
    model = small_model(tmp_path / "model")
    (model / "link.mod").symlink_to("mechanisms/a.mod")
    bundle = pack(model, CREATE)
    unpack(bundle.archive, bundle.digest, tmp_path / "out")
    assert (tmp_path / "out" / "link.mod").read_text() == "NEURON {}\n"
    assert not (tmp_path / "out" / "link.mod").is_symlink()


def test_pack_link_to_a_directory_of_the_model_is_refused(tmp_path: Path) -> None:
    model = small_model(tmp_path / "model")
    (model / "same").symlink_to("mechanisms")
    with pytest.raises(ModelError, match="'same' is a link to a directory"):
        pack(model, CREATE)


def test_pack_too_large_a_model_is_refused_before_it_is_read(tmp_path: Path) -> None:
    model = small_model(tmp_path / "model")
    with (model / "large").open("wb") as file:
        file.truncate(600 * 2**20)  # sparse
    with pytest.raises(ModelError, match=r"more than 512 MiB.*--exclude"):
        pack(model, CREATE)


@pytest.mark.parametrize("factory", ["", "module", "module:", ":create", "a b:c", "a:b c", "a:b:c"])
def test_spec_factory_of_another_form_is_refused(factory: str) -> None:
    with pytest.raises(ModelError, match="module:callable"):
        EvaluatorSpec(factory)


@pytest.mark.parametrize("where", ["..", "a/../../b", "/etc"])
def test_spec_directory_outside_the_model_is_refused(where: str) -> None:
    with pytest.raises(ModelError, match="leads out of the model directory"):
        EvaluatorSpec("a:b", search=(where,))
    with pytest.raises(ModelError, match="leads out of the model directory"):
        EvaluatorSpec("a:b", mechanisms=(where,))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)  # fmt: skip


@given(
    kwargs=st.dictionaries(st.text(max_size=5), JSON, max_size=3),
    search=st.lists(st.sampled_from([".", "a", "a/b"]), min_size=1).map(tuple),
    mechanisms=st.none() | st.lists(st.sampled_from(["mod", "m/n"]), min_size=1).map(tuple),
)
def test_spec_as_json_and_back_is_the_same(
    kwargs: dict[str, object], search: tuple[str, ...], mechanisms: tuple[str, ...] | None
) -> None:
    spec = EvaluatorSpec("pkg.module:Class.create", search, kwargs, mechanisms)
    assert EvaluatorSpec.from_json(json.loads(json.dumps(spec.as_json()))) == spec


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1}, b"bytes"])
def test_pack_arguments_that_are_not_json_are_refused(tmp_path: Path, value: object) -> None:
    model = small_model(tmp_path / "model")
    with pytest.raises(ModelError, match="are not JSON"):
        pack(model, EvaluatorSpec("evaluator:create", kwargs={"value": value}))


# -- archives that somebody made or that were damaged ------------------------------


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def archive_of(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return gzip.compress(raw.getvalue())


def hostile(
    name: str, content: bytes = b"evil", *, listed: str | None = None, kind: bytes = tarfile.REGTYPE
) -> tuple[bytes, str]:
    """Return an archive that lists one file and holds it as ``name``, and its digest."""
    manifest = {
        "format": 1,
        "evaluator": CREATE.as_json(),
        "files": [[listed or name.removeprefix("model/"), False, sha256(content)]],
    }
    text = json.dumps(manifest).encode()
    member = tarfile.TarInfo(name)
    member.type = kind
    member.linkname = "/etc/passwd"
    plain = kind == tarfile.REGTYPE
    made = archive_of([(tarfile.TarInfo("bundle.json"), text), (member, content if plain else b"")])
    return made, hashlib.sha256(text).hexdigest()


def assert_unpack_refuses(tmp_path: Path, archive: bytes, digest: str, *words: str) -> None:
    target = tmp_path / "below" / "target"
    target.mkdir(parents=True)
    before = snapshot(tmp_path)
    with pytest.raises(ModelError, match="is not usable") as caught:
        unpack(archive, digest, target)
    for word in words:
        assert word in caught.value.what
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["model/../../escaped", "model/a/../../../escaped", "model/.."])
def test_unpack_name_with_dots_writes_nothing(tmp_path: Path, name: str) -> None:
    assert_unpack_refuses(tmp_path, *hostile(name), "leads out")


def test_unpack_absolute_name_stays_in_the_target(tmp_path: Path) -> None:
    # model/ + /tmp/x is what a careless join would make an absolute name of.
    archive, digest = hostile(f"model/{tmp_path}/escaped")
    unpack(archive, digest, tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_unpack_absolute_member_writes_nothing(tmp_path: Path) -> None:
    assert_unpack_refuses(tmp_path, *hostile(f"{tmp_path}/escaped", listed="x"))


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE,
     tarfile.DIRTYPE],
)  # fmt: skip
def test_unpack_what_is_no_plain_file_writes_nothing(tmp_path: Path, kind: bytes) -> None:
    assert_unpack_refuses(tmp_path, *hostile("model/thing", kind=kind), "not a plain file")


def test_unpack_file_that_is_not_listed_writes_nothing(tmp_path: Path) -> None:
    assert_unpack_refuses(tmp_path, *hostile("model/b", listed="a"), "not those it lists")


def test_unpack_other_content_than_listed_writes_nothing(tmp_path: Path) -> None:
    archive, digest = hostile("model/a", b"good")
    forged, _ = hostile("model/a", b"evil")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        text = tar.extractfile("bundle.json").read()  # type: ignore[union-attr]
    evil = tarfile.TarInfo("model/a")
    made = archive_of([(tarfile.TarInfo("bundle.json"), text), (evil, b"evil")])
    assert_unpack_refuses(tmp_path, made, digest, "another content than listed")
    with pytest.raises(ModelError, match="another model's"):
        unpack(forged, digest, tmp_path / "other")


@given(data=st.data())
def test_unpack_damaged_archive_writes_all_or_nothing(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    bundle = pack(small_model(source / "model"), CREATE)
    damaged = bytearray(bundle.archive)
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged) - 1)) :]
    else:
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        unpack(bytes(damaged), bundle.digest, target)
    except ModelError:
        assert snapshot(target) == {}
    else:
        assert set(unpacked(target)) == {"evaluator.py", "mechanisms/a.mod"}


# -- which mechanisms are compiled -------------------------------------------------


def test_mechanism_directories_first_that_has_any_is_taken(tmp_path: Path) -> None:
    for name in ("mod", "modfiles"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.mod").touch()
    (tmp_path / "mechanisms").mkdir()
    assert to_compile(tmp_path, None) == ["mod"]


def test_mechanism_directories_none_is_none(tmp_path: Path) -> None:
    assert to_compile(tmp_path, None) == []


def test_mechanism_directories_named_without_any_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mod").mkdir()
    with pytest.raises(ModelError, match=r"'mod' holds no \.mod file"):
        to_compile(tmp_path, ("mod",))
