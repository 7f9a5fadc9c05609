"""What is damaged and how, and what every command promises whatever it is given."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from neurofleet.cli import l5pc
from neurofleet.cli import main as neurofleet
from neurofleet.errors import FleetError

#: Inputs that each kind is given, and that it was given.
WANTED: dict[str, int] = {}
GIVEN: Counter[str] = Counter()
#: Exit codes of docs/operating.md.
CODES = (0, 1, 2, 3, 4, 130)

Test = Callable[..., None]


def hostile(kind: str, count: int) -> Callable[[Test], Test]:
    """Give a test so many inputs, the same in every run; stands below ``given``."""
    WANTED[kind] = count

    def decorate(test: Test) -> Test:
        @functools.wraps(test)
        def counted(*args: Any, **kwargs: Any) -> None:
            GIVEN[kind] += 1
            test(*args, **kwargs)

        how = settings(
            max_examples=count, derandomize=True, suppress_health_check=list(HealthCheck)
        )
        return how(counted)

    return decorate


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Give a directory that is empty."""
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        yield Path(os.path.realpath(folder))


#: What may stand where a file is looked for: each makes it at a path.
NO_FILES: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "directory": Path.mkdir,
    "loop": lambda path: path.symlink_to(path),
    "device": lambda path: path.symlink_to("/dev/zero"),
}

# -- damage ----------------------------------------------------------------------------

_AT = st.integers(0, 2**31)
Damage = Callable[[bytes], bytes]


def _flip(at: int, mask: int) -> Damage:
    def damage(content: bytes) -> bytes:
        if not content:
            return content
        place = at % len(content)
        return content[:place] + bytes([content[place] ^ mask]) + content[place + 1 :]

    return damage


def _overwrite(at: int, other: bytes) -> Damage:
    def damage(content: bytes) -> bytes:
        place = at % (len(content) + 1)
        return content[:place] + other + content[place + len(other) :]

    return damage


def _cut(at: int) -> Damage:
    return lambda content: content[: at % (len(content) + 1)]


def _leave_out(at: int, size: int) -> Damage:
    def damage(content: bytes) -> bytes:
        place = at % (len(content) + 1)
        return content[:place] + content[place + size :]

    return damage


_NOISE = st.binary(min_size=1, max_size=64)
_ONE = st.one_of(
    st.builds(_flip, _AT, st.integers(1, 255)),
    st.builds(_overwrite, _AT, _NOISE),
    st.builds(_cut, _AT),
    st.builds(_leave_out, _AT, st.integers(1, 5000)),
    _NOISE.map(lambda more: lambda content: content + more),
    st.just(lambda content: content + content),
)


def _all_of(several: list[Damage]) -> Damage:
    return lambda content: functools.reduce(lambda c, damage: damage(c), several, content)


#: What happens to a file on a bad disk, or to one that is not what it is taken for.
DAMAGE = st.one_of(
    st.lists(_ONE, min_size=1, max_size=3).map(_all_of),
    st.sampled_from(
        [b"", b"\n", b"no", b"\0" * 5000, b"\xff\xfe", b"SQLite format 3\0", b"\x80\x04.", b"{}"]
    ).map(lambda other: lambda _content: other),
    st.binary(max_size=300).map(lambda other: lambda _content: other),
)

# -- values ----------------------------------------------------------------------------

