"""What a person has to know of an exception: its innermost cause, and where in their code it is.

An exception is often only the last of a chain: a library's wrapper around what happened. If it
happened in another process, the chain travels as the text of a traceback (``RemoteTraceback`` of
``multiprocessing``, ``concurrent.futures`` and ``pebble``, ``RemoteError`` of ``ipyparallel``),
which is read here.
"""

from __future__ import annotations

import functools
import os
import re
import sysconfig
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from neurofleet.errors import one_line

#: So much of what an exception says is shown [characters].
LONGEST_TEXT = 600
#: A chain of exceptions may be of any length; so many are looked at [count].
LONGEST_CHAIN = 100
#: A shorter text stands in another by chance [characters].
LEAST_REPEATED = 8
UNPRINTABLE = "(its text cannot be made)"

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_GROUP_MARGIN = re.compile(r"^\s*(?:[|+]\s|\+-[-+ \d.]*$)")
_HEADER = re.compile(
    r"^(?:(?P<name>[\w.]+) +|(?P<group>Exception Group ))?Traceback \(most recent call last\):?$"
)
_FRAME = re.compile(r'^\s*File "?(?P<file>.+?)"?(?:, line |:)(?P<line>\d+)(?:, in .*)?$')
_EXCEPTION = re.compile(r"^(?P<name>[^\W\d][\w.<>]*)(?::\s(?P<said>.*)|:)?$")
_END = re.compile(r'^(?:"""|The above exception was the direct|During handling of the above)')
_INSTALLED = re.compile(r"[/\\](?:site|dist)-packages[/\\]|[/\\]lib(?:64)?/python3[.\d]*/")


@dataclass
class _Link:
    """One exception of a chain, whether it is an object or a text."""

    name: str = ""
    said: str = ""
    frames: list[tuple[str, int]] = field(default_factory=list)
    group: bool = False

    def where(self) -> tuple[str, int] | None:
        """Return file and line of the last frame in a person's own code."""
        return next((frame for frame in reversed(self.frames) if _is_own(frame[0])), None)


def chain(error: BaseException) -> list[BaseException]:
    """Return an exception and what caused it, outermost first.

    Of a group of exceptions the first is followed.
    """
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and len(links) < LONGEST_CHAIN:
        if any(link is known for known in links):
            break
        links.append(link)
        link = _behind(link)
    return links


def line(error: BaseException, top: Path | None = None) -> str:
    """Return the innermost cause in one line: ``Type: message (file.py, line N)``.

    Where an outer exception repeats its message and adds to it, the outer one's is taken.

    Parameters
    ----------
    error : BaseException
    top : Path or None
        Files below this directory are named relative to it, all others by their name only.
    """
    links = chain(error)
    outwards = [part for link in reversed(links) for part in _parts(link)]
    first = next((n for n, part in enumerate(outwards) if not part.group), 0)
    cause, place = outwards[first], None
    for part in outwards[first:]:
        place = place or part.where()
        # Libraries raise the same again with what they know: the name of what is missing.
        if len(cause.said) >= LEAST_REPEATED and cause.said in part.said:
            cause = part
    text = f"{cause.name}: {cause.said}" if cause.said else cause.name
    if cause.said == UNPRINTABLE:
        text = f"{cause.name} {UNPRINTABLE}"
    if place is not None:
        text += f" ({_shown(place[0], top)}, line {place[1]})"
    others = sum(len(link.exceptions) - 1 for link in links if isinstance(link, BaseExceptionGroup))
    if others:
        text += f", and {others} other{'s' if others > 1 else ''}"
    return text


def traceback_text(error: BaseException) -> str:
    """Return the whole traceback with all causes, those of other processes too."""
    try:
        text = "".join(traceback.format_exception(error))
    except Exception:  # an exception may have been given anything as its parts
        return f"{line(error)}\n"
    for link in chain(error):
        remote = _remote_text(link)
        if remote and remote.strip() not in text:
            text = f"{_COLOURS.sub('', remote).rstrip()}\n\n{text}"
    return text


