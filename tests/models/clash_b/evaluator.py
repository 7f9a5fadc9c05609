"""A soma with hh and this model's nfkick. clash_a has the same names and other contents."""

from pathlib import Path

import bluepyopt.ephys as ephys

HERE = Path(__file__).parent
NAME = "clash_b"
BOUNDS = {"gkbar_hh": (0.02, 0.06), "gbar_nfkick": (1e-5, 5e-4)}
STEPS = {"rest": 0.0, "push": 0.15}


def create() -> ephys.evaluators.CellEvaluator:
    """Return the evaluator."""
    everywhere = ephys.locations.NrnSeclistLocation("all", seclist_name="all")
    centre = ephys.locations.NrnSeclistCompLocation(
        "soma", seclist_name="somatic", sec_index=0, comp_x=0.5
    )
    cell = ephys.models.CellModel(
        NAME,
        morph=ephys.morphologies.NrnFileMorphology(str(HERE / "soma.swc")),
        mechs=[
            ephys.mechanisms.NrnMODMechanism(name, suffix=name, locations=[everywhere])
            for name in ("hh", "nfkick")
        ],
        params=[
            ephys.parameters.NrnSectionParameter(
                name, param_name=name, locations=[everywhere], bounds=bounds, frozen=False
            )
            for name, bounds in BOUNDS.items()
        ],
    )
    protocols, objectives = {}, []
    for name, amplitude in STEPS.items():
        pulse = ephys.stimuli.NrnSquarePulse(amplitude, 50.0, 150.0, 220.0, centre)
        recording = ephys.recordings.CompRecording(f"{name}.soma.v", location=centre, variable="v")
        protocols[name] = ephys.protocols.StepProtocol(
            name, step_stimulus=pulse, recordings=[recording]
        )
        for feature, mean in (("voltage_base", -66.0), ("steady_state_voltage_stimend", -55.0)):
            wanted = ephys.efeatures.eFELFeature(
                f"{name}.{feature}",
                efel_feature_name=feature,
                recording_names={"": recording.name},
                stim_start=50.0,
                stim_end=200.0,
                exp_mean=mean,
                exp_std=1.0,
            )
            objectives.append(ephys.objectives.SingletonObjective(wanted.name, wanted))
    return ephys.evaluators.CellEvaluator(
        cell_model=cell,
        param_names=list(BOUNDS),
        fitness_protocols=protocols,
        fitness_calculator=ephys.objectivescalculators.ObjectivesCalculator(objectives),
        sim=ephys.simulators.NrnSimulator(cvode_active=False),
    )