#: Texts that end up in names, paths, options, messages.
EVIL_TEXTS = (
    "", " ", "-", "--", "-1", "0", "nan", "inf", "-inf", "1e999", "1e-999", "9" * 400,
    "-" + "9" * 40, "1_000", "0x10", "٣", "../../etc/passwd", "/", "/dev/null", "/dev/full",
    ".", "..",
    "a\nb", "a\r\nerror: b", "\x1b[2J\x1b]0;gone\x07", "$(touch gone)", "`touch gone`",
    "; touch gone", "%s%n{0}{x.__class__}", "x" * 300, "x" * 5000, "ﷺ" * 20, "\u202edrowssap",
    "a" * 200 + "/" + "b" * 200, "null", "[]", "{}", "{", '{"a": NaN}', '{"a": 1e999}',
    "[" * 100_000,
    '{"a":' * 5000, "9" * 5000, "module:callable", ":", "a:b:c", "os:getcwd",
    "evaluator:create.__globals__", "*", "[z-a]", "**/*",
)  # fmt: skip
#: As they may come from a command line: everything but NUL, also bytes that are no UTF-8.
ARGUMENTS = st.one_of(
    st.sampled_from(EVIL_TEXTS),
    st.text(max_size=20).map(lambda text: text.replace("\0", "")),
    st.binary(max_size=12).map(lambda raw: os.fsdecode(raw.replace(b"\0", b""))),
    st.integers(-(10**20), 10**20).map(str),
    st.floats().map(str),
)
#: Values that JSON can hold where something else is expected.
JSON_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 2**31, 2**63, 10**400, -0.0, 1e308, float("nan"), float("inf")]),
    st.sampled_from(["", "a\0b", "\ud800", "a\nb", "x" * 5000, "../..", "/dev/null", "\x1b[2J"]),
    st.sampled_from([[], {}, [[]], [{}], {"": None}, [None], [1, "a"], {"a": {"b": []}}]),
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        ),
        max_leaves=6,
    ),
)


def _paths(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return where values stand in JSON."""
    inside: list[tuple[Any, ...]] = [above] if above else []
    if isinstance(value, dict | list):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            inside += _paths(entry, (*above, key))
    return inside


def _with(value: Any, path: tuple[Any, ...], new: Any, *, remove: bool) -> Any:
    changed = json.loads(json.dumps(value))
    inside = changed
    for key in path[:-1]:
        inside = inside[key]
    if remove:
        del inside[path[-1]]
    else:
        inside[path[-1]] = new
    return changed


def json_texts(valid: Mapping[str, Any]) -> st.SearchStrategy[bytes]:
    """Return texts that nearly are, or are not at all, a JSON file that is read."""
    text = json.dumps(valid, indent=2).encode()
    changed = st.builds(
        lambda path, new, remove: json.dumps(_with(valid, path, new, remove=remove)).encode(),
        st.sampled_from(_paths(valid)),
        JSON_VALUES,
        st.sampled_from([False, False, False, True]),
    )
    return st.one_of(
        changed,
        changed,
        DAMAGE.map(lambda damage: damage(text)),
        JSON_VALUES.map(lambda value: json.dumps(value).encode()),
        st.sampled_from(
            [b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, text.decode().encode("utf-16")]
        ),
    )


# -- commands --------------------------------------------------------------------------


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    words: list[str]
    code: int
    out: str
    err: str


def command(*words: str | Path, cwd: Path, program: str = "neurofleet") -> Done:
    """Run a command in this process, with streams as a terminal's: UTF-8 and strict."""
    typed = [program, *map(str, words)]
    streams = io.BytesIO(), io.BytesIO()
    out = io.TextIOWrapper(streams[0], "utf-8", write_through=True)
    err = io.TextIOWrapper(streams[1], "utf-8", "backslashreplace", write_through=True)
    kept = sys.argv, [(s, signal.getsignal(s)) for s in (signal.SIGTERM, signal.SIGUSR1)]
    sys.argv = typed
    try:
        with (
            contextlib.chdir(cwd),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            (neurofleet.main if program == "neurofleet" else l5pc.main)()
    finally:
        sys.argv = kept[0]
        for number, handler in kept[1]:
            signal.signal(number, handler)
    assert isinstance(ended.value.code, int)
    told = [stream.getvalue().decode(errors="replace") for stream in streams]
    return Done(typed, ended.value.code, *told)


def assert_in_words(error: FleetError) -> None:
    """Check that an error is a line that a person can read."""
    assert str(error).isprintable(), error
    assert len(str(error)) < 4000, error


def assert_documented(done: Done) -> Done:
    """Check what every command promises: a documented code, and one line if it is not 0."""
    said = done.out + done.err
    assert done.code in CODES, done
    assert "Traceback" not in said, done
    assert "an error of neurofleet itself" not in said, done
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    # A group without a command prints its help, which is no error.
    helped = done.code == 2 and done.err.startswith("Usage: ")
    assert len(errors) == (done.code != 0 and not helped), done
    for line in errors:
        assert line.isprintable(), done
        assert len(line) < 20_000, done
    return done
