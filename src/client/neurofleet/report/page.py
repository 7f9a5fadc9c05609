"""Puts a run's record, its times and its figures into one page."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np

from neurofleet import __version__
from neurofleet.report import figures, timeline, times, words
from neurofleet.report.drawing import GRID, MUTED, NARROW, WIDE, Drawing, unit_colours, variable
from neurofleet.report.record import Record
from neurofleet.report.scores import Evaluations

#: Kinds of failure that get a row.
MOST_FAILURES = 50
#: Characters of a failure's reason that are shown.
LONGEST_REASON = 400
_STATES = {
    "finished": "finished",
    "running": "in progress",
    "interrupted": "interrupted",
    "failed": "failed",
}


@dataclass(frozen=True)
class Panel:
    """One protocol's traces."""

    title: str
    drawing: Drawing


@dataclass(frozen=True)
class Part:
    """A row of the table of where the time went."""

    name: str
    colour: str
    count: str
    mean: str
    longest: str
    total_s: float
    share: float


def render(record: Record) -> str:
    """Return the page; the same for the same record, whenever and wherever.

    Parameters
    ----------
    record : Record
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("neurofleet.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    helpers: dict[str, Callable[..., str]] = {
        "number": words.number,
        "whole": words.whole,
        "percent": words.percent,
        "duration": words.duration,
        "counted": words.counted,
    }
    environment.filters.update(helpers)
    template = environment.get_template("page.html.j2")
    return template.render(version=__version__, **_contents(record)) + "\n"


def protocol_of(name: str, protocols: Sequence[str]) -> str:
    """Return the protocol that a recording or an objective is named after.

    Parameters
    ----------
    name : str
        Such as ``Step1.soma.v``.
    protocols : sequence of str
        Those that are known; the longest that fits counts. Else it is what stands
        before the first dot, if anything does.
    """
    fitting = [p for p in protocols if name == p or name.startswith(f"{p}.")]
    if fitting:
        return max(fitting, key=len)
    before, dot, _ = name.partition(".")
    return before if dot else ""


def _contents(record: Record) -> dict[str, Any]:
    about, evaluations = record.about, record.evaluations
    spent = times.account(evaluations, _time(about.get("started")), _time(about.get("ended")))
    colours = unit_colours([unit.total_s for unit in spent.units])
    protocols = _protocols(record)
    scored = _scores(record, protocols)
    panels = _panels(record, protocols)
    parts = _parts(spent, colours)
    drawn = bool(evaluations.count and spent.sessions)
    timeline_drawing, remarks = (
        timeline.timeline(evaluations, spent, colours) if drawn else (None, ())
    )
    unit = "standard deviations from the target" if protocols else "score (lower is better)"
    failed = int(evaluations.failed.sum())
    sizes = (WIDE, NARROW)
    return {
        "record": record,
        "name": str(about.get("name") or record.directory),
        "state": str(about.get("state", "")),
        "state_words": _STATES.get(str(about.get("state")), "of unknown state"),
        "times": spent,
        "scores": scored,
        "penalised": sum(item.penalised for item in scored),
        "failed": failed,
        "failures": _failures(evaluations),
        "failure_kinds": len(evaluations.failures),
        "panels": panels,
        "parameters": list(zip(record.description.parameters, record.best.parameters, strict=True)),
        "spread": _spread(record),
        "parts": parts,
        "legend": [(unit.name, variable(colours[i])) for i, unit in enumerate(spent.units)],
        "remarks": remarks,
        "engine_summary": _engine_summary(spent),
        "fitness_drawings": [figures.fitness(record.progress, size) for size in sizes]
        if len(record.progress.mean)
        else [],
        "scores_drawings": [figures.scores(scored, unit, size) for size in sizes],
        "parameters_drawings": [
            figures.parameters(
                record.description.parameters, record.population, record.best.parameters, size
            )
            for size in sizes
        ],
        "timeline_drawings": [timeline_drawing] if timeline_drawing else [],
        "balance_drawings": [
            timeline.balance([(part.name, part.total_s, colour) for part, colour in parts], size)
            for size in sizes
        ]
        if spent.wall_s > 0
        else [],
        "provenance": _provenance(record),
    }


def _protocols(record: Record) -> tuple[str, ...]:
    whole, units = record.description.whole, record.description.units
    named = [*whole.protocols, *(name for unit in units for name in unit.protocols)]
    return tuple(dict.fromkeys(named))


def _scores(record: Record, protocols: Sequence[str]) -> list[figures.Score]:
    """Return the best individual's scores, protocol by protocol."""
    found = []
    for name, penalty, score in zip(
        record.description.objectives, record.description.penalties, record.best.scores,
        strict=True,
    ):  # fmt: skip
        group = protocol_of(name, protocols)
        label = name[len(group) :].lstrip(".") or name
        found.append(figures.Score(name, group, label, score, float(penalty)))
    order = {name: index for index, name in enumerate(protocols)}
    return sorted(found, key=lambda item: (order.get(item.group, len(order)), item.group))


