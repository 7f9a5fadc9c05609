"""The smallest model that needs all of an engine: a compiled mechanism, NEURON, eFEL.

A spiking soma; its scores depend on the last bits of the simulation, so two machines that
agree on them compute alike.
"""

from pathlib import Path

import bluepyopt.ephys as ephys

HERE = Path(__file__).parent
#: The individual that is scored, by parameter [S/cm2].
INDIVIDUAL = {"gnabar_hh": 0.13, "gkbar_hh": 0.037, "gbar_nfcanary": 0.0004}
#: Current step: amplitude [nA], delay, duration [ms].
AMPLITUDE_NA, DELAY_MS, DURATION_MS = 0.12, 20.0, 100.0
#: eFEL feature: wanted mean.
WANTED = {"Spikecount": 6.0, "mean_AP_amplitude": 80.0, "steady_state_voltage_stimend": -50.0}


def create() -> ephys.evaluators.CellEvaluator:
    """Return the evaluator."""
    everywhere = ephys.locations.NrnSeclistLocation("all", seclist_name="all")
    centre = ephys.locations.NrnSeclistCompLocation(
        "soma", seclist_name="somatic", sec_index=0, comp_x=0.5
    )
    cell = ephys.models.CellModel(
        "canary",
        morph=ephys.morphologies.NrnFileMorphology(str(HERE / "soma.swc")),
        mechs=[
            ephys.mechanisms.NrnMODMechanism(name, suffix=name, locations=[everywhere])
            for name in ("hh", "nfcanary")
        ],
        params=[
            ephys.parameters.NrnSectionParameter(
                name, param_name=name, locations=[everywhere], bounds=(0, 2 * value), frozen=False
            )
            for name, value in INDIVIDUAL.items()
        ],
    )
    pulse = ephys.stimuli.NrnSquarePulse(
        AMPLITUDE_NA, DELAY_MS, DURATION_MS, DELAY_MS + DURATION_MS, centre
    )
    recording = ephys.recordings.CompRecording("step.soma.v", location=centre, variable="v")
    protocol = ephys.protocols.StepProtocol("step", step_stimulus=pulse, recordings=[recording])
    objectives = [
        ephys.objectives.SingletonObjective(
            feature,
            ephys.efeatures.eFELFeature(
                feature,
                efel_feature_name=feature,
                recording_names={"": recording.name},
                stim_start=DELAY_MS,
                stim_end=DELAY_MS + DURATION_MS,
                exp_mean=mean,
                exp_std=1.0,
            ),
        )
        for feature, mean in WANTED.items()
    ]
    return ephys.evaluators.CellEvaluator(
        cell_model=cell,
        param_names=list(INDIVIDUAL),
        fitness_protocols={protocol.name: protocol},
        fitness_calculator=ephys.objectivescalculators.ObjectivesCalculator(objectives),
        sim=ephys.simulators.NrnSimulator(cvode_active=False),
    )
