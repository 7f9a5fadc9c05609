"""Which engines a person wants."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from neurofleet import manifest
from neurofleet.backends import EngineSource
from neurofleet.backends.local import LocalEngines, usable_cores
from neurofleet.backends.profile import ProfileEngines


@dataclass(frozen=True)
class EngineChoice:
    """Where engines come from.

    Attributes
    ----------
    backend : str
        ``serial`` (none: this process), ``local`` (this machine's cores), ``profile``
        (a running controller), ``auto`` (the fleet if this machine is a head, else a
        running controller of the profile if there is one, else this machine's cores).
    count : int or None
        Local engines to start; ``None`` is one per usable core.
    profile : str or None
        IPython profile; ``None`` is the fleet's, or the default one.
    timeout_s : float
        How long to wait while no engine can be used [s].
    """

    backend: str = "auto"
    count: int | None = None
    profile: str | None = None
    timeout_s: float = 300.0


def engine_source(choice: EngineChoice, logs: Path) -> tuple[EngineSource, str]:
    """Return where engines come from, and the name of that backend (not ``serial``).

    Parameters
    ----------
    choice : EngineChoice
    logs : Path
        Directory for what engines that are started here leave behind.
    """
    local = LocalEngines(usable_cores() if choice.count is None else choice.count, logs)
    if choice.backend == "local":
        return local, "local"
    fleet = manifest.read()
    profile = ProfileEngines(choice.profile, fleet)
    named = choice.backend == "profile" or choice.profile is not None
    # On a fleet's head people mean the fleet: its controller being down is an error.
    if named or fleet is not None or profile.answers():
        return profile, "profile"
    return local, "local"
