"""Draw upstream's figures of L5PC, with upstream's own ``l5pc_analysis``, without a display.

Run as ``python -m neurofleet.workloads.l5pc_figures JOB`` (JSON); prints the files.
Each figure is written as EPS, under upstream's name, and as PNG.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from neurofleet.engine.loading import load_evaluator
from neurofleet.model import EvaluatorSpec

#: Upstream's size of each figure [inch].
SIZE = (10, 10)
WHOLE_PAGE = {"left": 0.0, "bottom": 0.0, "width": 1.0, "height": 1.0}


def main() -> None:
    """Draw what the job asks for."""
    job = json.loads(sys.argv[1])
    spec = EvaluatorSpec.from_json(job["evaluator"])
    # Upstream passes its optimisation; all that its analysis reads is the evaluator.
    optimisation = SimpleNamespace(evaluator=load_evaluator(Path(job["model"]), spec))
    analysis: Any = importlib.import_module("l5pc_analysis")
    folder = Path(job["figures"])
    folder.mkdir(parents=True, exist_ok=True)
    if job["what"] == "diversity":
        # Upstream indexes what a dictionary's values() gives, which Python 2 allowed.
        draw = analysis.plot_individual_params
        analysis.plot_individual_params = lambda opt, ax, params, **how: draw(
            opt, ax, list(params), **how
        )
        figure = _figure()
        names = optimisation.evaluator.param_names
        analysis.plot_diversity(optimisation, job["checkpoint"], figure, names)
        _save(folder, l5pc_diversity=figure)
        return
    sim = job["sim"]
    responses, objectives = _figure(), _figure()
    analysis.analyse_releasecircuit_model(
        opt=optimisation,
        figs=((responses, WHOLE_PAGE), (objectives, WHOLE_PAGE)),
        box=WHOLE_PAGE,
        sim=sim,
    )
    _save(folder, l5pc_release_objectives=objectives, l5pc_release_responses=responses)
    if job["checkpoint"] is None:
        return
    responses, objectives, evolution = _figure(), _figure(), _figure()
    analysis.analyse_cp(
        opt=optimisation,
        cp_filename=job["checkpoint"],
        responses_filename=job["responses"],
        figs=((responses, WHOLE_PAGE), (objectives, WHOLE_PAGE), (evolution, WHOLE_PAGE)),
        sim=sim,
    )
    _save(folder, l5pc_responses=responses, l5pc_objectives=objectives, l5pc_evolution=evolution)


def _figure() -> Any:
    import matplotlib.pyplot as plt

    return plt.figure(figsize=SIZE, facecolor="white")


def _save(folder: Path, **figures: Any) -> None:
    for name, figure in figures.items():
        for ending in ("eps", "png"):
            path = folder / f"{name}.{ending}"
            figure.savefig(path)
            print(path)


if __name__ == "__main__":
    main()
