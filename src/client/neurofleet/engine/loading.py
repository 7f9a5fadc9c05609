"""Bring a model's evaluator to life in this process, which is then that model's for good.

Models disagree about the working directory and about who loads the mechanisms. The
order below suits all that were tried: NEURON is imported in a neutral directory (it
loads ``./x86_64`` by itself otherwise, and a second load of the same mechanism ends
the process), the mechanisms are loaded (a second load by the evaluator is then a
no-op), and only then the process moves into the model and imports its code.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from neurofleet.errors import ModelError
from neurofleet.model import EvaluatorSpec

#: What BluePyOpt imports when it scores for the first time: 0.6 s, in every fork anew.
IMPORTED_LATE = ("efel",)


def load_evaluator(model: Path, spec: EvaluatorSpec) -> Any:
    """Import the model's code and build its evaluator. To be called once a process.

    Returns
    -------
    bluepyopt.evaluators.Evaluator

    Raises
    ------
    ModelError
        The code does not import, the factory fails, or what it returns is no evaluator.
    """
    import bluepyopt.ephys
    import neuron

    for library in IMPORTED_LATE:
        importlib.import_module(library)
    compiled = any(model.glob("*/libnrnmech.so")) or any(model.glob("*/.libs/libnrnmech.so"))
    compiled = compiled or any(model.glob("*/libnrnmech.dylib"))
    if compiled and not neuron.load_mechanisms(str(model), warn_if_already_loaded=False):
        raise ModelError(
            "NEURON does not load the compiled mechanisms",
            remedy="Compile them again with --compile",
        )
    os.chdir(model)
    module_name, _, attribute = spec.factory.partition(":")
    sys.argv = [module_name]
    sys.path[:0] = [str((model / folder).resolve()) for folder in spec.search]
    step = "import"
    try:
        factory: Any = importlib.import_module(module_name)
        step = "have the factory"
        for name in attribute.split("."):
            factory = getattr(factory, name)
        step = "build its evaluator"
        evaluator = factory(**spec.kwargs)
    except (Exception, SystemExit) as error:
        cause = f"{type(error).__name__}: {error}{_where(error, model)}"
        raise ModelError(
            f"{spec.factory} does not {step}: {cause}",
            remedy="Mend the model's code, or see --evaluator, --search and --kwargs",
        ) from error
    if not isinstance(evaluator, bluepyopt.evaluators.Evaluator):
        raise ModelError(
            f"{spec.factory} returns a {type(evaluator).__name__}, not a BluePyOpt evaluator",
            remedy="Name a callable that returns a bluepyopt.evaluators.Evaluator",
        )
    if not evaluator.params or not evaluator.objectives:
        lacks = "parameters to vary" if not evaluator.params else "objectives"
        raise ModelError(
            f"the evaluator of {spec.factory} has no {lacks}",
            remedy="An optimisation needs at least one of each",
        )
    return evaluator


def _where(error: BaseException, model: Path) -> str:
    """Return `` (file:line)`` of the innermost frame in the model's own code."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith(str(model)):
            return f" ({Path(frame.filename).relative_to(model)}, line {frame.lineno})"
    return ""