def _panels(record: Record, protocols: Sequence[str]) -> list[Panel]:
    groups: dict[str, dict[str, Any]] = {}
    recordings = record.traces.recordings
    for name, trace in recordings.items():
        group = protocol_of(name, protocols)
        groups.setdefault(group, {})[name[len(group) :].lstrip(".") or name] = trace
    points = max(60, min(1600, figures.TRACE_POINTS // max(1, len(recordings))))
    order = {name: index for index, name in enumerate(protocols)}
    ordered = sorted(groups, key=lambda group: order.get(group, len(order)))
    return [
        Panel(
            group or "recordings",
            figures.traces(f"traces-{index}", group or "the model", groups[group], points),
        )
        for index, group in enumerate(ordered)
    ]


def _parts(spent: times.Times, colours: Sequence[str]) -> list[tuple[Part, str]]:
    """Return what engine time was spent on, and the colour of each."""
    outside = spent.outside_s * max(1, spent.total.engines)
    computed = sum(unit.total_s for unit in spent.units)
    total = computed + spent.idle_s + outside
    rows = [
        (unit.name, colours[index], words.whole(unit.count), words.duration(unit.mean_s),
         words.duration(unit.longest_s), unit.total_s)
        for index, unit in enumerate(spent.units)
    ]  # fmt: skip
    rows.append(("waiting, while others evaluated", MUTED, "", "", "", spent.idle_s))
    rows.append(("between evaluations", GRID, "", "", "", outside))
    return [
        (Part(name, variable(colour), count, mean, longest, seconds,
              seconds / total if total else math.nan), colour)
        for name, colour, count, mean, longest, seconds in rows
    ]  # fmt: skip


def _engine_summary(spent: times.Times) -> str:
    shares = spent.engine_share
    if not len(shares) or not spent.total.wall_s:
        return ""
    if len(shares) == 1:
        return f"The engine computed {words.percent(float(shares[0]))} of the evaluation time."
    least, middle, most = (float(np.quantile(shares, q)) for q in (0, 0.5, 1))
    return (
        f"Of the evaluation time, the busiest of {words.whole(len(shares))} engines computed"
        f" {words.percent(most)}, the median {words.percent(middle)}, the least busy"
        f" {words.percent(least)}."
    )


def _spread(record: Record) -> list[tuple[float, float]]:
    """Return the 5th and the 95th percentile of each parameter in the population."""
    if not len(record.population):
        return [(math.nan, math.nan)] * len(record.description.parameters)
    low, high = np.percentile(record.population, [5, 95], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _failures(evaluations: Evaluations) -> list[dict[str, Any]]:
    return [
        {
            "unit": failure.unit,
            "status": failure.status,
            "reason": failure.reason
            if len(failure.reason) <= LONGEST_REASON
            else failure.reason[:LONGEST_REASON] + " …",
            "count": failure.count,
            "total_s": failure.total_s,
        }
        for failure in evaluations.failures[:MOST_FAILURES]
    ]


def _provenance(record: Record) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return what it takes to run this again, in groups of name and value."""
    about = record.about
    model = _mapping(about.get("model"))
    evaluator = _mapping(model.get("evaluator"))
    engines, units = _mapping(about.get("engines")), _mapping(about.get("units"))
    machine, versions = _mapping(about.get("machine")), _mapping(about.get("versions"))
    run = [
        ("Started", words.moment(_time(about.get("started")))),
        ("Ended", words.moment(_time(about.get("ended")))),
        ("Run directory", record.directory),
        ("Engines", f"{engines.get('count', words.DASH)}, {engines.get('backend', words.DASH)}"),
        ("Units of work", f"{units.get('mode', words.DASH)}: {units.get('why', words.DASH)}"),
    ]
    return [
        ("Run", run),
        (
            "Model",
            [
                ("Directory", str(model.get("directory", words.DASH))),
                ("SHA-256", str(model.get("digest", words.DASH))),
                *_named(evaluator),
            ],
        ),
        ("Settings", _named(_mapping(about.get("settings")))),
        ("Versions", sorted(_named(versions))),
        ("Machine of the client", _named(machine)),
    ]


def _named(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(str(name), _value(value)) for name, value in values.items()]


def _value(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value) or words.DASH
    if value is None:
        return words.DASH
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _time(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
