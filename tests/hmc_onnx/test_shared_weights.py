"""A weight that several nodes read is one layer: chosen, fitted, stored and counted once."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from zoo import Builder, assert_same, images, run

import hmc_onnx
from hmc_onnx.analysis.find_compressible import find_compressible
from hmc_onnx.profiling.candidate_times import Clock
from hmc_onnx.records.plan import LayerPlan, Plan
from hmc_onnx.records.settings import Settings
from hmc_onnx.rewriting.planned_shapes import shaped
from hmc_onnx.run import Run
from passes.core.declined import sentences
from passes.core.errors import PlanError
from passes.decompose import DECOMPOSITIONS
from passes.graph.cost import total
from passes.normal_form.normalise import normalise

pytestmark = pytest.mark.usefixtures("few_candidates")

SETTINGS = Settings(samples=32, kl_samples=32, positions=64, align=2, chunk=32, provider="cpu", threads=1)
PADS = {"pads": [1] * 4}
Apply = Callable[[str], str]


class Shared:
    """Layers of `b` that can be applied to several tensors; each call adds nodes that read the same weights."""

    def __init__(self, b: Builder) -> None:
        self.b = b

    def conv(self, inputs: int, outputs: int, at: str, *, batchnorm: bool = False) -> Callable[..., str]:
        b = self.b
        weight = b.const(b.normal(outputs, inputs, 3, 3, scale=math.sqrt(2 / 9 / inputs)), f"{at}.weight")
        bias = b.const(b.normal(outputs, scale=0.1), f"{at}.bias")
        norm = [b.const(b.rng.uniform(0.5, 1.5, outputs).astype(np.float32), f"{at}.bn") for _ in range(4)]

        def apply(x: str, **attributes: object) -> str:
            if not batchnorm:
                return b.node("Conv", x, weight, bias, at=at, **(PADS | attributes))
            return b.node("BatchNormalization", b.node("Conv", x, weight, at=at, **PADS), *norm, at=at)

        return apply

    def gemm(self, inputs: int, outputs: int, at: str) -> Apply:
        b = self.b
        weight, bias = b.const(b.normal(outputs, inputs, scale=0.5), f"{at}.weight"), b.const(b.normal(outputs))
        return lambda x: b.node("Gemm", x, weight, bias, at=at, transB=1)


def siamese() -> onnx.ModelProto:
    """A residual backbone with batch normalisation, called on both halves of the input; the distance of the two."""
    b = Builder()
    shared = Shared(b)
    stem, first = (shared.conv(n, 8, at, batchnorm=True) for n, at in ((3, "stem"), (8, "first")))
    second, head = shared.conv(8, 8, "second", batchnorm=True), shared.gemm(8, 6, "head")

    def backbone(x: str) -> str:
        x = b.node("Relu", stem(x))
        x = b.node("Relu", b.node("Add", second(b.node("Relu", first(x))), x))
        return head(b.node("Flatten", b.node("GlobalAveragePool", x)))

    b.node("Split", "input", b.const([3, 3]), outputs=2, axis=1, at="halves")
    ends = [backbone(f"halves/Split_output_{i}") for i in range(2)]
    return b.model(b.node("Abs", b.node("Sub", *ends)), ("N", 6, 8, 8))


def two_scales() -> onnx.ModelProto:
    """A head of two Convs over two maps of different sizes; the Conv before the second map is behind the first head."""
    b = Builder()
    shared = Shared(b)
    tower, scores = shared.conv(8, 8, "tower"), shared.conv(8, 4, "scores")
    fine = b.node("Relu", b.conv("input", 3, 8, at="stem"))

    def head(x: str) -> str:
        return b.node("Flatten", b.node("GlobalAveragePool", scores(b.node("Relu", tower(x)))))

    first = head(fine)
    coarse = b.node("Relu", b.conv(fine, 8, 8, strides=[2, 2], at="down"))
    return b.model(b.node("Concat", first, head(coarse), axis=1))


def recurrent() -> onnx.ModelProto:
    """Two Convs that are applied twice in turn, each to the other's result."""
    b = Builder()
    shared = Shared(b)
    a, c = shared.conv(8, 8, "a"), shared.conv(8, 8, "c")
    x = b.node("Relu", b.conv("input", 3, 8, at="stem"))
    for _ in range(2):
        x = b.node("Relu", b.node("Add", c(b.node("Relu", a(x))), x))
    return b.model(b.gemm(b.node("Flatten", b.node("GlobalAveragePool", x)), 8, 5))


