"""What an optimisation is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from neurofleet.backends.choice import EngineChoice
from neurofleet.errors import UsageError
from neurofleet.evolution import Settings
from neurofleet.model import EvaluatorSpec
from neurofleet.rundir import RunDirectory


@dataclass(frozen=True)
class Request:
    """What to optimise, how, and where.

    Attributes
    ----------
    name : str
        For people and for the default run directory.
    model : Path
        The model directory.
    spec : EvaluatorSpec
    settings : Settings
    max_ngen : int
        Generations in all, the first included.
    engines : EngineChoice
    run_dir : Path or None
        ``None`` derives it from name and settings, below ``neurofleet-runs``.
    checkpoint : Path or None
        BluePyOpt's checkpoint; ``None`` puts it into the run directory.
    go_on : bool
        There has to be something to continue.
    unit_timeout_s : float or None
        Limit of one unit [s]; ``None`` derives it from what was measured.
    report : bool
        Write the report at the end.
    command : str
        As typed, for the record.
    exclude : tuple of str
        Patterns of model files that are not packed.
    verify : int
        Units of each generation that are scored a second time, on another host.
    """

    name: str
    model: Path
    spec: EvaluatorSpec
    settings: Settings
    max_ngen: int
    engines: EngineChoice
    run_dir: Path | None = None
    checkpoint: Path | None = None
    go_on: bool = False
    unit_timeout_s: float | None = None
    report: bool = True
    command: str = ""
    exclude: tuple[str, ...] = ()
    verify: int = 0

    def __post_init__(self) -> None:
        if self.verify < 0:
            raise UsageError(
                f"{self.verify} units cannot be scored twice",
                remedy="Give --verify of at least 1, or leave it out",
            )
        if self.max_ngen < 1:
            raise UsageError(
                f"{self.max_ngen} generations are none", remedy="Give --max-ngen of at least 1"
            )
        if self.unit_timeout_s is not None and not 0 < self.unit_timeout_s < float("inf"):
            raise UsageError(
                f"a limit of {self.unit_timeout_s:g} s is none",
                remedy="Give --unit-timeout above 0, in seconds",
            )

    @property
    def directory(self) -> RunDirectory:
        """The run directory."""
        s = self.settings
        default = f"{self.name}-seed{s.seed}-offspring{s.offspring_size}"
        default += "" if s == Settings(s.seed, s.offspring_size) else f"-{s.selector}-eta{s.eta:g}"
        return RunDirectory((self.run_dir or Path("neurofleet-runs") / default).absolute())
