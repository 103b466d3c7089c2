"""Candidates: errors from data, a true Pareto front, and costs that are those of the graph really rewritten."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo import images, resnet

from calib.data.calibration import CalibrationData
from calib.measure.moments import Moments
from hmc_onnx.analysis.find_compressible import find_compressible
from hmc_onnx.execution.context import Context
from hmc_onnx.profiling.profiler import profile
from hmc_onnx.records.profile import KEEP, REMOVED, LayerChoice, Profile
from hmc_onnx.records.settings import Settings
from hmc_onnx.search_space.candidates import RATIOS, Candidate, front, offers, timed
from hmc_onnx.search_space.layer_choices import Curve
from hmc_onnx.search_space.pruning_steps import SHARES
from hmc_onnx.search_space.variants import removal
from passes.branches import remove_branch
from passes.channels import trace
from passes.core.shelf import Shelf
from passes.decompose import DECOMPOSITIONS, Problem, chain_macs, compose
from passes.graph.cost import costs, total
from passes.graph.layers import Geometry, layer_of, replace_by_chain
from passes.graph.model import Model
from passes.graph.shapes import batch_one, infer_shapes
from passes.normal_form.normalise import normalise

pytestmark = pytest.mark.usefixtures("few_iterations")

CONV = Geometry(8, 12, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
SIZE = (6, 5)


@pytest.fixture(scope="module")
def patches() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(400, CONV.features)) @ (np.eye(CONV.features) + 0.1 * rng.normal(size=(CONV.features,) * 2))


@pytest.fixture(scope="module")
def weight() -> np.ndarray:
    return np.random.default_rng(1).normal(size=CONV.weight_shape)


@pytest.fixture(scope="module")
def moment(patches: np.ndarray) -> np.ndarray:
    return patches.T @ patches / len(patches)


@pytest.fixture(scope="module")
def found(weight: np.ndarray, moment: np.ndarray) -> list[Candidate]:
    return front(Problem.of(CONV, weight, moment), offers(CONV, SIZE, 2, list(DECOMPOSITIONS), RATIOS))


def lost(patches: np.ndarray, weight: np.ndarray, kernel: np.ndarray) -> float:
    """Share of the responses to the patches themselves that another kernel loses."""
    response = patches @ weight.reshape(len(weight), -1).T
    return float(np.sum((response - patches @ kernel.reshape(len(kernel), -1).T) ** 2) / np.sum(response**2))


def test_errors_are_those_on_the_patches_and_costs_those_of_the_chain(found, patches, weight) -> None:
    assert len({c.offer.method for c in found}) > 1
    for c in found:
        assert c.error == pytest.approx(lost(patches, weight, c.kernel), rel=1e-6)
        np.testing.assert_allclose(c.kernel, compose(c.offer.links, [f.array for f in c.factors]))
        size, macs = SIZE, 0
        for link in c.offer.links:
            size = link.output_size(size)
            macs += int(np.prod(link.weight_shape) * np.prod(size))
        assert c.offer.macs == macs
        assert c.offer.parameters == sum(f.array.size for f in c.factors) + CONV.outputs


def test_no_candidate_beats_one_of_the_front_and_every_other_is_beaten(found, patches, weight, moment) -> None:
    for a, b in itertools.pairwise(found):
        assert a.offer.macs > b.offer.macs and a.error < b.error
    tried = 0
    for name, method in DECOMPOSITIONS.items():
        if method.why_not(CONV):
            continue
        for rank in {r for ratio in RATIOS if (r := method.rank_for(CONV, SIZE, ratio, 2))}:
            kernel = compose(method.links(CONV, rank), method.solver(Problem.of(CONV, weight, moment))(rank))
            macs, error = chain_macs(method.links(CONV, rank), SIZE), lost(patches, weight, kernel)
            assert any(c.offer.macs <= macs and c.error <= error * (1 + 1e-6) for c in found), (name, rank)
            tried += 1
    assert tried > len(found)


def test_ranks_are_aligned_and_within_the_ratio() -> None:
    for align in (1, 3, 4):
        found = offers(CONV, SIZE, align, ["svd", "spatial"], [0.5])
        assert {o.method for o in found} == {"svd", "spatial"}
        for o in found:
            assert o.rank % align == 0
            assert o.macs <= 0.5 * CONV.macs(SIZE)
            one_more = DECOMPOSITIONS[o.method].links(CONV, o.rank + align)
            assert chain_macs(one_more, SIZE) > 0.5 * CONV.macs(SIZE)


def test_a_layer_of_no_response_loses_nothing(moment) -> None:
    found = front(Problem.of(CONV, np.zeros(CONV.weight_shape), moment), offers(CONV, SIZE, 4, ["svd"], RATIOS))
    assert found
    assert all(c.error == 0 for c in found)


def test_where_time_is_measured_it_is_what_candidates_are_compared_by(weight, moment) -> None:
    offered = offers(CONV, SIZE, 2, list(DECOMPOSITIONS), RATIOS)
    slow, times = "cp", {(CONV,): 10.0}
    for o in offered:  # as many seconds as MACs, but for one method, which is as slow as the layer
        times[o.links] = 10.0 if o.method == slow else 9.0 * o.macs / CONV.macs(SIZE)
    left = timed(offered, CONV, times)
    assert {o.method for o in offered} - {o.method for o in left} == {slow}
    assert all(o.cost == o.seconds == times[o.links] for o in left)
    found = front(Problem.of(CONV, weight, moment), left)
    assert [c.offer.seconds for c in found] == sorted((c.offer.seconds for c in found), reverse=True)
    assert timed(offered, CONV, None) == offered
    assert all(o.cost == o.macs for o in offered)


points = st.lists(st.tuples(st.floats(1e-6, 1), st.floats(1e-8, 10)), min_size=1, max_size=8, unique_by=lambda p: p[0])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(points, st.lists(st.floats(1e-8, 2), min_size=2, max_size=10))
def test_a_curve_never_falls_and_is_proportional_beyond_its_ends(measured, errors) -> None:
    curve = Curve(measured)
    values = [curve(e) for e in sorted(errors)]
    assert all(b >= a * (1 - 1e-9) for a, b in itertools.pairwise(values))
    ordered, highest = sorted(measured), 0.0
    for e, s in ordered:  # a point below an earlier one is noise
        highest = max(highest, s)
        assert curve(e) == pytest.approx(highest, rel=1e-9)
    least, most = ordered[0], ordered[-1]
    assert curve(least[0] / 3) == pytest.approx(least[1] / 3)
    assert curve(most[0] * 3) == pytest.approx(highest * 3)
    assert curve(0) == 0


def test_between_two_points_a_curve_is_a_power() -> None:
    assert Curve([(0.01, 1e-4), (0.1, 1e-2)])(0.05) == pytest.approx(0.05**2)


def test_a_curve_of_nothing_measured_is_the_error_itself() -> None:
    assert [Curve([])(e) for e in (0, 0.3)] == [0, 0.3]
    assert Curve([(0.1, 0.0)])(0.3) == 0.3  # a sensitivity of 0 has no logarithm


SMALL = Settings(samples=16, kl_samples=8, chunk=8, positions=16, align=2, branches=True)


@pytest.fixture(scope="module", params=["A", "B"])
def profiled(request: pytest.FixtureRequest) -> tuple[Model, Profile]:
    proto = resnet((1, 1), (8, 12), shortcut=request.param, size=8, classes=5)
    context = Context(proto, CalibrationData({"input": images(16, 8)}, None, "noise"), SMALL)
    return context.normal, profile(context)


def rewritten(model: Model, found: Profile, layer: str, choice: LayerChoice) -> Model:
    """The graph with the choice's channels really gone and its chain really there."""
    model = model.copy()
    own = next(x for x in found.layers if x.name == layer)
    groups = {g.name: g for g in found.groups}
    removed: dict[str, set[int]] = {}
    for name, index in ((own.input_group, choice.inputs), (own.output_group, choice.outputs)):
        if name is not None:
            removed.setdefault(name, set()).update(groups[name].choices[index].removed)
    gone = [k for k, v in removed.items() if len(v) == groups[k].size]
    trace(model).remove({k: np.array(sorted(v)) for k, v in removed.items() if v and k not in gone})
    for name in gone:
        (end,) = (n for n in model.graph.nodes if n.name in groups[name].consumers)
        remove_branch(model.graph, end)
    model.graph.cleanup()
    model.forget_shapes()
    if choice.method not in (KEEP, REMOVED):
        shapes = infer_shapes(model, batch_one(model))
        node = next(n for n in model.graph.nodes if n.name == layer)
        geometry = layer_of(node, shapes).geometry
        links = DECOMPOSITIONS[choice.method].links(geometry, choice.rank)
        weights = [np.zeros(link.weight_shape) for link in links]
        replace_by_chain(model.graph, node, list(zip(links, weights, strict=True)), np.zeros(geometry.outputs))
    return model


