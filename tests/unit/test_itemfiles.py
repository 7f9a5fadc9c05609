"""Files that items wrote on other machines: brought back, and nothing but below their item."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from neurofleet.errors import RunDirectoryError
from neurofleet.itemfiles import ItemFiles, names

KEY = b"\x01\x02"
MOST = 1000


def tar(*members: tuple[str, bytes | str]) -> bytes:
    """Return a tar of plain files; of links, where the content is a text."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as made:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                made.addfile(info)
            else:
                info.size = len(content)
                made.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def below(directory: Path) -> set[str]:
    return {p.relative_to(directory).as_posix() for p in directory.rglob("*") if not p.is_dir()}


def test_files_are_where_their_item_is_also_when_its_line_moves(tmp_path: Path) -> None:
    files = ItemFiles(tmp_path)
    first, _ = files.unpack(KEY, tar(("trace.txt", b"1"), ("deep/er.txt", b"2")), MOST)
    second, _ = files.unpack(b"\x03", tar(("trace.txt", b"3")), MOST)
    files.link({0: first, 4: second})
    assert (tmp_path / "files/1/trace.txt").read_bytes() == b"1"
    assert (tmp_path / "files/1/deep/er.txt").read_bytes() == b"2"
    assert (tmp_path / "files/5/trace.txt").read_bytes() == b"3"
    files.link({0: second, 1: first})
    assert (tmp_path / "files/1/trace.txt").read_bytes() == b"3"
    assert (tmp_path / "files/2/trace.txt").read_bytes() == b"1"
    assert not (tmp_path / "files/5").exists()


def test_files_of_another_try_leave_those_of_the_first(tmp_path: Path) -> None:
    files = ItemFiles(tmp_path)
    first, _ = files.unpack(KEY, tar(("log", b"failed")), MOST)
    second, _ = files.unpack(KEY, tar(("log", b"well")), MOST)
    kept = tmp_path / "files/by-content"
    assert [(kept / name / "log").read_bytes() for name in (first, second)] == [b"failed", b"well"]


@pytest.mark.parametrize(
    "members",
    [
        [("../out", b"x")],
        [("a/../../out", b"x")],
        [("way", ".."), ("way/out", b"x")],
        [("way", "/"), ("way/tmp/out", b"x")],
        [("large", b"x" * (MOST + 1))],
    ],
    ids=["above", "above below", "link", "absolute link", "large"],
)
def test_files_that_lead_out_or_are_too_large_are_named_and_the_others_kept(
    tmp_path: Path, members: list[tuple[str, bytes | str]]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    name, left_out = ItemFiles(run).unpack(KEY, tar(*members, ("good", b"y")), MOST)
    assert members[0][0] in left_out
    assert (run / "files/by-content" / name / "good").read_bytes() == b"y"
    assert all(path.startswith("run/files/by-content/") for path in below(tmp_path))


def test_file_with_an_absolute_name_stays_below_its_item(tmp_path: Path) -> None:
    name, _ = ItemFiles(tmp_path).unpack(KEY, tar(("/etc/out", b"x")), MOST)
    assert below(tmp_path) == {f"files/by-content/{name}/etc/out"}


def test_files_that_are_no_tar_are_an_error_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        ItemFiles(tmp_path).unpack(KEY, b"no tar at all", MOST)
    assert below(tmp_path) == set()
    assert names(b"no tar at all") == []
    assert names(tar(("a", b""), ("b/c", b""))) == ["a", "b/c"]
