"""Units are the connected components of protocols and objectives, with upstream's scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import bluepyopt
import bluepyopt.ephys as ephys
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurofleet import units
from neurofleet.units import WHOLE, Unit, partition, penalties, recording_names, scorer, whole_of

SOMA = ephys.locations.NrnSeclistCompLocation(
    "soma", seclist_name="somatic", sec_index=0, comp_x=0.5
)


def protocol(name: str, recordings: Sequence[str]) -> Any:
    recorded = [ephys.recordings.CompRecording(r, location=SOMA, variable="v") for r in recordings]
    return ephys.protocols.SweepProtocol(name, stimuli=[], recordings=recorded)


def objective(name: str, recordings: Sequence[str], somatic: str | None = None) -> Any:
    feature = ephys.efeatures.eFELFeature(
        name,
        efel_feature_name="Spikecount",
        recording_names={str(i or ""): r for i, r in enumerate(recordings)},
        stim_start=0,
        stim_end=1,
        exp_mean=1,
        exp_std=1,
    )
    if somatic is not None:
        feature.somatic_recording_name = somatic
    return ephys.objectives.SingletonObjective(name, feature)


def evaluator(
    protocols: dict[str, Any], objectives: list[Any], kind: Any = ephys.evaluators.CellEvaluator
) -> Any:
    return kind(
        cell_model=ephys.models.CellModel("cell", morph=None, mechs=[], params=[]),
        param_names=[],
        fitness_protocols=protocols,
        fitness_calculator=ephys.objectivescalculators.ObjectivesCalculator(objectives),
        sim=ephys.simulators.NrnSimulator(),
    )


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, list[set[int]]]:
    """A number of protocols, and for each objective the protocols that it reads."""
    count = draw(st.integers(1, 7))
    reads = st.sets(st.integers(0, count - 1), min_size=1, max_size=3)
    return count, draw(st.lists(reads, min_size=1, max_size=9))


def components(count: int, reads: list[set[int]]) -> list[tuple[set[int], list[int]]]:
    """Connected components by repeated merging: slow, and obviously right."""
    groups = [{p} for p in range(count)]
    for wanted in reads:
        touched = [g for g in groups if g & wanted]
        groups = [g for g in groups if not g & wanted] + [set().union(*touched)]
    found = [(g, [i for i, wanted in enumerate(reads) if wanted <= g]) for g in groups]
    return [(g, decided) for g, decided in found if decided]


@given(graph=graphs())
def test_partition_random_graph_is_its_connected_components(
    graph: tuple[int, list[set[int]]],
) -> None:
    count, reads = graph
    protocols = {f"p{i}": protocol(f"p{i}", [f"p{i}.v"]) for i in range(count)}
    objectives = [
        objective(f"o{i}", [f"p{p}.v" for p in sorted(wanted)]) for i, wanted in enumerate(reads)
    ]
    found = partition(evaluator(protocols, objectives))
    expected = components(count, reads)
    if len(expected) == 1:
        assert [u.name for u in found] == [WHOLE]
        assert found[0].protocols == tuple(protocols)
        assert found[0].objectives == tuple(range(len(reads)))
        return
    assert sorted((sorted(u.protocols), list(u.objectives)) for u in found) == sorted(
        (sorted(f"p{p}" for p in g), decided) for g, decided in expected
    )
    assert all(u.name == "+".join(u.protocols) for u in found)
    assert all(list(u.protocols) == [p for p in protocols if p in u.protocols] for u in found)


def test_partition_protocol_that_nobody_reads_is_in_no_unit() -> None:
    protocols = {name: protocol(name, [f"{name}.v"]) for name in ("a", "b", "idle")}
    found = partition(evaluator(protocols, [objective("x", ["a.v"]), objective("y", ["b.v"])]))
    assert found == (Unit("a", ("a",), (0,)), Unit("b", ("b",), (1,)))


def test_partition_recording_of_two_protocols_joins_them() -> None:
    protocols = {n: protocol(n, ["same.v"]) for n in ("a", "b")} | {"c": protocol("c", ["c.v"])}
    found = partition(evaluator(protocols, [objective("x", ["same.v"]), objective("y", ["c.v"])]))
    assert [u.name for u in found] == ["a+b", "c"]


def test_partition_feature_that_reads_the_soma_besides_joins_both() -> None:
    protocols = {name: protocol(name, [f"{name}.v"]) for name in ("a", "b", "c")}
    objectives = [objective("x", ["a.v"], somatic="b.v"), objective("y", ["c.v"])]
    assert [u.name for u in partition(evaluator(protocols, objectives))] == ["a+b", "c"]


def test_partition_sequence_protocol_counts_all_its_recordings() -> None:
    both = ephys.protocols.SequenceProtocol(
        "both", protocols=[protocol("one", ["one.v"]), protocol("two", ["two.v"])]
    )
    assert recording_names(both) == {"one.v", "two.v"}
    protocols = {"both": both, "c": protocol("c", ["c.v"])}
    objectives = [objective("x", ["two.v"]), objective("y", ["c.v"])]
    assert [u.name for u in partition(evaluator(protocols, objectives))] == ["both", "c"]


class Opaque:
    """A protocol that does not tell what it records."""

    name = "opaque"

    def run(self, *_args: Any, **_kwargs: Any) -> dict[str, Any]:
        return {"computed": 1.0}


def test_partition_name_that_nobody_records_goes_to_the_opaque_protocols() -> None:
    protocols = {"a": protocol("a", ["a.v"]), "opaque": Opaque(), "c": protocol("c", ["c.v"])}
    objectives = [objective("x", ["a.v", "computed"]), objective("y", ["c.v"])]
    assert [u.name for u in partition(evaluator(protocols, objectives))] == ["a+opaque", "c"]


def test_partition_objective_without_features_is_whole() -> None:
    class Strange(bluepyopt.objectives.Objective):  # type: ignore[misc]
        def calculate_score(self, responses: Any) -> float:
            return 1.0

    protocols = {name: protocol(name, [f"{name}.v"]) for name in ("a", "b")}
    found = partition(evaluator(protocols, [objective("x", ["a.v"]), Strange("strange")]))
    assert [u.name for u in found] == [WHOLE]


def test_partition_plain_evaluator_is_whole() -> None:
    plain = bluepyopt.evaluators.Evaluator(
        objectives=[bluepyopt.objectives.Objective("x")],
        params=[bluepyopt.parameters.Parameter("p", bounds=(0, 1))],
    )
    assert partition(plain) == (Unit(WHOLE, (), (0,)),)


def test_partition_objectives_in_another_order_than_calculated_is_whole() -> None:
    protocols = {name: protocol(name, [f"{name}.v"]) for name in ("a", "b")}
    made = evaluator(protocols, [objective("x", ["a.v"]), objective("y", ["b.v"])])
    made.objectives = made.objectives[::-1]
    assert [u.name for u in partition(made)] == [WHOLE]


def test_partition_very_many_protocols_have_a_short_name_of_their_own() -> None:
    names = [f"a_protocol_with_a_long_name_{i}" for i in range(9)]
    protocols = {name: protocol(name, [f"{name}.v"]) for name in [*names, "last"]}
    one, two = names[:4], names[4:]
    objectives = [objective(g[0], [f"{n}.v" for n in g]) for g in (one, two, ["last"])]
    found = partition(evaluator(protocols, objectives))
    assert len({u.name for u in found}) == 3
    assert all(len(u.name) <= 80 for u in found)


# -- scoring ----------------------------------------------------------------------


class Canned(ephys.evaluators.CellEvaluator):  # type: ignore[misc]
    """A real CellEvaluator whose protocols give voltages without a simulation."""

    def run_protocols(self, protocols: Any, param_values: Any) -> dict[str, Any]:
        self.ran = [p.name for p in protocols]
        return {f"{name}.v": None for name in self.ran}


class Sized(bluepyopt.ephys.objectives.EFeatureObjective):  # type: ignore[misc]
    """Scores the number of responses that it is shown, or raises."""

    def __init__(self, name: str, recordings: list[str], error: Exception | None = None) -> None:
        super().__init__(name, [objective(name, recordings).features[0]])
        self.error = error

    def calculate_score(self, responses: Any) -> float:
        if self.error is not None:
            raise self.error
        return float(len(responses))


def canned(error: Exception | None = None) -> Any:
    protocols = {name: protocol(name, [f"{name}.v"]) for name in ("a", "b", "c")}
    objectives = [
        Sized("x", ["a.v", "c.v"]), Sized("y", ["b.v"]), Sized("z", ["c.v"], error)
    ]  # fmt: skip
    return evaluator(protocols, objectives, Canned)


def test_scorer_unit_runs_only_its_protocols_and_scores_only_its_objectives() -> None:
    made = canned()
    first, second = partition(made)
    assert (first.name, second.name) == ("a+c", "b")
    assert list(scorer(made, first, [250.0] * 3).score([])) == [2.0, 2.0]
    assert list(scorer(made, second, [250.0] * 3).score([])) == [1.0]
    assert list(scorer(made, whole_of(made), [250.0] * 3).score([])) == [3.0, 3.0, 3.0]


def test_scorer_leaves_the_evaluator_as_it_was() -> None:
    made = canned()
    before = (dict(made.fitness_protocols), list(made.objectives), made.isolate_protocols)
    calculated = list(made.fitness_calculator.objectives)
    for unit in (*partition(made), whole_of(made)):
        scorer(made, unit, [250.0] * 3).score([])
    assert (dict(made.fitness_protocols), list(made.objectives), made.isolate_protocols) == before
    assert made.fitness_calculator.objectives == calculated


def test_scorer_objective_that_raises_scores_its_own_penalty_and_says_why() -> None:
    made = canned(ValueError("no spikes"))
    found = scorer(made, partition(made)[0], [1.0, 2.0, 77.0])
    assert list(found.score([])) == [2.0, 77.0]
    assert [said.partition(" (")[0] for said in found.raised] == [
        "objective z: ValueError: no spikes"
    ]
    assert "Traceback" in found.tracebacks[0]


def test_scorer_plain_evaluator_is_asked_for_all() -> None:
    class Plain(bluepyopt.evaluators.Evaluator):  # type: ignore[misc]
        def evaluate_with_lists(self, params: Sequence[float]) -> list[float]:
            return [sum(params)]

    plain = Plain(objectives=[bluepyopt.objectives.Objective("x")], params=[])
    assert list(scorer(plain, whole_of(plain), [250.0]).score([1.0, 2.0])) == [3.0]


def test_penalties_absent_recording_scores_what_bluepyopt_gives() -> None:
    made = evaluator({"a": protocol("a", ["a.v"])}, [objective("x", ["a.v"])])
    expected = made.objectives[0].calculate_score({"a.v": None})
    assert penalties(made) == [expected] == [units.DEFAULT_PENALTY]


def test_penalties_feature_that_cannot_do_without_gives_its_max_score() -> None:
    made = canned(RuntimeError("no"))
    made.objectives[2].features[0].max_score = 99.0
    assert penalties(made)[2] == 99.0


@pytest.mark.parametrize("name", ["score", "features"])
def test_guarded_objective_still_has_its_attributes(name: str) -> None:
    made = canned()
    scorer(made, partition(made)[1], [250.0] * 3)
    guarded = units._Guarded(made.objectives[1], 250.0, [])
    if name == "features":
        assert guarded.features == made.objectives[1].features
    else:
        with pytest.raises(AttributeError):
            _ = guarded.score
