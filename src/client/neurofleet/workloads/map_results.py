"""``results.jsonl``: a line for every item, in the items' order, as JSON that any reader takes.

=========================================== ===========================================
``{"result": ...}``                         what the function returned
``{"error": "..."}``                        what it raised, with file and line
``{"pending": true}``                       it was not computed
=========================================== ===========================================

Beside these a line may have ``not_finite``: the numbers that are NaN or infinite, which are
``null`` in the result, by their place in it (a JSON pointer); ``left_behind``: files that the
item wrote and that were not brought back; ``code``: of which code the result is, by its
number in ``neurofleet-map.json``, if not all are of the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from neurofleet.files import dump_json, json_value
from neurofleet.items_wanted import PENDING, Outcome


@dataclass(frozen=True)
class Written:
    """The text of a file of results, and what is not finite in it.

    Attributes
    ----------
    text : str
    not_finite, with_not_finite : int
        Numbers that are no JSON, and results that have some.
    """

    text: str
    not_finite: int
    with_not_finite: int


def results_text(outcome: Outcome) -> Written:
    """Return the lines of a run's results."""
    lines: list[str] = []
    not_finite = with_not_finite = 0
    for number, result in enumerate(outcome.results):
        more: dict[str, Any] = {}
        if result.ok:
            text = result.value()
            # Only these words of JSON as Python writes it are none.
            found = dict(_not_finite(json_value(text))) if _may_not_be_finite(text) else {}
            if found:
                text = dump_json(json_value(text))
                more["not_finite"] = found
                not_finite += len(found)
                with_not_finite += 1
            line = f'{{"result": {text}'
        elif result.ended.status == PENDING:
            line = '{"pending": true'
        else:
            line = f'{{"error": {json.dumps(result.ended.reason)}'
        if number in outcome.left_behind:
            more["left_behind"] = list(outcome.left_behind[number])
        if outcome.several_codes and outcome.codes[number]:
            more["code"] = outcome.codes[number]
        rest = dump_json(more)[1:-1]
        lines.append(f"{line}{', ' if rest else ''}{rest}}}\n")
    return Written("".join(lines), not_finite, with_not_finite)


def _may_not_be_finite(text: str) -> bool:
    return "NaN" in text or "Infinity" in text


def _not_finite(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield the place and the name of each number that is not finite."""
    if isinstance(value, float):
        if not math.isfinite(value):
            yield place, str(value)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _not_finite(each, f"{place}/{key.replace('~', '~0').replace('/', '~1')}")
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _not_finite(each, f"{place}/{number}")
