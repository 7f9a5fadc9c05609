"""Units that were not scored as they should be: said in short, and when a run stops for them."""

from __future__ import annotations

from collections.abc import Sequence

from neurofleet.engine.outcome import Outcome
from neurofleet.errors import WorkloadFailed
from neurofleet.store import pack_floats
from neurofleet.units import NOTHING_RECORDED

#: Characters of a cause that are shown.
LONGEST_CAUSE = 800


def in_short(outcome: Outcome) -> str:
    """Return what went wrong with a unit, in a line."""
    first = (outcome.reason.splitlines() or [""])[0]
    first, *more = first.split("; objective ")
    others = f" (and {len(more)} more objective{'s'[: len(more) != 1]})" if more else ""
    status = "" if outcome.status == "raised" else f"{outcome.status}, "
    return f"{status}{_cut(first)}{others}"


def nothing_works(outcomes: Sequence[Outcome]) -> WorkloadFailed:
    """Return the error of a run in which no unit of any individual could be evaluated."""
    causes = list(dict.fromkeys(map(in_short, outcomes)))
    others = len(causes) - 1
    more = f" (and {others} other cause{'s'[: others != 1]})" if others else ""
    return WorkloadFailed(
        f"no unit of any individual could be evaluated: {causes[0]}{more}",
        remedy="Mend the model, or raise --unit-timeout if the simulations are that long;"
        " then use a new --run-dir",
    )


def refuse_always_failing(
    unit: str, names: Sequence[str], penalties: Sequence[float], outcomes: Sequence[Outcome]
) -> None:
    """Raise if an objective raises for every individual of a generation.

    An individual whose simulation failed, or for which nothing was recorded, tells nothing
    about an objective. Of the others none may have been scored, and they have to be half
    of the generation at least.

    Parameters
    ----------
    unit : str
    names : sequence of str
        The unit's objectives.
    penalties : sequence of float
        What each scores when nothing could be recorded.
    outcomes : sequence of Outcome
        The unit's, one for each individual.

    Raises
    ------
    WorkloadFailed
    """
    by_objective = [_causes(outcome, names) for outcome in outcomes]
    failing: dict[str, str] = {}
    for index, name in enumerate(names):
        raised = [causes[name] for causes in by_objective if name in causes]
        scored = any(_is_scored(outcome, index, penalties) for outcome in outcomes)
        if 2 * len(raised) >= len(outcomes) and raised and not scored:
            failing[name] = raised[0]
    if failing:
        name, *others = failing
        more = f" (so do {_listed(others)})" if others else ""
        raise _failing(f"objective {name}", failing[name], more)
    # Or what all its objectives need raises: a protocol, say.
    if outcomes and all(_is_raised_whole(outcome, names, penalties) for outcome in outcomes):
        raise _failing(f"unit {unit}", in_short(outcomes[0]), "")


def _failing(what: str, cause: str, more: str) -> WorkloadFailed:
    return WorkloadFailed(
        f"{what} raises for every individual of the first generation{more}: {_cut(cause)}",
        remedy="Mend it, or go on with its penalty with --allow-failing; the scores are kept",
    )


def _causes(outcome: Outcome, names: Sequence[str]) -> dict[str, str]:
    """Return why each objective raised that did."""
    if outcome.status != "raised":
        return {}
    reason = f"; {outcome.reason}"
    starts = {}
    for name in names:
        mark = f"; objective {name}: "
        at = reason.find(mark)
        if at >= 0:
            starts[name] = (at, at + len(mark))
    begins = sorted(at for at, _ in starts.values())
    found = {}
    for name, (at, begin) in starts.items():
        end = next((other for other in begins if other > at), len(reason))
        found[name] = reason[begin:end].splitlines()[0] if reason[begin:end].strip() else ""
    return {name: cause for name, cause in found.items() if not cause.startswith(NOTHING_RECORDED)}


def _is_scored(outcome: Outcome, index: int, penalties: Sequence[float]) -> bool:
    """Tell whether an objective has another score than its penalty."""
    return pack_floats([outcome.scores[index]]) != pack_floats([penalties[index]])


def _is_raised_whole(outcome: Outcome, names: Sequence[str], penalties: Sequence[float]) -> bool:
    """Tell whether a unit raised before any of its objectives could."""
    by_objectives = any(f"objective {name}: " in outcome.reason for name in names)
    all_penalties = pack_floats(outcome.scores) == pack_floats(penalties)
    return outcome.status == "raised" and all_penalties and not by_objectives


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_CAUSE else f"{text[:LONGEST_CAUSE]}..."
