"""How long a unit or an item may take, when nobody said so: by those of its kind that ended."""

from __future__ import annotations

#: While none of its kind has ended, so long at first ...
FIRST_S = 600.0
#: ... and so long at most [s].
MOST_FIRST_S = 3600.0


class MeasuredLimit:
    """Limits that follow what was measured.

    The first that ends decides: from then on the limit of its kind is a multiple of the
    longest duration. While none has ended there is a moderate limit; what reaches it may
    be slow or hang. So it is judged when its turn comes again (``timed_out``): by those
    that ended meanwhile, or, if none did, by a new try with twice the limit.

    Parameters
    ----------
    factor : float
        The limit is this many times the longest duration ...
    least_s : float
        ... but at least so long [s].
    first_s, most_first_s : float
        The limit while none has ended: at first, and when it has been doubled [s].
    """

    def __init__(
        self,
        factor: float = 20.0,
        least_s: float = 120.0,
        first_s: float = FIRST_S,
        most_first_s: float = MOST_FIRST_S,
    ) -> None:
        self._factor = factor
        self._least_s = least_s
        self._first_s = max(first_s, least_s)
        self._most_first_s = max(most_first_s, self._first_s)
        self._first: dict[str, float] = {}
        self._longest: dict[str, float] = {}

    def limit_s(self, name: str) -> float:
        """Return the limit of one that begins now [s].

        Parameters
        ----------
        name : str
            Its kind: a unit's name, a function's.
        """
        longest = self._longest.get(name)
        if longest is None:
            return self._first.get(name, self._first_s)
        return max(self._least_s, self._factor * longest)

    def ended(self, name: str, duration_s: float) -> None:
        """Learn how long one took that ended by itself."""
        self._longest[name] = max(duration_s, self._longest.get(name, 0.0))

    def timed_out(self, name: str, limit_s: float) -> bool:
        """Tell whether one that was ended at a limit deserves another try, with ``limit_s``.

        To be asked when those that were begun together have ended, so that they count.
        Every try has a longer limit than the one before; while none of the kind ends,
        there is an end to that.
        """
        if name not in self._longest and limit_s < self._most_first_s:
            doubled = min(2 * limit_s, self._most_first_s)
            self._first[name] = max(doubled, self.limit_s(name))
        return limit_s < self.limit_s(name)
