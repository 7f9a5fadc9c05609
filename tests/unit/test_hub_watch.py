"""A hub that is not the client's any more is found out, whoever is registered there."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

import pytest

from neurofleet import hub_watch
from neurofleet.hub_watch import MISSING, OTHER, HubWatch


@pytest.mark.parametrize(
    ("ours", "theirs", "asked"),
    [
        (["one", "two"], {0: "two"}, None),
        ([], {}, None),
        (["one"], {}, OTHER),
        (["one"], {0: "new"}, OTHER),
        ([], {0: "new"}, OTHER),
        (["one"], None, MISSING),
    ],
)
def test_hub_that_is_another_or_silent_is_gone_after_some_answers(
    monkeypatch: pytest.MonkeyPatch,
    ours: list[str],
    theirs: Mapping[int, str] | None,
    asked: int | None,
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(hub_watch.HubAddress, "of_client", lambda _client: None)
    monkeypatch.setattr(hub_watch, "registered_engines", lambda _address: theirs)
    watch = HubWatch(types.SimpleNamespace(_engines=dict(enumerate(ours))), "", told.append)
    for count in range(1, 6):
        watch._ask(thorough=False)
        assert told == [None] * (0 if asked is None else max(0, count - asked + 1))
