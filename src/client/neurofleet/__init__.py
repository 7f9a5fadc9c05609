"""neurofleet: fit neuron models on a fleet, survive what breaks, get the serial numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neurofleet.fleet import Fleet

__version__ = "0.1.0"
__all__ = ["Fleet", "__version__"]


def __getattr__(name: str) -> Any:
    # Only who wants a fleet pays for what it imports.
    if name == "Fleet":
        from neurofleet.fleet import Fleet

        return Fleet
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
