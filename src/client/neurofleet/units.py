"""What is scored in one go: a group of protocols, and the objectives that read them.

Objectives and protocols form a bipartite graph: an objective is joined to the
protocols whose recordings its features read. Each connected component is a *unit*,
which can be simulated apart from the others. L5PC has four: bAP, Step1, Step2, Step3.

Joining too much costs speed only, joining too little would cost correctness; so what
cannot be told is joined, and ``splitcheck`` compares units with whole individuals bit
for bit before units are trusted.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from neurofleet import causes

#: Name of the unit that is the whole individual.
WHOLE = "whole"
#: BluePyOpt's own penalty for a feature that cannot be computed
#: (``max_score`` of ``bluepyopt.ephys.efeatures.eFELFeature``).
DEFAULT_PENALTY = 250.0
#: How the reason of an objective begins that raised because its recordings are not there ...
NOTHING_RECORDED = "nothing was recorded"
#: ... which is what these tell; another exception is the objective's own.
WITHOUT_RECORDING = (TypeError, AttributeError, LookupError)


@dataclass(frozen=True)
class Unit:
    """Protocols that are simulated together, and the objectives that they decide.

    Attributes
    ----------
    name : str
        The protocols' names joined by ``+``, or ``whole``.
    protocols : tuple of str
        Keys of ``CellEvaluator.fitness_protocols``, in its order.
    objectives : tuple of int
        Indices into the evaluator's objectives, ascending.
    """

    name: str
    protocols: tuple[str, ...]
    objectives: tuple[int, ...]


def partition(evaluator: Any) -> tuple[Unit, ...]:
    """Return an evaluator's units; one, ``whole``, if it cannot be taken apart.

    Parameters
    ----------
    evaluator : bluepyopt.evaluators.Evaluator
    """
    from bluepyopt.ephys.evaluators import CellEvaluator

    everything = (whole_of(evaluator),)
    if not isinstance(evaluator, CellEvaluator) or evaluator.fitness_calculator is None:
        return everything
    protocols = dict(evaluator.fitness_protocols)
    objectives = list(evaluator.fitness_calculator.objectives)
    if len(protocols) < 2 or [o.name for o in objectives] != [o.name for o in evaluator.objectives]:
        return everything

    recorded = {name: recording_names(protocol) for name, protocol in protocols.items()}
    opaque = [name for name, names in recorded.items() if names is None]
    groups = {name: {name} for name in protocols}

    def join(names: Iterable[str]) -> None:
        merged = set().union(*(groups[name] for name in names))
        for name in merged:
            groups[name] = merged

    reads: list[str] = []  # for each objective, one protocol of its component
    for objective in objectives:
        wanted = _names_read_by(objective)
        if wanted is None:
            return everything
        sources = {p for p, names in recorded.items() if names is not None and wanted & names}
        found = set().union(*(recorded[p] or set() for p in sources))
        if wanted - found:
            # Somebody computes this one: any protocol of a kind we do not know.
            sources |= set(opaque)
        sources = sources or {next(iter(protocols))}
        join(sources)
        reads.append(next(p for p in protocols if p in sources))

    units = []
    for names in {id(group): group for group in groups.values()}.values():
        members = tuple(name for name in protocols if name in names)
        decided = tuple(i for i, protocol in enumerate(reads) if protocol in names)
        if decided:
            units.append(Unit(_unit_name(members), members, decided))
    return tuple(units) if len(units) > 1 else everything


def whole_of(evaluator: Any) -> Unit:
    """Return the unit that is the whole individual."""
    protocols = getattr(evaluator, "fitness_protocols", None) or {}
    return Unit(WHOLE, tuple(protocols), tuple(range(len(evaluator.objectives))))


@dataclass(frozen=True)
class Scorer:
    """Scores one individual's parameters by one unit.

    Attributes
    ----------
    score : callable
        Parameters in, the unit's scores out. It is upstream's own entry point, on an
        evaluator that has only the unit's protocols and objectives; so whatever an
        evaluator overrides keeps its effect.
    raised : list of str
        Filled by ``score``: what was wrong with each objective that raised and was
        therefore given its penalty.
    tracebacks : list of str
        Filled by ``score``, as many.
    """

    score: Callable[[Sequence[float]], Sequence[float]]
    raised: list[str]
    tracebacks: list[str]


def scorer(evaluator: Any, unit: Unit, penalty: Sequence[float]) -> Scorer:
    """Return the scorer of a unit.

    Parameters
    ----------
    evaluator : bluepyopt.evaluators.Evaluator
    unit : Unit
    penalty : sequence of float
        One per objective of the *evaluator* (see ``penalties``).
    """
    raised: list[str] = []
    tracebacks: list[str] = []
    subject = evaluator
    if getattr(evaluator, "fitness_calculator", None) is not None:
        subject = _restricted(evaluator, unit)
        subject.fitness_calculator.objectives = [
            _Guarded(evaluator.fitness_calculator.objectives[i], penalty[i], raised, tracebacks)
            for i in unit.objectives
        ]
    entry = getattr(subject, "init_simulator_and_evaluate_with_lists", None)
    return Scorer(entry or subject.evaluate_with_lists, raised, tracebacks)


class _Guarded:
    """An objective that scores its penalty instead of raising."""

    def __init__(
        self,
        objective: Any,
        penalty: float,
        raised: list[str],
        tracebacks: list[str] | None = None,
    ) -> None:
        self._objective = objective
        self._penalty = penalty
        self._raised = raised
        self._tracebacks = [] if tracebacks is None else tracebacks

    def calculate_score(self, responses: Any) -> float:
        try:
            return self._objective.calculate_score(responses)  # type: ignore[no-any-return]
        except Exception as error:
            told = causes.line(error)
            if isinstance(error, WITHOUT_RECORDING) and self._lacks_recording(responses):
                told = f"{NOTHING_RECORDED} ({told})"
            self._raised.append(f"objective {self._objective.name}: {told}")
            self._tracebacks.append(causes.traceback_text(error))
            return self._penalty

    def _lacks_recording(self, responses: Any) -> bool:
        """Tell whether something that the objective reads was not recorded."""
        names = _names_read_by(self._objective) or set(responses)
        return any(responses.get(name) is None for name in names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objective, name)


def penalties(evaluator: Any) -> list[float]:
    """Return what each objective scores when nothing could be recorded."""
    values = []
    for objective in evaluator.objectives:
        try:
            values.append(float(objective.calculate_score({})))
        except Exception:  # a feature of the user's that cannot score an absent recording
            features = getattr(objective, "features", None) or []
            limits = [getattr(feature, "max_score", DEFAULT_PENALTY) for feature in features]
            values.append(float(max(limits, default=DEFAULT_PENALTY)))
    return values


def recording_names(protocol: Any) -> set[str] | None:
    """Return the names of a protocol's recordings, ``None`` if it does not tell."""
    if getattr(protocol, "protocols", None) is not None:
        inner = [recording_names(part) for part in protocol.protocols]
        known = [names for names in inner if names is not None]
        return set().union(*known) if len(known) == len(inner) else None
    recordings = getattr(protocol, "recordings", None)
    return None if recordings is None else {recording.name for recording in recordings}


