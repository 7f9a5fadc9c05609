"""What the tests of a fleet on AWS share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def calls() -> dict[str, set[str]]:
    """Calls that the tests made, by the module that made them."""
    return {}
