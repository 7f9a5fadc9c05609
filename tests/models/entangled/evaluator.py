"""Two steps that look independent; the first leaves its temperature to the second."""

from pathlib import Path
from typing import Any

import bluepyopt.ephys as ephys

HERE = Path(__file__).parent
BOUNDS = {"gnabar_hh": (0.06, 0.24), "gkbar_hh": (0.01, 0.08)}


class WarmingStep(ephys.protocols.StepProtocol):  # type: ignore[misc]
    """Sets the temperature by a parameter, and does not set it back."""

    def run(self, cell_model: Any, param_values: Any, sim: Any = None, **others: Any) -> Any:
        """Run in this very process, so that what it sets stays."""
        sim.neuron.h.celsius = 6.3 + 50.0 * param_values["gkbar_hh"]
        return super().run(cell_model, param_values, sim=sim, **{**others, "isolate": False})


def create() -> ephys.evaluators.CellEvaluator:
    """Return the evaluator."""
    everywhere = ephys.locations.NrnSeclistLocation("all", seclist_name="all")
    centre = ephys.locations.NrnSeclistCompLocation(
        "soma", seclist_name="somatic", sec_index=0, comp_x=0.5
    )
    cell = ephys.models.CellModel(
        "entangled",
        morph=ephys.morphologies.NrnFileMorphology(str(HERE / "soma.swc")),
        mechs=[ephys.mechanisms.NrnMODMechanism("hh", suffix="hh", locations=[everywhere])],
        params=[
            ephys.parameters.NrnSectionParameter(
                name, param_name=name, locations=[everywhere], bounds=bounds, frozen=False
            )
            for name, bounds in BOUNDS.items()
        ],
    )
    protocols, objectives = {}, []
    for name, kind in (("first", WarmingStep), ("second", ephys.protocols.StepProtocol)):
        pulse = ephys.stimuli.NrnSquarePulse(0.2, 20.0, 150.0, 190.0, centre)
        recording = ephys.recordings.CompRecording(f"{name}.soma.v", location=centre, variable="v")
        protocols[name] = kind(name, step_stimulus=pulse, recordings=[recording])
        for feature, mean in (("AP_amplitude", 80.0), ("voltage_base", -65.0)):
            wanted = ephys.efeatures.eFELFeature(
                f"{name}.{feature}",
                efel_feature_name=feature,
                recording_names={"": recording.name},
                stim_start=20.0,
                stim_end=170.0,
                exp_mean=mean,
                exp_std=2.0,
            )
            objectives.append(ephys.objectives.SingletonObjective(wanted.name, wanted))
    return ephys.evaluators.CellEvaluator(
        cell_model=cell,
        param_names=list(BOUNDS),
        fitness_protocols=protocols,
        fitness_calculator=ephys.objectivescalculators.ObjectivesCalculator(objectives),
        sim=ephys.simulators.NrnSimulator(cvode_active=False),
    )
