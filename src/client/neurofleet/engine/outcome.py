"""What an engine says of a model and of one unit's evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from neurofleet.files import as_object, count, entries, real, text, texts
from neurofleet.units import Unit

#: What Python writes of numbers that JSON has not.
NOT_FINITE = ("nan", "inf", "-inf")


class Outcome(NamedTuple):
    """One unit of one individual, evaluated.

    Attributes
    ----------
    status : str
        ``ok``; ``raised`` (an exception, see ``reason``); ``crashed`` (the simulation's
        process died); ``timeout`` (it was ended at its limit).
    scores : tuple of float
        One per objective of the unit; the penalty where nothing could be computed.
    reason : str
        Empty when ok.
    started : float
        When the unit began, by the engine's clock [s since 1970].
    duration_s : float
        Wall time that it took [s].
    host : str
        Name of the engine's machine.
    pid : int
        The engine's process.
    traceback : str
        What was raised, whole, with all causes; empty unless something was. It is not kept.
    """

    status: str
    scores: tuple[float, ...]
    reason: str
    started: float
    duration_s: float
    host: str
    pid: int
    traceback: str = ""


@dataclass(frozen=True)
class Parameter:
    """A free parameter and its bounds, in the model's own unit."""

    name: str
    lower: float
    upper: float


@dataclass(frozen=True)
class Description:
    """What an optimisation has to know of a model; independent of any process.

    Attributes
    ----------
    parameters : tuple of Parameter
    objectives : tuple of str
    penalties : tuple of float
        What each objective scores when nothing could be recorded.
    whole : Unit
    units : tuple of Unit
        What the structure suggests; equal to ``(whole,)`` if it cannot be taken apart.
    versions : mapping
        Of what a score depends on.
    """

    parameters: tuple[Parameter, ...]
    objectives: tuple[str, ...]
    penalties: tuple[float, ...]
    whole: Unit
    units: tuple[Unit, ...]
    versions: Mapping[str, str]

    def as_json(self) -> dict[str, Any]:
        """Return the JSON form; ``from_json`` is its inverse.

        A penalty that is not finite, which JSON has not, is a text such as ``"inf"``.
        """
        penalties = [value if math.isfinite(value) else str(value) for value in self.penalties]
        return {**asdict(self), "penalties": penalties}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Description:
        """Rebuild a description from ``as_json``; a ``ValueError`` if it is of another form."""
        objectives = texts(data, "objectives")

        def parameter(item: Any) -> Parameter:
            item = as_object(item)
            return Parameter(text(item, "name"), real(item, "lower"), real(item, "upper"))

        def unit(item: Any) -> Unit:
            item = as_object(item)
            numbers = [count({"objectives": n}, "objectives") for n in entries(item, "objectives")]
            if any(number >= len(objectives) for number in numbers):
                raise ValueError(f"unit {text(item, 'name')!r} has an objective that is not there")
            return Unit(text(item, "name"), texts(item, "protocols"), tuple(numbers))

        penalties = [
            float(value) if value in NOT_FINITE else real({"penalties": value}, "penalties")
            for value in entries(data, "penalties")
        ]
        if len(penalties) != len(objectives):
            raise ValueError("'penalties' are not as many as 'objectives'")
        versions = as_object(data.get("versions"))
        return cls(
            parameters=tuple(map(parameter, entries(data, "parameters"))),
            objectives=objectives,
            penalties=tuple(penalties),
            whole=unit(data.get("whole")),
            units=tuple(map(unit, entries(data, "units"))),
            versions={name: text(versions, name) for name in versions},
        )
