"""A function of JSON values, as ``neurofleet map`` sends it; a job server imports this quickly."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class OfJson:
    """A function of a JSON value, called with the value's text; returns the result's text."""

    function: Callable[[Any], Any]

    def __call__(self, text: str) -> str:
        """Call the function."""
        return json.dumps(self.function(json.loads(text)), default=_plain)


def _plain(value: Any) -> Any:
    """Return numpy's numbers and arrays as Python's."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(
        f"a {type(value).__name__} cannot be written as JSON; return numbers, texts, lists, objects"
    )
