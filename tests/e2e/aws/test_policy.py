"""The rights that docs/aws.md names are those that the tests needed: no fewer, and no more."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parents[3] / "docs" / "aws.md"
#: Needed to tag what is made in the call that makes it; it is no call of its own.
TAGGING = "ec2:CreateTags"
#: Everybody may ask who they are.
FREE = "sts:GetCallerIdentity"
#: Of what AWS leaves behind, and moto never does.
ELSEWHERE = {"ec2:CancelSpotInstanceRequests", "ec2:DeleteNetworkInterface", "ec2:DeleteVolume"}


def test_policy_in_the_documentation_is_what_the_tests_called(calls: dict[str, set[str]]) -> None:
    if set(calls) != {"account", "fleet"}:
        pytest.skip("needs the calls of test_account.py and test_fleet.py")
    block = re.search(r"```json\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert block is not None
    statements = json.loads(block[1])["Statement"]
    allowed = [action for statement in statements for action in statement["Action"]]
    assert len(allowed) == len(set(allowed))
    called = set().union(*calls.values()) - {FREE}
    assert called - set(allowed) == set()
    assert set(allowed) - called == {TAGGING} | (ELSEWHERE - called)