def test_costs_of_choices_are_those_of_the_graph_rewritten(profiled: tuple[Model, Profile]) -> None:
    model, found = profiled
    rng = np.random.default_rng(0)
    kinds = set()
    for layer in found.layers:
        for choice in rng.permutation(np.array(layer.choices, object))[:12]:
            table = costs(rewritten(model, found, layer.name, choice))
            own = [c for name, c in table.items() if name == layer.name or name.startswith(f"{layer.name}/")]
            assert choice.macs == sum(c.macs for c in own)
            assert choice.parameters == sum(c.parameters for c in own)
            if choice.method != REMOVED:
                kinds.add((choice.inputs > 0, choice.outputs > 0, choice.method != KEEP))
    assert len(kinds) == 7  # all but pruned at both ends and decomposed, which is not on offer
    assert {c.method for layer in found.layers for c in layer.choices} >= {KEEP, REMOVED}


def test_a_network_costs_what_its_layers_cost_together(profiled: tuple[Model, Profile]) -> None:
    model, found = profiled
    rng = np.random.default_rng(1)
    whole = total(model)
    assert (found.macs, found.parameters) == (whole.macs, whole.parameters)
    fixed = {k: getattr(found, k) - sum(getattr(x, k) for x in found.layers) for k in ("macs", "parameters")}
    for _ in range(3):
        taken = {g.name: int(rng.integers(len(g.choices))) for g in found.groups}
        copy = model.copy()
        removed = {g.name: np.array(g.choices[taken[g.name]].removed) for g in found.groups if taken[g.name]}
        gone = [g for g in found.groups if g.choices[taken[g.name]].keep == 0]
        trace(copy).remove({k: v for k, v in removed.items() if k not in {g.name for g in gone}})
        for group in gone:
            (end,) = (n for n in copy.graph.nodes if n.name in group.consumers)
            remove_branch(copy.graph, end)
        copy.graph.cleanup()
        copy.forget_shapes()
        cost = total(copy)
        chosen = [
            next(
                c
                for c in layer.choices
                if c.method in (KEEP, REMOVED)
                and (c.inputs, c.outputs) == (taken.get(layer.input_group, 0), taken.get(layer.output_group, 0))
            )
            for layer in found.layers
        ]
        assert cost.macs == sum(c.macs for c in chosen) + fixed["macs"]
        assert cost.parameters == sum(c.parameters for c in chosen) + fixed["parameters"]


