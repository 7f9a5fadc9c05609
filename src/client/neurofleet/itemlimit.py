"""How long one item may take: what a person says, or what was measured."""

from __future__ import annotations

import contextlib
import math
import re

from neurofleet.durations import LONGEST_S
from neurofleet.errors import UsageError
from neurofleet.measured_limit import MeasuredLimit

#: What stands for no limit at all.
NONE = "none"
#: While no item has ended a limit is doubled when it is reached, up to this [s].
MOST_FIRST_S = 86400.0


class ItemLimit:
    """The limit of the items of one run.

    Parameters
    ----------
    wanted : float, "none" or None
        A limit [s]; no limit; or, ``None``, one that follows what was measured: 20 times
        the longest item that ended, at least 120 s. While none has ended it is 600 s,
        and an item that reaches it is tried again with twice the limit.

    Raises
    ------
    UsageError
        It is no limit.
    """

    def __init__(self, wanted: float | str | None = None) -> None:
        self._fixed = None if wanted is None else checked(wanted)
        self._measured = MeasuredLimit(most_first_s=MOST_FIRST_S) if wanted is None else None

    @property
    def now_s(self) -> float | None:
        """The limit of an item that begins now [s]."""
        return self._fixed if self._measured is None else self._measured.limit_s("")

    def ended(self, took_s: float) -> None:
        """Learn how long an item took, at most, that ended by itself."""
        if self._measured is not None:
            self._measured.ended("", took_s)

    def deserves_more(self, had_s: float | None) -> bool:
        """Tell whether an item that was ended at a limit should be tried again with another."""
        if self._measured is None or had_s is None:
            return False
        return self._measured.timed_out("", had_s)


def checked(limit: float | str) -> float | None:
    """Return a limit of an item [s], ``None`` for ``"none"``.

    Raises
    ------
    UsageError
        It is neither a number above 0 nor "none".
    """
    if limit == NONE:
        return None
    seconds = math.nan
    plain = isinstance(limit, int | float) or re.fullmatch(r"[0-9.eE+-]+", limit)
    if plain and not isinstance(limit, bool):
        with contextlib.suppress(ValueError, OverflowError):
            seconds = float(limit)
    if not 0 < seconds <= LONGEST_S:
        raise UsageError(
            f"the limit of an item must be a number of seconds above 0, up to a year, not {limit}",
            remedy=f"Give --item-timeout (item_timeout_s) such a number, or {NONE!r} for no limit",
        )
    return seconds
