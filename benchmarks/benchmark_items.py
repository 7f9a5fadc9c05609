"""What the comparison of maps calls."""

from __future__ import annotations

import time


def wait(seconds: float) -> float:
    """Take some time, without computing: two cores cannot compute on four engines."""
    time.sleep(seconds)
    return seconds
