"""Opens everything relative to the model's own directory, as many published models do."""

import json
from pathlib import Path

import bluepyopt.ephys as ephys


def create(config: str = "config/cell.json") -> ephys.evaluators.CellEvaluator:
    """Return the evaluator that the configuration file describes."""
    told = json.loads(Path(config).read_text())
    everywhere = ephys.locations.NrnSeclistLocation("all", seclist_name="all")
    centre = ephys.locations.NrnSeclistCompLocation(
        "soma", seclist_name="somatic", sec_index=0, comp_x=0.5
    )
    cell = ephys.models.CellModel(
        "relative",
        morph=ephys.morphologies.NrnFileMorphology(told["morphology"]),
        mechs=[ephys.mechanisms.NrnMODMechanism("hh", suffix="hh", locations=[everywhere])],
        params=[
            ephys.parameters.NrnSectionParameter(
                name, param_name=name, locations=[everywhere], bounds=bounds, frozen=False
            )
            for name, bounds in told["bounds"].items()
        ],
    )
    protocols, objectives = {}, []
    for name, step in told["steps"].items():
        end = step["delay"] + step["duration"]
        pulse = ephys.stimuli.NrnSquarePulse(
            step["amplitude"], step["delay"], step["duration"], end + 20.0, centre
        )
        recording = ephys.recordings.CompRecording(f"{name}.soma.v", location=centre, variable="v")
        protocols[name] = ephys.protocols.StepProtocol(
            name, step_stimulus=pulse, recordings=[recording]
        )
        for feature, (mean, deviation) in step["features"].items():
            wanted = ephys.efeatures.eFELFeature(
                f"{name}.{feature}",
                efel_feature_name=feature,
                recording_names={"": recording.name},
                stim_start=step["delay"],
                stim_end=end,
                exp_mean=mean,
                exp_std=deviation,
            )
            objectives.append(ephys.objectives.SingletonObjective(wanted.name, wanted))
    return ephys.evaluators.CellEvaluator(
        cell_model=cell,
        param_names=list(told["bounds"]),
        fitness_protocols=protocols,
        fitness_calculator=ephys.objectivescalculators.ObjectivesCalculator(objectives),
        sim=ephys.simulators.NrnSimulator(cvode_active=False),
    )
