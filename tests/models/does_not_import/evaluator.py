"""Needs what nobody has."""

import a_package_that_nobody_has


def create() -> object:
    """Never called."""
    return a_package_that_nobody_has
