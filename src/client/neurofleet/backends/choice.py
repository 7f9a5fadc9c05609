"""Which engines a person wants."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from neurofleet import durations, manifest
from neurofleet.backends import EngineSource, slurm
from neurofleet.backends.local import LocalEngines, usable_cores
from neurofleet.backends.profile import ProfileEngines
from neurofleet.backends.slurm import SlurmEngines, SlurmRequest
from neurofleet.errors import UsageError
from neurofleet.files import is_whole

#: More than this are a slip of the finger; on this computer each is a process.
MOST_ENGINES = 10_000


@dataclass(frozen=True)
class EngineChoice:
    """Where engines come from.

    Attributes
    ----------
    backend : str
        ``serial`` (none: this process), ``local`` (this machine's cores), ``profile``
        (a running controller), ``auto`` (the fleet if this machine is a head, else a
        running controller of the profile if there is one, else this machine's cores),
        ``slurm`` (a job).
    count : int or None
        Engines to start; ``None`` is one per usable core, or all tasks of the Slurm
        allocation that this process is in.
    profile : str or None
        IPython profile; ``None`` is the fleet's, or the default one.
    timeout_s : float
        How long to wait while no engine can be used [s].
    slurm : SlurmRequest
        What is asked of Slurm.

    Raises
    ------
    UsageError
        A number is out of its range, or Slurm's options are given to something else.
    """

    backend: str = "auto"
    count: int | None = None
    profile: str | None = None
    timeout_s: float = 300.0
    slurm: SlurmRequest = field(default_factory=SlurmRequest)

    def __post_init__(self) -> None:
        if self.count is not None and not is_whole(self.count, 1, MOST_ENGINES):
            raise UsageError(
                f"--engines must be from 1 to {MOST_ENGINES}, not {self.count!r}",
                remedy="Give another number, or leave it out for one per core",
            )
        for name, value in (
            ("engine-timeout", self.timeout_s),
            ("queue-timeout", self.slurm.queue_timeout_s),
        ):
            durations.checked(value, f"--{name}")
        if self.backend == "slurm":
            slurm.tasks(self.count)
        elif self.slurm != SlurmRequest():
            raise UsageError(
                f"options of Slurm were given, and the backend is {self.backend}",
                remedy="Give --backend slurm too, or leave them out",
            )

    @property
    def scratch(self) -> Path | None:
        """Where a directory may be made that engines see; ``None`` is anywhere."""
        return Path.cwd() if self.backend == "slurm" else None


def engine_source(choice: EngineChoice, logs: Path) -> tuple[EngineSource, str]:
    """Return where engines come from, and the name of that backend (not ``serial``).

    Parameters
    ----------
    choice : EngineChoice
    logs : Path
        Directory for what engines that are started here leave behind.
    """
    if choice.backend == "slurm":
        return SlurmEngines(choice.count, choice.slurm, logs, choice.timeout_s), "slurm"
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
