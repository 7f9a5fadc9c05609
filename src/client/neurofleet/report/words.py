"""Numbers and times as a person writes them."""

from __future__ import annotations

import math
import time

MINUS, DASH = "\u2212", "\u2013"


def number(value: float, digits: int = 4) -> str:
    """Return a value with so many significant digits."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else f"{MINUS if value < 0 else ''}∞"
    return f"{value:.{digits}g}".replace("-", MINUS)


def whole(value: int) -> str:
    """Return a count with thin spaces between thousands."""
    return f"{value:,}".replace(",", "\u202f")


def percent(share: float) -> str:
    """Return a share in percent, a dash if there is none."""
    if not math.isfinite(share):
        return DASH
    value = 100 * share
    return f"{value:.1f}\u00a0%" if value < 99.95 else f"{value:.0f}\u00a0%"


def duration(seconds: float) -> str:
    """Return a time span in the two units that matter."""
    if not math.isfinite(seconds):
        return DASH
    if seconds < 0.0995:
        return f"{1000 * seconds:.3g}\u00a0ms"
    if seconds < 59.95:
        return f"{seconds:.3g}\u00a0s" if seconds < 9.95 else f"{seconds:.1f}\u00a0s"
    for unit, smaller, size, step in (
        ("min", "s", 60, 1), ("h", "min", 3600, 60), ("d", "h", 86400, 3600),
    ):  # fmt: skip
        steps = round(seconds / step)
        most = {"min": 3600, "h": 2880, "d": math.inf}[unit]
        if steps < most:
            large, small = divmod(steps, size // step)
            return f"{whole(large)}\u00a0{unit} {small:02d}\u00a0{smaller}"
    raise AssertionError("every duration is less than infinitely many days")


def moment(seconds: float | None) -> str:
    """Return a point in time [s since 1970] in UTC, the same wherever it is printed."""
    if seconds is None:
        return DASH
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def counted(count: int, one: str, many: str = "") -> str:
    """Return a count with its noun."""
    return f"{whole(count)} {one if count == 1 else many or one + 's'}"