def _behind(error: BaseException) -> BaseException | None:
    if isinstance(error, BaseExceptionGroup):
        return error.exceptions[0]
    if error.__cause__ is not None:
        return error.__cause__
    return None if error.__suppress_context__ else error.__context__


def _parts(error: BaseException) -> list[_Link]:
    """Return what one exception object stands for, innermost first."""
    name, said = type(error).__name__, _said(error)
    parts = list(_read(_remote_text(error) or said))
    frames = [
        (frame.f_code.co_filename, number)
        for frame, number in traceback.walk_tb(error.__traceback__)
    ]
    if parts:
        return [*parts, _Link(name, "", frames)]
    ename, evalue = getattr(error, "ename", None), getattr(error, "evalue", None)
    if isinstance(ename, str) and isinstance(evalue, str):  # without a traceback
        name, said = ename, evalue
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        said = error.msg
        frames.append((error.filename, error.lineno))
    said = one_line(said[: 10 * LONGEST_TEXT])
    if len(said) > LONGEST_TEXT:
        said = f"{said[:LONGEST_TEXT]}..."
    return [_Link(name, said, frames, isinstance(error, BaseExceptionGroup))]


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:  # it is a person's code that runs here
        return UNPRINTABLE


def _remote_text(error: BaseException) -> str:
    """Return the traceback that came with an exception from another process, if one did."""
    texts = [getattr(error, "traceback", None), _said(error)]
    texts += [part[2] for part in getattr(error, "elist", None) or [] if len(part) > 2]
    return next((text for text in texts if isinstance(text, str) and any(_read(text))), "")


def _read(text: str) -> Iterator[_Link]:
    """Yield the exceptions of a traceback's text in its order, which is innermost first."""
    if "Traceback (most recent call last)" not in text:
        return
    found: list[_Link] = []
    named = ""
    open_message = False
    for raw in text.splitlines():
        row = _GROUP_MARGIN.sub("", _COLOURS.sub("", raw))
        margin = row != raw
        header = _HEADER.match(row)
        if header:
            found.append(_Link(group=bool(header["group"])))
            named, open_message = header["name"] or "", False
        elif not found:
            continue
        elif open_message:
            if _END.match(row) or (margin and not row):
                open_message = False
            else:
                found[-1].said += f" {row}"
        elif not found[-1].name:
            frame, exception = _FRAME.match(row), _EXCEPTION.match(row)
            if frame:
                found[-1].frames.append((frame["file"], int(frame["line"])))
            elif exception and (not named or exception["name"].endswith(named)):
                found[-1].name = exception["name"].rpartition(".")[2]
                found[-1].said = exception["said"] or ""
                open_message = True
    for link in found:
        if link.name:
            link.said = one_line(link.said)
            if len(link.said) > LONGEST_TEXT:
                link.said = f"{link.said[:LONGEST_TEXT]}..."
            yield link


def _shown(file: str, top: Path | None) -> str:
    if top is not None and Path(file).is_relative_to(top):
        return Path(file).relative_to(top).as_posix()
    return os.path.basename(file)  # noqa: PTH119 - the file may be another system's


@functools.cache
def _is_own(file: str) -> bool:
    """Tell whether a file is a person's own: of no package that is installed, and not ours."""
    if file.startswith("<") and not file.startswith(("<stdin>", "<ipython")):
        return False
    return not file.startswith(_places()) and not _INSTALLED.search(file)


@functools.cache
def _places() -> tuple[str, ...]:
    """Return where the standard library and this program are."""
    places = [
        sysconfig.get_path("stdlib"),
        sysconfig.get_path("platstdlib"),
        str(Path(__file__).parent),
    ]
    return tuple(f"{name(p)}{os.sep}" for p in places for name in (str, os.path.realpath))
