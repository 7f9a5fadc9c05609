"""JSON as it is written: any reader takes it."""

from __future__ import annotations

import json
import math
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from neurofleet.files import dump_json


def strict(text: str) -> Any:
    """Read JSON as other readers do: without NaN and Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, None),
        ({"best": math.inf, "std": -math.inf}, {"best": None, "std": None}),
        ([{"a": (1.5, [math.nan, 2])}], [{"a": [1.5, [None, 2]]}]),
        (MappingProxyType({"a": 1}), {"a": 1}),
        (np.float64(0.5), 0.5),
        (np.float32("nan"), None),
        ({"n": np.int64(3), "yes": np.bool_(True)}, {"n": 3, "yes": True}),
        (np.array([[1.0, np.nan], [np.inf, 2.0]]), [[1.0, None], [None, 2.0]]),
        (0.1 + 0.2, 0.1 + 0.2),
        ([True, None, 10**30, "nan"], [True, None, 10**30, "nan"]),
    ],
    ids=str,
)
def test_dump_json_of_any_number_is_json_that_other_readers_take(value: Any, expected: Any) -> None:
    assert strict(dump_json(value)) == expected
    assert strict(dump_json(value, indent=2)) == expected


def test_dump_json_of_what_is_no_json_is_a_type_or_value_error() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ValueError, match="contains itself"):
        dump_json(endless)
    with pytest.raises(TypeError, match="set"):
        dump_json({"a": {1, 2}})