def _names_read_by(objective: Any) -> set[str] | None:
    names: set[str] = set()
    for feature in getattr(objective, "features", None) or [None]:
        of_feature = getattr(feature, "recording_names", None)
        if not of_feature:
            return None
        names |= set(of_feature.values() if hasattr(of_feature, "values") else of_feature)
        somatic = getattr(feature, "somatic_recording_name", None)
        names |= {somatic} if somatic else set()
    return names


def _restricted(evaluator: Any, unit: Unit) -> Any:
    from bluepyopt.ephys.protocols import StepProtocol, SweepProtocol

    part = copy.copy(evaluator)
    part.fitness_calculator = copy.copy(evaluator.fitness_calculator)
    if unit.name == WHOLE:
        return part
    part.fitness_protocols = {name: evaluator.fitness_protocols[name] for name in unit.protocols}
    part.objectives = [evaluator.objectives[i] for i in unit.objectives]
    only = [type(protocol) for protocol in part.fitness_protocols.values()]
    if only in ([SweepProtocol], [StepProtocol]) and evaluator.timeout is None:
        # A unit has a process of its own already; a second one around its only
        # protocol would cost time and isolate nothing more.
        part.isolate_protocols = False
    return part


def _unit_name(protocols: tuple[str, ...]) -> str:
    name = "+".join(protocols)
    if len(name) <= 80:
        return name
    return f"{name[:60]}...{hashlib.sha256(name.encode()).hexdigest()[:12]}"
