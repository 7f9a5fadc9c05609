"""What an optimisation is asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from neurofleet import durations
from neurofleet.backends.choice import EngineChoice
from neurofleet.errors import UsageError
from neurofleet.evolution import Settings
from neurofleet.model import EvaluatorSpec
from neurofleet.rundir import RunDirectory

#: Where run directories are made that nobody named.
DEFAULT_PLACE = "neurofleet-runs"
#: A name is cut to so much in the name of a directory, which may have 255 [bytes].
LONGEST_PART = 100
#: A seed of so many digits stands there as it is.
LONGEST_SEED = 40
#: More generations than this are a slip of the finger.
MOST_GENERATIONS = 1_000_000


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
    allow_failing : bool
        Go on with penalties where an objective, or everything, fails for every individual.
    begin : str
        What to do where ``go_on`` finds nothing, in the words of whoever asks.
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
    allow_failing: bool = False
    begin: str = "Leave --continu out"

    def __post_init__(self) -> None:
        if self.verify < 0:
            raise UsageError(
                f"--verify must be at least 1, not {self.verify}",
                remedy="Give how many units are scored twice, or leave it out",
            )
        if not 1 <= self.max_ngen <= MOST_GENERATIONS:
            bound = "least 1" if self.max_ngen < 1 else f"most {MOST_GENERATIONS}"
            raise UsageError(
                f"--max-ngen must be at {bound}, not {self.max_ngen}", remedy="Give another number"
            )
        if self.unit_timeout_s is not None:
            durations.checked(self.unit_timeout_s, "--unit-timeout")

    @property
    def plain(self) -> Path:
        """The default run directory, unless another run has it."""
        s, seed = self.settings, str(self.settings.seed)
        if len(seed) > LONGEST_SEED or not seed.removeprefix("-").isdecimal():
            seed = folder_name(seed)
        name = f"{folder_name(self.name)}-seed{seed}-offspring{s.offspring_size}"
        name += "" if s == Settings(s.seed, s.offspring_size) else f"-{s.selector}-eta{s.eta:g}"
        return Path(DEFAULT_PLACE).absolute() / name

    def directory_for(self, digest: str) -> RunDirectory:
        """Return the run directory for a model.

        Unless ``run_dir`` names one it is called by name, seed and size. Where a run of another
        model or of other settings has that name, a part of a hash is added to it; so two runs
        never share a directory, and the same request finds its own again.

        Parameters
        ----------
        digest : str
            The model's hash.
        """
        if self.run_dir is not None:
            return RunDirectory(self.run_dir.absolute())
        decides = json.dumps([digest, asdict(self.settings)], sort_keys=True)
        mark = hashlib.sha256(decides.encode()).hexdigest()[:8]
        own = self.plain.with_name(f"{self.plain.name}-{mark}")
        if own.exists():
            return RunDirectory(own)
        about = RunDirectory(self.plain).read_about()
        other = about is not None and _is_another(about, digest, self.settings)
        return RunDirectory(own if other else self.plain)


def folder_name(text: str) -> str:
    """Return a text as a part of a directory's name: without ``/``, of bearable length.

    A text that had to be changed gets a part of its hash, so that no two become one.
    """
    plain = "".join(c if c.isprintable() and c != "/" else "_" for c in text)
    plain = f"_{plain[1:]}" if plain[:1] in ("", ".", "-") else plain
    plain = plain.encode()[:LONGEST_PART].decode(errors="ignore")
    if plain == text:
        return plain
    return f"{plain}-{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:8]}"


def _is_another(about: Mapping[str, Any], digest: str, settings: Settings) -> bool:
    """Tell whether a record is of another model or of other settings."""
    recorded = about.get("settings", {})
    return about.get("model", {}).get("digest") != digest or any(
        recorded.get(name) not in (None, value) for name, value in asdict(settings).items()
    )
