"""Files that somebody may have damaged or laid out: opened without waiting, read in words.

What is wrong is always an ``OSError`` or a ``ValueError`` with a reason in one line, also for
a pipe in a file's place, for text that is no text, and for JSON that is nested without end.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import numbers
import os
import pwd
import re
import reprlib
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TextIO, TypeVar

from neurofleet.errors import UsageError

Settings = TypeVar("Settings")


def open_plain(path: Path) -> BinaryIO:
    """Open a plain file for reading; a pipe, which would be waited for, is an ``OSError``."""
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, "it is not a plain file", str(path))
        return os.fdopen(number, "rb")
    except BaseException:
        os.close(number)
        raise


def open_input(
    path: Path, encoding: str = "utf-8", newline: str | None = None, errors: str = "strict"
) -> TextIO:
    """Open a text that a person named: a file or a pipe; a device, without end, is an OSError."""
    file = path.open(encoding=encoding, newline=newline, errors=errors)
    mode = os.fstat(file.fileno()).st_mode
    if stat.S_ISREG(mode) or stat.S_ISFIFO(mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "it is not a file", str(path))


def name_part(text: str, longest: int = 60) -> str:
    """Return what a text can add to the name of a file or directory: no path, not hidden.

    Parameters
    ----------
    text : str
    longest : int
        The most that is taken of it [bytes].
    """
    plain = re.sub(r"[^\w.+=-]+", "-", text).encode(errors="ignore")[:longest]
    return plain.decode(errors="ignore").strip(".-") or "unnamed"


def user_name(uid: int) -> str:
    """Return what people call a user."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def json_value(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises
    ------
    ValueError
        It is none.
    """
    try:
        return json.loads(text if isinstance(text, str) else text.decode())
    except UnicodeDecodeError:
        raise ValueError("it is not text") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def dump_json(value: Any, *, indent: int | None = None) -> str:
    """Return a value as JSON that any reader takes.

    Parameters
    ----------
    value : object
        Of what JSON has, and of numpy's scalars and arrays. A number that is not finite, at
        any depth, is written as ``null``: JSON has none.
    indent : int or None
        As ``json.dumps`` has it.

    Raises
    ------
    TypeError
        Something in it is of another type.
    ValueError
        It contains itself.
    """
    try:
        return json.dumps(_finite(value), indent=indent, allow_nan=False)
    except RecursionError:
        raise ValueError("it contains itself, or is nested too deeply") from None


def _finite(value: Any) -> Any:
    """Return a value with ``None`` for each number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if hasattr(value, "tolist"):  # numpy's, which is not imported for this
        return _finite(value.tolist())
    return value


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is no JSON, or another kind of value.
    """
    with open_plain(path) as file:
        return as_object(json_value(file.read()))


def read_settings(
    file: Path, version: int, parse: Callable[[Mapping[str, Any]], Settings], what: str, remedy: str
) -> Settings | None:
    """Return what a file that Ansible writes says, ``None`` if there is no such file.

    Parameters
    ----------
    file : Path
    version : int
        Its ``schema_version``.
    parse : callable
        Takes the content, with the functions below.
    what, remedy : str
        What the file is, and what makes it anew.

    Raises
    ------
    UsageError
        The file is there and cannot be used.
    """
    try:
        content = read_object(file)
        found = content.get("schema_version")
        if found != version:
            raise ValueError(
                f"schema_version is {reprlib.repr(found)}, this program knows {version}"
            )
        return parse(content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"{what} {str(file)!r} cannot be used: {why}", remedy=remedy) from error


def as_object(value: Any) -> dict[str, Any]:
    """Return a value that is an object."""
    if not isinstance(value, dict):
        raise ValueError("it is not an object")
    return value


def text(content: Mapping[str, Any], key: str) -> str:
    """Return a text that is not empty and that a file system takes."""
    value = words(content, key)
    if not value:
        raise ValueError(f"{key!r} is '', not a text")
    return value


def words(content: Mapping[str, Any], key: str) -> str:
    """Return a text, which may be empty."""
    value = _entry(content, key)
    with contextlib.suppress(UnicodeEncodeError):
        # A path's bytes may be any; which letters this machine's locale has does not matter.
        if isinstance(value, str) and "\0" not in value:
            value.encode("utf-8", "surrogateescape")
            return value
    raise ValueError(f"{key!r} is {reprlib.repr(value)}, not a text")


def is_whole(value: object, least: int, most: int) -> bool:
    """Tell whether a caller's value is a whole number within limits; numpy's are as good."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        return False
    return least <= int(value) <= most


def count(content: Mapping[str, Any], key: str) -> int:
    """Return a whole number from 0."""
    value = _entry(content, key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{key!r} is {reprlib.repr(value)}, not a count")
    return value


def real(content: Mapping[str, Any], key: str) -> float:
    """Return a finite number."""
    value = _entry(content, key)
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            found = float(value)
            if math.isfinite(found):
                return found
    except OverflowError:
        pass
    raise ValueError(f"{key!r} is {reprlib.repr(value)}, not a number")


def number(content: Mapping[str, Any], key: str) -> float:
    """Return a finite number from 0."""
    value = real(content, key)
    if value < 0:
        raise ValueError(f"{key!r} is {value:g}, not a number from 0")
    return value


def texts(content: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Return a list of texts."""
    return tuple(text({key: value}, key) for value in entries(content, key))


def flag(content: Mapping[str, Any], key: str) -> bool:
    """Return true or false."""
    value = _entry(content, key)
    if not isinstance(value, bool):
        raise ValueError(f"{key!r} is {reprlib.repr(value)}, not true or false")
    return value


def entries(content: Mapping[str, Any], key: str) -> list[Any]:
    """Return a list."""
    value = _entry(content, key)
    if not isinstance(value, list):
        raise ValueError(f"{key!r} is {reprlib.repr(value)}, not a list")
    return value


def _entry(content: Mapping[str, Any], key: str) -> Any:
    if key not in content:
        raise ValueError(f"it has no {key!r}")
    return content[key]
