"""One tree of errors; each knows its exit code and what the person can do.

The exit codes are part of the command line's contract (``docs/operating.md``):
0 ok, 1 the workload failed, 2 usage, 3 engines unreachable, 4 too few engines,
130 interrupted.
"""

from __future__ import annotations

import os
from typing import Any

#: A name or a text in an error may be of any length; so much of it is shown [characters].
LONGEST_LINE = 3000


class FleetError(Exception):
    """Something a person can act on.

    Parameters
    ----------
    what : str
        What is wrong and where, without a full stop.
    remedy : str
        What to do about it, without a full stop.
    """

    exit_code = 1

    def __init__(self, what: str, *, remedy: str) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy

    def __reduce__(self) -> tuple[Any, ...]:
        """Let errors travel between processes."""
        return _rebuild, (type(self), self.what, self.remedy)

    def __str__(self) -> str:
        """One line, whatever the parts contain."""
        what = one_line(self.what)
        return f"{what}. {one_line(self.remedy)}." if self.remedy else f"{what}."


def _rebuild(kind: type[FleetError], what: str, remedy: str) -> FleetError:
    return kind(what, remedy=remedy)


class WorkloadFailed(FleetError):
    """The machines did their part; the work itself cannot be done."""

    exit_code = 1


class UsageError(FleetError):
    """The command, a file or a value that it names is wrong."""

    exit_code = 2


class ModelError(UsageError):
    """The model directory or its evaluator cannot be used."""


class RunDirectoryError(UsageError):
    """The run directory, its store or its checkpoint cannot be used."""


class EnginesUnreachable(FleetError):
    """No controller answers."""

    exit_code = 3


class TooFewEngines(FleetError):
    """A controller answers, engines do not."""

    exit_code = 4


class Interrupted(FleetError):
    """A person or a time limit ended the run; what was scored is kept."""

    exit_code = 130


def debugging() -> bool:
    """Tell whether whole tracebacks are wanted (``NEUROFLEET_DEBUG`` is set)."""
    return bool(os.environ.get("NEUROFLEET_DEBUG"))


def one_line(text: str) -> str:
    """Return a text as one line that does nothing to a terminal."""
    plain = " ".join(text.split())
    if len(plain) > LONGEST_LINE:
        plain = f"{plain[:LONGEST_LINE]}..."
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in plain
    )


def first_line(error: BaseException) -> str:
    """Return the first line of what another library's error says, or its name."""
    return (str(error).splitlines() or [type(error).__name__])[0]
