"""A farm whose engines hold one model: the right versions, the files, a warm process."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from neurofleet import __version__
from neurofleet.backends.choice import EngineChoice, engine_source
from neurofleet.dispatch import EngineFarm
from neurofleet.engine import host_cache, tasks
from neurofleet.engine.outcome import Description
from neurofleet.errors import FleetError
from neurofleet.farm import Farm, FarmState, SerialFarm, check_engine
from neurofleet.model import Bundle
from neurofleet.remembered import recall, remember


class ModelPreparation:
    """Takes an engine through version check, model transfer, compilation and loading."""

    def __init__(self, bundle: Bundle, versions: Mapping[str, str]) -> None:
        self._bundle = bundle
        self._versions = {**versions, "neurofleet": __version__}

    def request(self, answer: Any | None) -> tuple[Any, ...] | None:
        """Return the next call for an engine; see ``farm.Preparation``."""
        if answer is None:
            return (tasks.probe,)
        if isinstance(answer, FleetError):
            raise answer
        if isinstance(answer, dict):
            check_engine(answer, self._versions)
            return (tasks.prepare, self._bundle.digest)
        if isinstance(answer, tasks.NotReady):
            return (tasks.prepare, self._bundle.digest, self._bundle.archive)
        return None


def describe(bundle: Bundle) -> Description:
    """Return a model's description; loads the model here the first time only.

    Raises
    ------
    ModelError
        The model does not compile, import, or give an evaluator.
    """
    known = _beside_model(bundle, "description")
    found = recall(known)
    if found is not None:
        with contextlib.suppress(ValueError):  # of another form
            return Description.from_json(found)
    answer = tasks.prepare(bundle.digest, bundle.archive)
    if isinstance(answer, FleetError):
        raise answer
    assert isinstance(answer, Description)
    remember(known, answer.as_json())
    return answer


def decision_file(bundle: Bundle) -> Path:
    """Return where this machine remembers whether the model can be split."""
    return _beside_model(bundle, "units")


def versions() -> dict[str, str]:
    """Return the versions that a person wants to see beside a result."""
    names = ("ipyparallel", "deap")
    return host_cache.versions() | {name: importlib.metadata.version(name) for name in names}


def open_farm(
    choice: EngineChoice,
    bundle: Bundle,
    logs: Path,
    watch: Callable[[FarmState], None],
) -> tuple[Farm, str]:
    """Return the farm that was chosen, and the name of its backend.

    Raises
    ------
    EnginesUnreachable
        A profile was asked for and its controller does not answer.
    """
    if choice.backend == "serial":
        return SerialFarm(lambda: prepare_here(bundle), tasks.close, watch), "serial"
    source, backend = engine_source(choice, logs)
    farm = EngineFarm(
        source,
        preparation=ModelPreparation(bundle, host_cache.versions()),
        engine_timeout_s=choice.timeout_s,
        watch=watch,
        is_not_ready=lambda result: isinstance(result, tasks.NotReady),
    )
    return farm, backend


def prepare_here(bundle: Bundle) -> None:
    """Make this process ready to score units of a model."""
    answer = tasks.prepare(bundle.digest, bundle.archive)
    if isinstance(answer, FleetError):
        raise answer


def _beside_model(bundle: Bundle, what: str) -> Path:
    stamp = "-".join(host_cache.versions().values())
    return host_cache.model_directory(bundle.digest) / f"{what}-{__version__}-{stamp}.json"