def chained() -> onnx.ModelProto:
    """A Conv that is applied to its own result."""
    b = Builder()
    again = Shared(b).conv(8, 8, "again")
    x = b.node("Relu", b.conv("input", 3, 8, at="stem"))
    x = b.node("Relu", again(b.node("Relu", again(x))))
    return b.model(b.gemm(b.node("Flatten", b.node("GlobalAveragePool", x)), 8, 5))


def biased() -> onnx.ModelProto:
    """A weight that three Convs share, two of them with the same bias."""
    b = Builder()
    weight, one, other = b.const(b.normal(8, 8, 3, 3, scale=0.2)), b.const(b.normal(8)), b.const(b.normal(8))
    x = b.node("Relu", b.conv("input", 3, 8, at="stem"))
    ends = [
        b.node(
            "Relu", b.node("Conv", b.node("Relu", b.conv(x, 8, 8, at=f"before{i}")), weight, bias, at="shared", **PADS)
        )
        for i, bias in enumerate((one, other, one))
    ]
    x = b.node("Concat", *ends, axis=1)
    return b.model(b.gemm(b.node("Flatten", b.node("GlobalAveragePool", x)), 24, 5))


def strided() -> onnx.ModelProto:
    """A Conv of which the second use has a stride."""
    b = Builder()
    shared = Shared(b).conv(8, 8, "shared")
    x = b.node("Relu", b.conv("input", 3, 8, at="stem"))
    x = b.node("Relu", b.conv(x, 8, 8, at="between"))
    x = b.node("Relu", b.conv(b.node("Relu", shared(x)), 8, 8, at="behind"))
    x = b.node("Relu", shared(x, strides=[2, 2]))
    return b.model(b.gemm(b.node("Flatten", b.node("GlobalAveragePool", x)), 8, 5))


NETWORKS = {"siamese": siamese, "two scales": two_scales, "recurrent": recurrent, "chained": chained, "biased": biased}
each = pytest.mark.parametrize("network", NETWORKS.values(), ids=list(NETWORKS))


