"""Any model rewritten as far as its graph can be, with proof at each step that what it computes is the same."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
from zoo import assert_same, run

from calib.runtime.observing import observe
from hmc_onnx.analysis.compressible import Compressible
from hmc_onnx.analysis.find_compressible import find_compressible
from hmc_onnx.analysis.model_inputs import signature
from passes.channels import ChannelGroup, Channels
from passes.decompose import DECOMPOSITIONS
from passes.graph.cost import total
from passes.graph.layers import OPERATORS, layer_of, replace_by_chain, why_not_a_layer
from passes.graph.model import Model
from passes.graph.shapes import infer_shapes
from passes.graph.signature import same_signature
from passes.normal_form.normalise import normalise

# The decomposition of wider layers takes seconds, and of more layers of a deep network too.
MOST_FEATURES, MOST_LAYERS = 600, 30

Feeds = dict[str, np.ndarray]


def images_of(model: onnx.ModelProto, count: int) -> Feeds:
    """Noise for the one input, of 16 along axes that are open."""
    ((name, (dtype, shape)),) = signature(model).items()
    return {name: np.random.default_rng(0).normal(size=(count, *(d or 16 for d in shape[1:]))).astype(dtype)}


def check_sound(original: onnx.ModelProto, changed: onnx.ModelProto) -> None:
    """The changed model is valid, all its shapes can be inferred, and it can stand in for the original."""
    onnx.checker.check_model(changed, full_check=True)
    onnx.shape_inference.infer_shapes(changed, check_type=True, strict_mode=True)
    same_signature(original, changed)


def check_rewritten(original: onnx.ModelProto, feeds: Feeds) -> tuple[Compressible, float]:
    """Normalise a model, prune a third of all channel groups, decompose layers, and compare outputs at each step.

    Exactness can be asked for, as the channels that go are those that no layer looks at, and the chains in the place
    of layers are of full rank.

    Args:
        original: a model of one input.
        feeds: images.

    Returns:
        What there was to be compressed, and the share of the MACs that pruning has left.
    """
    inputs = {name: (1, *values.shape[1:]) for name, values in feeds.items()}
    model = observe(normalise(original), inputs)
    assert_same(run(model.finished(), feeds), run(original, feeds), 1e-4)

    compressible = find_compressible(model, inputs)
    channels = compressible.channels
    removed = {group.name: spare(group) for group in channels.groups if group.name in compressible.groups}
    assert len(removed) == len(compressible.groups)
    blind(channels, removed)
    blinded = model.finished()
    expected = run(blinded, feeds)
    (other, *_) = run(blinded, {name: values / 2 for name, values in feeds.items()})
    assert np.abs(expected[0] - other).max() > 1e-3 * np.abs(expected[0]).max()  # else any network were the same
    before = total(model, inputs).macs
    channels.remove(removed)
    model.forget_shapes()
    pruned = model.finished()
    assert_same(run(pruned, feeds), expected, 1e-4)
    share = total(model, inputs).macs / before

    assert decompose(observe(model, inputs), inputs)
    model.forget_shapes()
    model.graph.cleanup().toposort()
    chained = model.finished()
    check_sound(original, chained)
    assert len(chained.graph.node) > len(pruned.graph.node)
    assert_same(run(chained, feeds), expected, 1e-3)
    if len(expected[0]) > 1:
        assert_same(run(chained, {name: values[:1] for name, values in feeds.items()}), [expected[0][:1]], 1e-3)
    return compressible, share


def spare(group: ChannelGroup) -> np.ndarray:
    """Every third channel of a group, of all that carries it; of a group of two the first, and of one none."""
    if group.size == 1:
        return np.zeros(0, int)
    taken = np.arange(group.size)[1::3] if group.size > 2 else np.arange(1)
    for part in (*group.parts, *group.classes):
        assert not np.isin(part, taken).all()
    return taken


def blind(channels: Channels, removed: dict[str, np.ndarray]) -> None:
    """Give all layers that read these channels weights of zero for them; larger others, so that images do not fade."""
    for group in channels.groups:
        for slot, classes in group.members("consumes"):
            constant = slot.node.inputs[slot.index]
            values = np.array(constant.values)
            gone = np.isin(classes, removed.get(group.name, []))
            np.moveaxis(values, slot.axis, 0)[gone] = 0
            constant.values = values * np.float32((len(gone) / (~gone).sum()) ** 0.5)


def decompose(model: Model, inputs: dict[str, tuple[int, ...]]) -> int:
    """Put chains of full rank in the place of layers, by two methods in turn; how many there were."""
    shapes, methods, count = infer_shapes(model, inputs), itertools.cycle(("svd", "spatial")), 0
    nodes = [n for n in model.graph.nodes if n.op in OPERATORS and why_not_a_layer(n, shapes) is None]
    for node in nodes[:: 1 + len(nodes) // MOST_LAYERS]:
        layer = layer_of(node, shapes)
        method = DECOMPOSITIONS[next(methods)]
        method = DECOMPOSITIONS["svd"] if method.why_not(layer.geometry) else method
        if method.why_not(layer.geometry) or layer.geometry.features > MOST_FEATURES:  # grouped, or wide
            continue
        rank, second = method.max_rank(layer.geometry), np.eye(layer.geometry.features)
        links = method.links(layer.geometry, rank)
        factors = method.factors(layer.geometry, layer.weight, second, rank)
        replace_by_chain(model.graph, node, list(zip(links, factors, strict=True)), layer.bias)
        count += 1
    return count
