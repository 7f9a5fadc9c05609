"""Two steps, one of which fails for part of the parameters, in a way to choose."""

import ctypes
import math
import socket
from pathlib import Path
from typing import Any

import bluepyopt.ephys as ephys

HERE = Path(__file__).parent
#: gnabar_hh above which the step named "fragile" fails [S/cm2], middle of its bounds.
THRESHOLD = 0.15
BOUNDS = {"gnabar_hh": (0.06, 0.24), "gkbar_hh": (0.01, 0.08)}
DELAY_MS, DURATION_MS, TOTAL_MS = 20.0, 120.0, 160.0


class FragilePulse(ephys.stimuli.NrnSquarePulse):  # type: ignore[misc]
    """A current step that brings its simulation down above a threshold."""

    def __init__(self, *args: Any, how: str, threshold: float) -> None:
        super().__init__(*args)
        self.how = how
        self.threshold = threshold

    def instantiate(self, sim: Any = None, icell: Any = None) -> None:
        """Fail, or do what any step does."""
        super().instantiate(sim=sim, icell=icell)
        if icell.soma[0](0.5).hh.gnabar > self.threshold:
            if self.how == "endless":
                while True:
                    pass
            if self.how == "crashes":
                ctypes.string_at(0)
            if self.how == "greedy":
                eaten = []
                while True:
                    eaten.append(b"x" * 50_000_000)


class TouchyFeature(ephys.efeatures.eFELFeature):  # type: ignore[misc]
    """A feature that raises where it would score worse than so much."""

    most = 1

    def calculate_score(self, responses: Any, trace_check: bool = False) -> float:
        """Raise, or score as any feature does."""
        score = super().calculate_score(responses, trace_check)
        if responses[self.recording_names[""]] is not None and score > self.most:
            raise ZeroDivisionError(f"a score of {score:.3g} is too much for this feature")
        return float(score)


class LyingFeature(ephys.efeatures.eFELFeature):  # type: ignore[misc]
    """A feature whose score one machine has wrong in its last bit."""

    liar = ""

    def calculate_score(self, responses: Any, trace_check: bool = False) -> float:
        """Score as any feature does, or nearly."""
        score = float(super().calculate_score(responses, trace_check))
        return math.nextafter(score, math.inf) if socket.gethostname() == self.liar else score


def create(
    how: str = "nothing", threshold: float = THRESHOLD, liar: str = ""
) -> ephys.evaluators.CellEvaluator:
    """Return the evaluator.

    Parameters
    ----------
    how : str
        ``nothing``, ``endless``, ``crashes``, ``greedy``, ``raises``.
    threshold : float
        gnabar_hh above which it happens [S/cm2]; ``raises`` goes by the score instead.
    liar : str
        Name of a machine that scores wrongly.
    """
    everywhere = ephys.locations.NrnSeclistLocation("all", seclist_name="all")
    centre = ephys.locations.NrnSeclistCompLocation(
        "soma", seclist_name="somatic", sec_index=0, comp_x=0.5
    )
    cell = ephys.models.CellModel(
        "misbehaving",
        morph=ephys.morphologies.NrnFileMorphology(str(HERE / "soma.swc")),
        mechs=[ephys.mechanisms.NrnMODMechanism("hh", suffix="hh", locations=[everywhere])],
        params=[
            ephys.parameters.NrnSectionParameter(
                name, param_name=name, locations=[everywhere], bounds=bounds, frozen=False
            )
            for name, bounds in BOUNDS.items()
        ],
    )
    shape = (0.15, DELAY_MS, DURATION_MS, TOTAL_MS, centre)
    pulses = {
        "sturdy": ephys.stimuli.NrnSquarePulse(*shape),
        "fragile": FragilePulse(*shape, how=how, threshold=threshold),
    }
    protocols, objectives = {}, []
    for name, pulse in pulses.items():
        recording = ephys.recordings.CompRecording(f"{name}.soma.v", location=centre, variable="v")
        protocols[name] = ephys.protocols.StepProtocol(
            name, step_stimulus=pulse, recordings=[recording]
        )
        special = TouchyFeature if how == "raises" and name == "fragile" else LyingFeature
        for feature, kind in (
            ("Spikecount", ephys.efeatures.eFELFeature),
            ("voltage_base", special),
        ):
            wanted = kind(
                f"{name}.{feature}",
                efel_feature_name=feature,
                recording_names={"": recording.name},
                stim_start=DELAY_MS,
                stim_end=DELAY_MS + DURATION_MS,
                exp_mean=9.0 if feature == "Spikecount" else -65.0,
                exp_std=1.0,
            )
            wanted.liar = liar
            objectives.append(ephys.objectives.SingletonObjective(wanted.name, wanted))
    return ephys.evaluators.CellEvaluator(
        cell_model=cell,
        param_names=list(BOUNDS),
        fitness_protocols=protocols,
        fitness_calculator=ephys.objectivescalculators.ObjectivesCalculator(objectives),
        sim=ephys.simulators.NrnSimulator(cvode_active=False),
    )