def inputs_of(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {"input": (1, proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value, 8, 8)}


def data_of(proto: onnx.ModelProto, count: int = 32) -> np.ndarray:
    """Noise on a colour for each image, so that the images are told apart by more than noise."""
    channels = inputs_of(proto)["input"][1]
    colours = np.random.default_rng(1).normal(size=(count, channels, 1, 1)).astype(np.float32)
    return 0.3 * images(count, 8, channels) + colours


def a_run(proto: onnx.ModelProto, settings: Settings = SETTINGS) -> Run:
    return Run(proto, {"input": data_of(proto)}, settings)


@each
def test_the_nodes_that_share_a_weight_are_one_layer(network: Callable[[], onnx.ModelProto]) -> None:
    model, inputs = normalise(network()), inputs_of(network())
    found = find_compressible(model, inputs).layers
    assert sum(subject.macs() for subject in found.values()) == total(model, inputs).macs
    parameters = [s.layer.geometry.parameters + len(s.biases) * s.layer.geometry.outputs for s in found.values()]
    assert sum(parameters) == total(model, inputs).parameters
    assert sum(len(s.uses) for s in found.values()) == sum(n.op in ("Conv", "Gemm") for n in model.graph.nodes)


def test_a_siamese_network_has_as_many_layers_as_its_backbone() -> None:
    found = find_compressible(normalise(siamese()), inputs_of(siamese()))
    assert {name: [use.name for use in s.uses] for name, s in found.layers.items()} == {
        f"{at}/{op}": [f"{at}/{op}", f"{at}/{op}_1"]
        for at, op in (("stem", "Conv"), ("first", "Conv"), ("second", "Conv"), ("head", "Gemm"))
    }
    assert set(found.groups) == {"stem/Conv", "first/Conv"}


@each
def test_a_budget_of_parameters_is_kept(network: Callable[[], onnx.ModelProto]) -> None:
    original = network()
    result = hmc_onnx.compress(original, {"input": data_of(original)}, "params=0.6", settings=SETTINGS)
    before, after = (total(normalise(p), inputs_of(original)) for p in (original, result.model))
    assert after.parameters <= 0.6 * before.parameters
    assert after.parameters == result.plan.parameters
    assert after.macs == result.plan.macs
    stored = sum(math.prod(t.dims) for t in result.model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    assert stored == after.parameters
    x = data_of(original, 64)
    (theirs,), (ours,) = run(original, x), run(result.model, x)
    assert ((theirs - ours) ** 2).mean() < 0.3 * theirs.var(axis=0).mean()


def test_equal_images_are_still_at_distance_zero() -> None:
    original = siamese()
    result = hmc_onnx.compress(original, {"input": data_of(original)}, "params=0.6", settings=SETTINGS)
    half = images(8, 8)
    (distance,) = run(result.model, np.concatenate([half, half], axis=1))
    np.testing.assert_array_equal(distance, 0)


def at_full_rank(run_: Run) -> Plan:
    """A plan that decomposes every layer at a rank at which nothing is lost."""
    layers = {}
    for name, subject in run_.compressible.layers.items():
        rank = DECOMPOSITIONS["svd"].max_rank(subject.layer.geometry)
        layers[name] = LayerPlan(method="svd", rank=rank)
    return run_.plan("macs=1.0").model_copy(update={"layers": layers})


@each
def test_chains_of_full_rank_compute_the_same(network: Callable[[], onnx.ModelProto]) -> None:
    original = network()
    run_ = a_run(original)
    done = run_.apply(at_full_rank(run_))
    chains = [n for n in done.graph.node if n.name.endswith(("/0", "/1"))]
    assert len(chains) == 2 * sum(n.op in ("Conv", "Gemm") for n in run_.normal.graph.nodes)
    assert len({n.input[1] for n in chains}) == 2 * len(run_.compressible.layers)
    x = data_of(original, 8)
    assert_same(run(done, x), run(original, x), 1e-3)


def test_the_repair_weighs_all_uses_alike() -> None:
    """The weights do not depend on which half of the input a siamese network sees on which side."""
    original = siamese()
    x = data_of(original)
    x[:, :3] *= 3
    swapped = np.concatenate([x[:, 3:], x[:, :3]], axis=1)
    settings = SETTINGS  # which takes all positions, so that none are drawn
    runs = [Run(original, {"input": data}, settings) for data in (x, swapped)]
    plan = runs[0].plan("params=0.6")
    one, other = (r.apply(plan.model_copy(update={"data": r.data.digest()})).graph.initializer for r in runs)
    assert [t.name for t in one] == [t.name for t in other]
    assert_same([numpy_helper.to_array(t) for t in one], [numpy_helper.to_array(t) for t in other], 1e-3)


@each
def test_a_network_to_be_timed_shares_its_weights_too(network: Callable[[], onnx.ModelProto]) -> None:
    run_ = a_run(network())
    plan = run_.plan("params=0.6")
    assert total(shaped(run_, plan), run_.inputs).parameters == plan.parameters


def test_nothing_is_changed_where_the_strides_differ() -> None:
    original = strided()
    run_ = a_run(original)
    reason = "its weights are shared by 'shared/Conv' and 'shared/Conv_1', whose strides differ"
    said = sentences(run_.compressible.declined)
    assert said["shared/Conv"] == said["shared/Conv_1"] == reason
    done = run_.apply(run_.plan("macs=0.8"))
    ours, theirs = ({t.name: t for t in p.graph.initializer} for p in (done, original))
    for name in ("shared.weight", "shared.bias"):
        assert ours[name] == theirs[name]
        assert sum(name in n.input for n in done.graph.node) == 2


def test_a_weight_that_another_operator_reads_is_left_alone() -> None:
    b = Builder()
    x = b.conv("input", 3, 8, at="stem")
    weight = b.const(b.normal(8, 8, 3, 3), "shared")
    y = b.node("ConvTranspose", b.node("Conv", x, weight, at="down", **PADS), weight, at="up", **PADS)
    found = find_compressible(normalise(b.model(b.conv(y, 8, 4, at="head"))), {"input": (1, 3, 8, 8)})
    assert str(found.declined["down/Conv"]) == (
        "its weights are shared by 'down/Conv' and 'up/ConvTranspose', whose operators differ"
    )
    assert not found.groups


def test_a_plan_that_changes_one_use_alone_is_refused() -> None:
    run_ = a_run(siamese())
    plan = at_full_rank(run_)
    more = plan.layers | {"first/Conv_1": LayerPlan(method="svd", rank=2)}
    with pytest.raises(PlanError, match="'first/Conv_1' shares its weights with 'first/Conv'"):
        run_.apply(plan.model_copy(update={"layers": more}))


def test_a_plan_that_changes_uses_of_different_strides_is_refused() -> None:
    run_ = a_run(strided())
    plan = at_full_rank(run_)
    more = plan.layers | {"shared/Conv": LayerPlan(method="svd", rank=2)}
    with pytest.raises(PlanError, match="whose strides differ: leave it out"):
        run_.apply(plan.model_copy(update={"layers": more}))


def test_the_time_of_a_layer_is_that_of_all_its_uses() -> None:
    run_ = a_run(two_scales(), SETTINGS.model_copy(update={"latency": True, "batch": 2}))
    clock = Clock(run_)
    clock.time_whole()
    chain = (run_.compressible.layers["tower/Conv"].layer.geometry,)
    clock.measure([("tower/Conv", chain)])
    each_use = clock.probes("tower/Conv", chain)
    assert [probe.size for probe in each_use] == [(8, 8), (4, 4)]
    seconds = [clock.table.seconds(probe) or math.nan for probe in each_use]
    assert clock.times("tower/Conv", [chain])[chain] == pytest.approx(sum(seconds))


def test_a_run_that_was_cut_off_goes_on_with_the_moments_of_all_uses(tmp_path: Path) -> None:
    original = two_scales()
    work = hmc_onnx.Work(work_dir=tmp_path)
    whole = a_run(original).profile()
    assert Run(original, {"input": data_of(original)}, SETTINGS, work).profile() == whole
    for path in tmp_path.rglob("*"):
        if path.is_file() and "moments" not in str(path) and "sensitivity" in str(path):
            path.unlink()
    assert Run(original, {"input": data_of(original)}, SETTINGS, work).profile() == whole


def test_a_bias_that_unrelated_layers_share_counts_once_and_each_gets_its_own() -> None:
    b = Builder()
    bias, x = b.const(np.zeros(8, np.float32), "zeros"), "input"
    for i, inputs in enumerate((3, 8, 8)):
        x = b.node("Relu", b.node("Conv", x, b.const(b.normal(8, inputs, 3, 3, scale=0.2)), bias, at=f"{i}", **PADS))
    original = b.model(b.gemm(b.node("Flatten", b.node("GlobalAveragePool", x)), 8, 5), ("N", 3, 8, 8))
    before = total(normalise(original), inputs_of(original)).parameters
    assert before == 8 * 27 + 2 * 8 * 72 + 8 + 45
    whole, half = (hmc_onnx.compress(original, {"input": data_of(original)}, t, settings=SETTINGS) for t in (
        "params=1.0", "params=0.6",
    ))  # fmt: skip
    assert not whole.plan.changes and whole.plan.parameters == before
    after = total(normalise(half.model), inputs_of(original)).parameters
    assert after <= half.plan.parameters <= 0.6 * before
