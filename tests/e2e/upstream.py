"""What BluePyOpt itself makes of a model: serially, in one plain process, without neurofleet.

Run as ``python upstream.py JOB``, JOB being a JSON object with: model (compiled
directory), factory, search, kwargs, seed, offspring, generations, selector, checkpoint
(written from the second generation on), go_on (whether to continue it).
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path


def main() -> None:
    """Run the job."""
    job = json.loads(sys.argv[1])
    import neuron

    model = Path(job["model"])
    if any(model.glob("*/libnrnmech*")) or any(model.glob("*/.libs/libnrnmech*")):
        assert neuron.load_mechanisms(str(model))
    import bluepyopt

    os.chdir(model)
    sys.path[:0] = [str(model / folder) for folder in job["search"]]
    module, _, name = job["factory"].partition(":")
    evaluator = getattr(importlib.import_module(module), name)(**job["kwargs"])
    if not hasattr(evaluator, "init_simulator_and_evaluate_with_lists"):
        # BluePyOpt's DEAPOptimisation calls this; a plain Evaluator does not have it.
        evaluator.init_simulator_and_evaluate_with_lists = evaluator.evaluate_with_lists
    optimisation = bluepyopt.optimisations.DEAPOptimisation(
        evaluator=evaluator,
        seed=job["seed"],
        offspring_size=job["offspring"],
        selector_name=job["selector"],
    )
    optimisation.run(
        max_ngen=job["generations"],
        cp_filename=job["checkpoint"],
        continue_cp=job["go_on"],
    )


if __name__ == "__main__":
    main()
