"""A soma with hh and a slow potassium current, three current steps, six features."""

import time
from pathlib import Path
from typing import Any

import bluepyopt.ephys as ephys

HERE = Path(__file__).parent
#: Name: amplitude [nA], duration of the step [ms].
STEPS = {"weak": (0.05, 150.0), "middle": (0.12, 300.0), "strong": (0.25, 600.0)}
DELAY_MS = 50.0
#: Objective: step, eFEL feature, wanted mean, its standard deviation.
WANTED = {
    "weak.base": ("weak", "voltage_base", -66.0, 1.0),
    "weak.steady": ("weak", "steady_state_voltage_stimend", -52.0, 2.0),
    "middle.count": ("middle", "Spikecount", 12.0, 2.0),
    "middle.first": ("middle", "time_to_first_spike", 4.0, 1.0),
    "strong.count": ("strong", "Spikecount", 30.0, 3.0),
    "strong.steady": ("strong", "steady_state_voltage_stimend", -40.0, 3.0),
}


#: What an individual is made of.
BOUNDS = {
    "gnabar_hh": (0.06, 0.24),
    "gkbar_hh": (0.01, 0.08),
    "gl_hh": (1e-4, 1e-3),
    "gbar_nfslow": (0.0, 2e-3),
}


class WatchedPulse(ephys.stimuli.NrnSquarePulse):  # type: ignore[misc]
    """A current step that takes its time, and writes down which individual it is simulated for."""

    def __init__(self, *args: Any, step: str, log: str, pause_s: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.step = step
        self.log = log
        self.pause_s = pause_s

    def instantiate(self, sim: Any = None, icell: Any = None) -> None:
        """Write a line, wait, and do what any step does."""
        super().instantiate(sim=sim, icell=icell)
        if self.log:
            segment = icell.soma[0](0.5)
            values = [getattr(segment, name).hex() for name in BOUNDS]
            with Path(self.log).open("a") as file:
                file.write(f"{self.step} {' '.join(values)}\n")
        time.sleep(self.pause_s)


def create(pause_s: float = 0.0, log: str = "") -> ephys.evaluators.CellEvaluator:
    """Return the evaluator.

    Parameters
    ----------
    pause_s : float
        The strong step waits so long, the others in proportion to their durations: so a unit takes
        the same time on any computer, and no processor [s].
    log : str
        File that gets a line for every simulation; empty is none.
    """
    everywhere = ephys.locations.NrnSeclistLocation("all", seclist_name="all")
    centre = ephys.locations.NrnSeclistCompLocation(
        "soma", seclist_name="somatic", sec_index=0, comp_x=0.5
    )
    cell = ephys.models.CellModel(
        "quick",
        morph=ephys.morphologies.NrnFileMorphology(str(HERE / "morphology" / "soma.swc")),
        mechs=[
            ephys.mechanisms.NrnMODMechanism(name, suffix=name, locations=[everywhere])
            for name in ("hh", "nfslow")
        ],
        params=[
            ephys.parameters.NrnSectionParameter(
                name, param_name=name, locations=[everywhere], bounds=limits, frozen=False
            )
            for name, limits in BOUNDS.items()
        ],
    )
    protocols = {}
    for name, (amplitude, duration) in STEPS.items():
        shape = {
            "step_amplitude": amplitude,
            "step_delay": DELAY_MS,
            "step_duration": duration,
            "location": centre,
            "total_duration": DELAY_MS + duration + 20.0,
        }
        pause = pause_s * duration / STEPS["strong"][1]
        pulse = WatchedPulse(step=name, log=log, pause_s=pause, **shape)
        recording = ephys.recordings.CompRecording(f"{name}.soma.v", location=centre, variable="v")
        protocols[name] = ephys.protocols.StepProtocol(
            name, step_stimulus=pulse, recordings=[recording]
        )
    objectives = [
        ephys.objectives.SingletonObjective(
            objective,
            ephys.efeatures.eFELFeature(
                objective,
                efel_feature_name=feature,
                recording_names={"": f"{step}.soma.v"},
                stim_start=DELAY_MS,
                stim_end=DELAY_MS + STEPS[step][1],
                exp_mean=mean,
                exp_std=deviation,
            ),
        )
        for objective, (step, feature, mean, deviation) in WANTED.items()
    ]
    return ephys.evaluators.CellEvaluator(
        cell_model=cell,
        param_names=list(BOUNDS),
        fitness_protocols=protocols,
        fitness_calculator=ephys.objectivescalculators.ObjectivesCalculator(objectives),
        sim=ephys.simulators.NrnSimulator(cvode_active=False),
    )
