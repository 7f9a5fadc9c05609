"""A farm whose engines hold one model: the right versions, the files, a warm process."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from neurofleet import __version__, own_code
from neurofleet.backends.choice import EngineChoice, engine_source
from neurofleet.dispatch import EngineFarm
from neurofleet.engine import host_cache, tasks
from neurofleet.engine.host_cache import python_version
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
        # Whether the model can do without those that an engine lacks is seen when it is loaded.
        self._dispensable = versions.keys() - host_cache.versions().keys() - {"Python"}

    def request(self, answer: Any | None) -> tuple[Any, ...] | None:
        """Return the next call for an engine; see ``farm.Preparation``."""
        if answer is None:
            return (tasks.probe, tuple(sorted(self._dispensable)))
        if isinstance(answer, FleetError):
            raise answer
        if isinstance(answer, dict):
            lacking = self._dispensable - answer["versions"].keys()
            ours = {name: self._versions[name] for name in self._versions.keys() - lacking}
            check_engine(answer, ours)
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


def versions_of(bundle: Bundle) -> dict[str, str]:
    """Return what a model's scores depend on besides its files.

    Returns
    -------
    dict of str to str
        By name, the versions of the libraries that simulate and score, of the installed
        distributions that the evaluator's code imports, and of Python (its sum of floats is
        another one from 3.12 on).
    """
    return {
        **own_code.versions_of(bundle.modules), **host_cache.versions(), "Python": python_version()
    }  # fmt: skip


def shown_versions(bundle: Bundle) -> dict[str, str]:
    """Return the versions that a person wants to see beside a result."""
    names = ("ipyparallel", "deap")
    return {name: importlib.metadata.version(name) for name in names} | versions_of(bundle)


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
        preparation=ModelPreparation(bundle, versions_of(bundle)),
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
    text = repr((__version__, sorted(versions_of(bundle).items())))
    stamp = hashlib.sha256(text.encode()).hexdigest()[:16]
    return host_cache.model_directory(bundle.digest) / f"{what}-{stamp}.json"
