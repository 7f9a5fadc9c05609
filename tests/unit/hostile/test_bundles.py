"""Archives of models that somebody made, and model directories with traps in them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import socket
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurofleet import model
from neurofleet.engine import host_cache
from neurofleet.errors import FleetError, ModelError
from neurofleet.model import pack, unpack
from unit.hostile.inputs import (
    DAMAGE,
    JSON_VALUES,
    Damage,
    assert_documented,
    assert_in_words,
    command,
    hostile,
    scratch,
)
from unit.support import CREATE, PURE_PYTHON

pytestmark = pytest.mark.timeout(180)


def tree(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Return every file below a directory, links and pipes not followed."""
    found = {}
    for folder, folders, names in os.walk(directory):
        for name in [*folders, *names]:
            path = Path(folder) / name
            mode = path.lstat().st_mode
            found[str(path)] = mode, path.read_bytes() if stat.S_ISREG(mode) else b""
    return found


def received(folder: Path, digest: str, archive: bytes) -> Path | None:
    """Take a model as an engine does; ``None`` if it is refused in one line."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("NEUROFLEET_CACHE", str(folder / "cache"))
        host_cache.receive(digest, archive)
        try:
            return host_cache.ensure_compiled(digest)[0]
        except FleetError as error:
            assert_in_words(error)
            return None


@given(damage=DAMAGE)
@hostile("archive", 120)
def test_archive_damaged_is_refused_or_the_model(damage: Damage) -> None:
    bundle = pack(PURE_PYTHON, CREATE)
    with scratch() as folder:
        made = received(folder, bundle.digest, damage(bundle.archive))
        if made is not None:
            files = {path.name: path.read_bytes() for path in made.iterdir()}
            assert files == {path.name: path.read_bytes() for path in PURE_PYTHON.glob("*.py")}
        assert [path.name for path in folder.iterdir()] == ["cache"]


NAMES = st.one_of(
    st.sampled_from(
        ["model/../../escaped", "/escaped", "model//escaped", "model/a/../../../escaped", "model",
         "model/", "model/.", "model/a", "model/a/b", "model/a//b", "model/./a", "escaped", "..",
         "model/a\nb", "model/\x1b[2J", "model/" + "x" * 300, "model/" + "d/" * 2000 + "f",
         "bundle.json", "model/bundle.json", "model/\udcff", "model/evaluator.py/c", "model/a\0b"]
    ),
    st.text(max_size=8).map(lambda text: f"model/{text}"),
)  # fmt: skip
KINDS = st.sampled_from(
    [tarfile.REGTYPE] * 4
    + [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE,
       tarfile.DIRTYPE, tarfile.CONTTYPE, b"X", tarfile.GNUTYPE_SPARSE]
)  # fmt: skip
MEMBER = st.tuples(NAMES, KINDS, st.binary(max_size=20), st.sampled_from([0o644, 0o6777]))


def archive_of(
    members: list[tuple[str, bytes, bytes, int]], spec: Any, link: str
) -> tuple[bytes, str]:
    """Return an archive whose manifest lists its files, and its digest."""
    listed = [
        [name.removeprefix("model/"), False, hashlib.sha256(content).hexdigest()]
        for name, _, content, _ in members
    ]
    text = json.dumps({"format": 1, "evaluator": spec, "files": listed}).encode()
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, content, mode in [("bundle.json", tarfile.REGTYPE, text, 0o644), *members]:
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.linkname = kind, mode, link
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return gzip.compress(raw.getvalue()), hashlib.sha256(text).hexdigest()


@given(
    members=st.lists(MEMBER, min_size=1, max_size=3),
    spec=st.one_of(
        st.just(CREATE.as_json()),
        st.builds(
            lambda key, value: {**CREATE.as_json(), key: value},
            st.sampled_from(["factory", "search", "kwargs", "mechanisms"]),
            JSON_VALUES,
        ),
        JSON_VALUES,
    ),
    link=st.sampled_from(["/etc/passwd", "../../..", "bundle.json"]),
)
@hostile("archive with traps", 120)
def test_archive_with_traps_writes_nothing_outside(
    members: list[tuple[str, bytes, bytes, int]], spec: Any, link: str
) -> None:
    archive, digest = archive_of(members, spec, link)
    with scratch() as folder:
        made = received(folder, digest, archive)
        assert [path.name for path in folder.iterdir()] == ["cache"]
        home = folder / "cache" / "hosts" / socket.gethostname() / "models"
        assert [path.name for path in home.iterdir()] == [digest]
        for path, (mode, _) in tree(home).items():
            assert stat.S_ISREG(mode) or stat.S_ISDIR(mode), path
            assert not mode & 0o6000, path
        if made is not None:
            inside = [Path(path) for path, (mode, _) in tree(made).items() if stat.S_ISREG(mode)]
            assert len(inside) <= len(members)


@pytest.mark.parametrize("size", [2**40, 2**62])
@pytest.mark.parametrize("kind", ["plain", "sparse", "header"])
def test_archive_that_claims_to_be_huge_is_refused_at_once(
    tmp_path: Path, size: int, kind: str
) -> None:
    member = tarfile.TarInfo("model/a")
    member.size = size
    if kind == "sparse":
        member.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1",
                              "GNU.sparse.map": "0,1", "GNU.sparse.size": str(size)}  # fmt: skip
        member.size = 1
    elif kind == "header":
        member.type = tarfile.XHDTYPE
    raw = member.tobuf(tarfile.PAX_FORMAT) + b"\0" * 2048
    with pytest.raises(ModelError, match="is not usable"):
        unpack(gzip.compress(raw), "0" * 64, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_archive_that_unpacks_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "LARGEST_ARCHIVE", 10_000)
    with pytest.raises(ModelError, match="holds more than"):
        unpack(gzip.compress(b"\0" * 10_001), "0" * 64, tmp_path)


def test_archive_of_headers_in_headers_is_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1
    block = header.tobuf(tarfile.GNU_FORMAT) + b"a" + b"\0" * 511
    with pytest.raises(ModelError, match="is not usable"):
        unpack(gzip.compress(block * 3000), "0" * 64, tmp_path)


# -- model directories -------------------------------------------------------------------

ENTRY_NAMES = st.one_of(
    st.sampled_from(
        ["a", "b", "c.mod", "mechanisms", "x86_64", "évaluateur.py", "a\nb",
         "neurofleet-run.json"]
    ),
    st.binary(min_size=1, max_size=6).map(
        lambda raw: os.fsdecode(b"n" + raw.replace(b"/", b"").replace(b"\0", b""))
    ),
)  # fmt: skip
LINKS = ("/etc/passwd", "..", ".", "a", "b", "missing", "../outside", "/dev/zero", "/proc/self/mem")
ENTRIES = st.dictionaries(
    ENTRY_NAMES,
    st.one_of(
        st.binary(max_size=30),
        st.sampled_from(LINKS),
        st.sampled_from([("pipe",), ("socket",), ("device",), ("directory",), ("unreadable",)]),
    ),
    max_size=4,
)


def lay_out(directory: Path, entries: dict[str, Any]) -> None:
    for name, what in entries.items():
        path = directory / name
        if isinstance(what, bytes):
            path.write_bytes(what)
        elif isinstance(what, str):
            path.symlink_to(what)
        elif what == ("pipe",):
            os.mkfifo(path)
        elif what == ("socket",):
            with socket.socket(socket.AF_UNIX) as listening, pytest.MonkeyPatch.context() as here:
                here.chdir(directory)  # the path of a socket has to be short
                listening.bind(os.fsencode(name))
        elif what == ("device",) and os.geteuid() == 0:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))
        elif what == ("directory",):
            path.mkdir()
            (path / "below").symlink_to("..")
        else:
            path.write_bytes(b"secret")
            path.chmod(0)


def packed_or_refused(directory: Path) -> bytes | str:
    """Return the archive of a model directory, or why there is none."""
    try:
        return pack(directory, CREATE).archive
    except ModelError as error:
        return str(error)


@given(entries=ENTRIES)
@hostile("model directory", 120)
def test_model_directory_with_traps_is_packed_or_refused_and_not_changed(
    entries: dict[str, Any],
) -> None:
    with scratch() as folder:
        (folder / "outside").write_text("not part of the model")
        directory = folder / "model"
        directory.mkdir()
        (directory / "evaluator.py").write_text("")
        lay_out(directory, entries)
        before = tree(folder)
        first, second = (packed_or_refused(directory) for _ in range(2))
        assert first == second
        assert tree(folder) == before
        if isinstance(first, bytes):
            assert b"not part of the model" not in gzip.decompress(first)
        else:
            assert len(first.splitlines()) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="root reads anything, and can be somebody else")
@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111])
def test_model_directory_that_cannot_be_read_is_refused_not_left_out(
    tmp_path: Path, mode: int
) -> None:
    with scratch() as folder:
        folder.chmod(0o755)
        (folder / "model" / "below").mkdir(parents=True)
        (folder / "model" / "evaluator.py").write_text("")
        (folder / "model" / "below" / "morphology.swc").write_text("")
        (folder / "model" / "below").chmod(mode)
        os.seteuid(12345)
        try:
            with pytest.raises(ModelError, match=r"below.*cannot be read .Permission denied"):
                pack(folder / "model", CREATE)
        finally:
            os.seteuid(0)


def test_model_directory_that_is_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    words = ("optimise", "loop", "--evaluator", "evaluator:create", "--dry-run")
    assert assert_documented(command(*words, cwd=tmp_path)).code == 2