def test_groups_offer_aligned_shares_of_their_channels(profiled: tuple[Model, Profile]) -> None:
    _, found = profiled
    assert found.groups
    for group in found.groups:
        keeps = [c.keep for c in group.choices]
        assert keeps[0] == group.size
        assert keeps == sorted(keeps, reverse=True)
        assert set(keeps[1:]) <= {int(group.size * s) // 2 * 2 for s in SHARES} | {0}
        for a, b in itertools.pairwise(group.choices):
            assert set(a.removed) < set(b.removed)
            assert len(b.removed) == group.size - b.keep


def test_an_elimination_to_be_sent_away_is_the_one_of_the_groups_layers() -> None:
    import pickle

    model = normalise(resnet((1,), (8,), size=8))
    compressible = find_compressible(model, batch_one(model))
    rng = np.random.default_rng(0)
    for subject in compressible.layers.values():
        moments = Moments()
        moments.update(rng.normal(size=(300, subject.layer.geometry.features)))
        subject.moments = moments.centred(Shelf())
    group = next(iter(compressible.groups.values()))
    eliminate, *arguments = pickle.loads(pickle.dumps(removal(group, compressible.layers, 2)))
    found = eliminate(*arguments)
    shapes = [compressible.layers[s.node.name].layer.weight.shape for s, _ in group.members("consumes")]
    assert found.weights
    for weights in found.weights.values():
        assert [w.array.shape for w in weights] == shapes
