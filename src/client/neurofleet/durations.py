"""Lengths of time that a person gives: checked where they enter, in one way for all."""

from __future__ import annotations

from neurofleet.errors import UsageError

#: The most that is taken: timers of the system take little more [s].
LONGEST_S = 366 * 86400.0


def checked(seconds: float, option: str) -> float:
    """Return a limit [s] that timers take.

    Raises
    ------
    UsageError
        It is not above 0, not finite, or longer than a year.
    """
    if not 0 < seconds <= LONGEST_S:
        raise UsageError(
            f"{option} must be above 0 and at most {LONGEST_S:.0f} (a year), not {seconds:g}",
            remedy="Give seconds",
        )
    return seconds
