"""Bring a model's evaluator to life in this process, which is then that model's for good.

Models disagree about the working directory and about who loads the mechanisms. The
order below suits all that were tried: NEURON is imported in a neutral directory (it
loads ``./x86_64`` by itself otherwise, and a second load of the same mechanism ends
the process), the mechanisms are loaded (a second load by the evaluator is then a
no-op), and only then the process moves into the model and imports its code.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import sys
from pathlib import Path
from typing import Any

from neurofleet import causes
from neurofleet.engine.libraries import LoadedOnce, libraries_in
from neurofleet.errors import ModelError
from neurofleet.mechanisms import hint
from neurofleet.model import EvaluatorSpec

#: What BluePyOpt imports when it scores for the first time: 0.6 s, in every fork anew.
IMPORTED_LATE = ("efel",)


def load_evaluator(model: Path, spec: EvaluatorSpec, compiled: tuple[str, ...] = ()) -> Any:
    """Import the model's code and build its evaluator. To be called once a process.

    Parameters
    ----------
    model : Path
        The model; this process works in it from now on.
    spec : EvaluatorSpec
    compiled : tuple of str
        The directories whose mechanisms were compiled.

    Returns
    -------
    bluepyopt.evaluators.Evaluator

    Raises
    ------
    ModelError
        The code does not import, the factory fails, or what it returns is no evaluator or
        one that cannot be optimised.
    """
    import bluepyopt.ephys
    import neuron

    for library in IMPORTED_LATE:
        importlib.import_module(library)
    libraries = libraries_in(model)
    os.chdir(model)
    # Relative, because NEURON takes no letters outside ASCII in a path.
    if libraries and not LoadedOnce(neuron).load(str(libraries[0].relative_to(model))):
        raise ModelError(
            "NEURON does not load the compiled mechanisms",
            remedy="Look for a library of another NEURON or processor in the model directory",
        )
    module_name, _, attribute = spec.factory.partition(":")
    sys.argv = [module_name]
    sys.path[:0] = [str((model / folder).resolve()) for folder in spec.search]
    step = "import"
    try:
        found: Any = importlib.import_module(module_name)
        step = "build its evaluator"
        found = _attribute(found, attribute, spec)
        if isinstance(found, bluepyopt.evaluators.Evaluator):
            if spec.kwargs:
                raise ModelError(
                    f"{spec.factory} is an evaluator and takes no arguments",
                    remedy="Leave --kwargs out, or name a callable that returns an evaluator",
                )
            evaluator = found
        elif callable(found):
            evaluator = found(**spec.kwargs)
        else:
            raise ModelError(
                f"{spec.factory} is neither an evaluator nor a callable that returns one: it is"
                f" of type {type(found).__name__}",
                remedy="Name a callable that returns a bluepyopt.evaluators.Evaluator",
            )
    except ModelError:
        raise
    except (Exception, SystemExit) as error:
        cause = causes.line(error, model)
        raise ModelError(
            f"{spec.factory} does not {step}: {cause}{hint(cause, model, compiled)}",
            remedy=missing_module(error, model, spec.factory)
            or "Mend the model's code, or see --evaluator, --search and --kwargs",
        ) from error
    if not isinstance(evaluator, bluepyopt.evaluators.Evaluator):
        raise ModelError(
            f"{spec.factory} returns a {type(evaluator).__name__}, not a BluePyOpt evaluator",
            remedy="Name a callable that returns a bluepyopt.evaluators.Evaluator",
        )
    _refuse_unusable(evaluator, spec)
    return evaluator


def _attribute(module: Any, dotted: str, spec: EvaluatorSpec) -> Any:
    """Return what a dotted name stands for in a module."""
    found = module
    for name in dotted.split("."):
        if not hasattr(found, name):
            raise ModelError(
                f"{spec.factory} does not exist: {found.__name__} has no {name!r}, it has"
                f" {', '.join(_candidates(module)) or 'nothing that could be an evaluator'}",
                remedy="Name one of them with --evaluator MODULE:NAME",
            )
        found = getattr(found, name)
    return found


def _candidates(module: Any) -> list[str]:
    """Return the names in a module that may be, or make, an evaluator."""
    from bluepyopt.evaluators import Evaluator

    own = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (isinstance(value, Evaluator) or getattr(value, "__module__", "") == module.__name__)
        and (isinstance(value, Evaluator) or callable(value))
    }
    # Functions before classes: a class of the module's is seldom the factory.
    return sorted(own, key=lambda name: (isinstance(own[name], type), name))[:10]


def missing_module(error: BaseException, model: Path, factory: str) -> str:
    """Return what to do about a module that does not exist; nothing if it is not that."""
    missing = next(
        (link for link in reversed(causes.chain(error)) if isinstance(link, ModuleNotFoundError)),
        None,
    )
    if missing is None or not missing.name:
        return ""
    top = missing.name.partition(".")[0]
    if top == factory.partition(":")[0].partition(".")[0]:
        places = _places_of(model, top)
        if places:
            return f"It is in {', '.join(map(repr, places))} of the model: name that with --search"
        return "Name a module of the model with --evaluator, and its directory with --search"
    places = _places_of(model, top)
    if places:
        return f"It is in {', '.join(map(repr, places))} of the model: name that with --search"
    if missing.name != top and importlib.util.find_spec(top) is not None:
        return f"The installed {top} has no such module; another version of it may have"
    return (
        f"The package {top} is missing where the model is evaluated: docs/models.md, 'Packages a"
        " model needs', says how to add it"
    )


def _places_of(model: Path, name: str) -> list[str]:
    """Return the model's directories that a module of this name could be imported from."""
    files = [*model.rglob(f"{name}.py"), *model.rglob(f"{name}/__init__.py")]
    above = [path.parent.parent if path.name == "__init__.py" else path.parent for path in files]
    return sorted({path.relative_to(model).as_posix() for path in above})[:3]


def _refuse_unusable(evaluator: Any, spec: EvaluatorSpec) -> None:
    """Raise if an evaluator cannot be optimised, before anything is simulated."""
    if not evaluator.params or not evaluator.objectives:
        lacks = "parameters to vary" if not evaluator.params else "objectives"
        raise ModelError(
            f"the evaluator of {spec.factory} has no {lacks}",
            remedy="An optimisation needs at least one of each",
        )
    wrong = [told for told in map(_wrong_bounds, evaluator.params) if told]
    if wrong:
        more = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ModelError(
            f"the evaluator of {spec.factory} has parameters without usable bounds:"
            f" {', '.join(wrong[:5])}{more}",
            remedy="Give each free parameter finite bounds, the lower one below the upper one,"
            " or freeze it at a value",
        )


def _wrong_bounds(parameter: Any) -> str:
    """Return what is wrong with a parameter's bounds; nothing if they can be used."""
    bounds = getattr(parameter, "lower_bound", None), getattr(parameter, "upper_bound", None)
    if bounds == (None, None):
        return f"{parameter.name} (none)"
    try:
        lower, upper = map(float, bounds)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return f"{parameter.name} ({bounds[0]!r} to {bounds[1]!r})"
    if math.isfinite(lower) and math.isfinite(upper) and lower < upper:
        return ""
    kind = " are equal" if lower == upper else " are reversed" if lower > upper else ""
    return f"{parameter.name} ({lower:g} to {upper:g}{kind})"
