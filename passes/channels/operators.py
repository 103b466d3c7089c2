"""How each operator passes channel ids on. One function a family; `register` names its operators.

A rule reads `tracer.ids` of the node's inputs, sets those of its outputs, and records the parameter axes
(`slots`), `ties` and closures that follow. A tensor without an entry in `tracer.ids` carries no channels
that could be removed. To add an operator, write a rule here; tests/passes/test_channels.py shows how to
prove it exact.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import onnx_graphsurgeon as gs

from passes.channels.tracing import Adjustment, Slot, Tracer, register
from passes.layers import why_not_a_layer
from passes.model import constant_value

__all__: list[str] = []


def close_all(node: gs.Node, tracer: Tracer, why: str) -> None:
    """Close the channels of every input: this use of the operator cannot follow them."""
    for tensor in node.inputs:
        if tensor.name in tracer.ids:
            tracer.close(tracer.ids[tensor.name], f"{node.op} node '{node.name}' {why}")


def pass_on(node: gs.Node, tracer: Tracer) -> None:
    """The first output has the ids of the first input."""
    if node.inputs[0].name in tracer.ids:
        tracer.ids[node.outputs[0].name] = tracer.ids[node.inputs[0].name]


@register("Conv")
def conv(node: gs.Node, tracer: Tracer) -> None:
    """Begins O channels; ends its I input channels, or, depthwise, passes them on."""
    reason = why_not_a_layer(node, tracer.shapes)
    x_ids = tracer.axis_ids(node.inputs[0], 1)
    if reason:
        close_all(node, tracer, f"cannot be changed: {reason}")
        return
    weight = node.inputs[1]
    outputs, inputs_a_group = weight.shape[:2]
    groups = node.attrs.get("group", 1)
    ids = tracer.fresh(outputs)
    tracer.slots.append(Slot(node, 1, 0, "produces", ids))
    if len(node.inputs) > 2 and not node.inputs[2].is_empty():
        tracer.slots.append(Slot(node, 2, 0, "follows", ids))
    if x_ids is None:
        close_all(node, tracer, "reads channels along another axis than 1")
        if groups > 1:
            tracer.close(ids, f"Conv node '{node.name}' is grouped over channels that cannot be removed")
    elif groups == 1:
        tracer.slots.append(Slot(node, 1, 1, "consumes", x_ids))
    elif inputs_a_group == 1:  # depthwise, with a multiplier of outputs / groups
        tracer.tie(np.repeat(x_ids, outputs // groups), ids)
        tracer.adjustments.append(Adjustment(node, x_ids, partial(_set_group, node, x_ids)))
    else:  # the same channels of every group go together, so that the groups stay equal
        tracer.slots.append(Slot(node, 1, 1, "consumes", x_ids[:inputs_a_group]))
        tracer.tie(x_ids.reshape(groups, -1), x_ids[None, :inputs_a_group])
        tracer.tie(ids.reshape(groups, -1), ids[None, : outputs // groups])
    tracer.ids[node.outputs[0].name] = ids.reshape(1, -1, *[1] * (len(weight.shape) - 2))


def _set_group(node: gs.Node, x_ids: np.ndarray, keep: np.ndarray) -> None:
    node.attrs["group"] = int(keep[x_ids].sum())


@register("Gemm")
def gemm(node: gs.Node, tracer: Tracer) -> None:
    """y = x W + b with constant W and b; the axes of W follow transB."""
    reason = why_not_a_layer(node, tracer.shapes)
    if reason:
        close_all(node, tracer, f"cannot be changed: {reason}")
        return
    _linear(node, tracer, 0 if node.attrs.get("transB", 0) else 1)
    if len(node.inputs) > 2 and not node.inputs[2].is_empty():
        bias = node.inputs[2]
        ids = tracer.ids[node.outputs[0].name].ravel()
        tracer.slots.append(Slot(node, 2, len(bias.shape) - 1, "follows", ids))


@register("MatMul")
def matmul(node: gs.Node, tracer: Tracer) -> None:
    """x @ W with constant W (I, O)."""
    if not isinstance(node.inputs[1], gs.Constant) or len(node.inputs[1].shape) != 2:
        close_all(node, tracer, "multiplies by something else than a constant matrix")
        return
    _linear(node, tracer, 1)


def _linear(node: gs.Node, tracer: Tracer, output_axis: int) -> None:
    x, weight = node.inputs[:2]
    rank = tracer.rank(node.outputs[0]) or 2
    ids = tracer.fresh(weight.shape[output_axis])
    x_ids = tracer.axis_ids(x, rank - 1) if x.name in tracer.ids else None
    if x_ids is not None:
        tracer.slots.append(Slot(node, 1, 1 - output_axis, "consumes", x_ids))
    else:
        close_all(node, tracer, "reads channels along another axis than the last")
    tracer.slots.append(Slot(node, 1, output_axis, "produces", ids))
    tracer.ids[node.outputs[0].name] = ids.reshape(*[1] * (rank - 1), -1)


@register("BatchNormalization")
def batch_normalization(node: gs.Node, tracer: Tracer) -> None:
    """One scale, shift, mean and variance a channel."""
    ids = tracer.axis_ids(node.inputs[0], 1)
    if ids is None or not all(isinstance(t, gs.Constant) for t in node.inputs[1:5]) or len(node.outputs) > 1:
        close_all(node, tracer, "has no constant statistics")
        return
    tracer.slots.extend(Slot(node, i, 0, "follows", ids) for i in range(1, 5))
    pass_on(node, tracer)


@register("Relu", "LeakyRelu", "Elu", "Selu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Softplus", "Softsign")
@register("Abs", "Neg", "Exp", "Sqrt", "Erf", "Mish", "Gelu", "Celu", "ThresholdedRelu", "Identity", "Cast", "Clip")
@register("Dropout")
def elementwise(node: gs.Node, tracer: Tracer) -> None:
    """Each output value is a function of the input value at its place."""
    pass_on(node, tracer)


@register("GlobalAveragePool", "GlobalMaxPool", "AveragePool", "MaxPool", "LpPool", "GlobalLpPool")
def pool(node: gs.Node, tracer: Tracer) -> None:
    """Works on each channel alone."""
    if tracer.axis_ids(node.inputs[0], 1) is None:
        close_all(node, tracer, "reads channels along another axis than 1")
    else:
        pass_on(node, tracer)


@register("Add", "Sub", "Mul", "Div")
def binary(node: gs.Node, tracer: Tracer) -> None:
    """Ties two activations; a constant with one value a channel follows them."""
    a, b = node.inputs
    ids_a, ids_b = tracer.ids.get(a.name), tracer.ids.get(b.name)
    if ids_a is not None and ids_b is not None:
        if _same_extent(ids_a, ids_b):
            tracer.tie(ids_a, ids_b)
            tracer.ids[node.outputs[0].name] = ids_a if ids_a.ndim >= ids_b.ndim else ids_b
        else:
            close_all(node, tracer, "broadcasts one activation's channels over another's")
        return
    if ids_a is None and ids_b is None:
        return
    ids, other = (ids_a, b) if ids_a is not None else (ids_b, a)
    assert ids is not None
    value = constant_value(other)
    if value is None:
        close_all(node, tracer, f"combines channels with '{other.name}', which carries none")
        return
    axis = int(np.argmax(ids.shape)) - ids.ndim  # from the end, where broadcasting aligns shapes
    extent = value.shape[axis] if value.ndim >= -axis else 1
    if value.ndim > ids.ndim or ids.size != ids.shape[axis] or extent not in (1, ids.size):
        close_all(node, tracer, f"broadcasts channels against the constant '{other.name}'")
        return
    if extent > 1:
        tracer.slots.append(Slot(node, 1 if other is b else 0, value.ndim + axis, "follows", ids.ravel()))
    tracer.ids[node.outputs[0].name] = ids


def _same_extent(a: np.ndarray, b: np.ndarray) -> bool:
    return a.size == b.size and np.broadcast_shapes(a.shape, b.shape) in (a.shape, b.shape)


@register("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2")
def reduce(node: gs.Node, tracer: Tracer) -> None:
    """Reduces axes that carry no channels."""
    ids = tracer.ids.get(node.inputs[0].name)
    if ids is None:
        return
    axes = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 1 and not node.inputs[1].is_empty():
        axes = constant_value(node.inputs[1])
        if axes is None:
            close_all(node, tracer, "has computed axes")
            return
    if axes is not None and len(axes) == 0 and not node.attrs.get("noop_with_empty_axes", 0):
        axes = None
    axes = tuple(int(x) % ids.ndim for x in (range(ids.ndim) if axes is None else axes))
    if any(ids.shape[x] > 1 for x in axes):
        close_all(node, tracer, "reduces over channels")
        return
    keep = node.attrs.get("keepdims", 1)
    tracer.ids[node.outputs[0].name] = ids if keep else np.squeeze(ids, axes)


@register("Flatten")
def flatten(node: gs.Node, tracer: Tracer) -> None:
    """(N, C, H, W) to (N, C H W): each channel H W times."""
    ids = tracer.ids.get(node.inputs[0].name)
    shape = tracer.shapes.get(node.inputs[0].name)
    if ids is None:
        return
    axis = node.attrs.get("axis", 1)
    if shape is None or None in shape[1:] or axis % len(shape) != 1 or ids.shape[0] > 1:
        close_all(node, tracer, "has an input of unknown size, or an axis other than 1")
        return
    tracer.ids[node.outputs[0].name] = np.broadcast_to(ids, (1, *shape[1:])).reshape(1, -1)  # type: ignore[arg-type]


@register("Reshape")
def reshape(node: gs.Node, tracer: Tracer) -> None:
    """Keeps channels on one axis, such as (N, C, 1, 1) to (N, C); the constant target shape is adjusted."""
    ids = tracer.ids.get(node.inputs[0].name)
    if ids is None:
        return
    shape, target = tracer.shapes.get(node.inputs[0].name), tracer.shapes.get(node.outputs[0].name)
    wanted = constant_value(node.inputs[1])
    if shape is None or target is None or wanted is None or None in (*shape[1:], *target[1:]) or len(target) < 2:
        close_all(node, tracer, "has a computed or unknown shape")
        return
    if ids.shape[0] > 1 or math.prod(shape[1:]) != math.prod(target[1:]):  # type: ignore[arg-type]
        close_all(node, tracer, "mixes channels with the batch")
        return
    full = np.broadcast_to(ids, (1, *shape[1:])).reshape(1, *target[1:])  # type: ignore[arg-type]
    new: np.ndarray = full
    for axis in range(2, full.ndim):
        first = np.take(new, [0], axis)
        new = first if (new == first).all() else new
    if new.shape[1] != new.size:
        close_all(node, tracer, "spreads channels over several axes")
        return
    tracer.ids[node.outputs[0].name] = new
    if wanted[1] not in (0, -1) and new.size > 1:
        tracer.adjustments.append(Adjustment(node, new.ravel(), partial(_resize, node, 1, 1, new.ravel())))


def _resize(node: gs.Node, index: int, entry: int, ids: np.ndarray, keep: np.ndarray) -> None:
    """Set one entry of a constant shape to the number of channels kept."""
    value = np.array(constant_value(node.inputs[index]))
    value[entry] = keep[ids].sum()
    node.inputs[index] = gs.Constant(f"{node.name}:shape", value)


@register("Pad")
def pad(node: gs.Node, tracer: Tracer) -> None:
    """Padding of channels begins channels of a constant; padding of other axes passes ids on."""
    ids = tracer.ids.get(node.inputs[0].name)
    if ids is None:
        return
    pads = node.attrs.get("pads")
    if pads is None and len(node.inputs) > 1:
        pads = constant_value(node.inputs[1])
    if pads is None or len(pads) != 2 * ids.ndim or (len(node.inputs) > 3 and not node.inputs[3].is_empty()):
        close_all(node, tracer, "has computed pads, or pads of some axes only")
        return
    axis = int(np.argmax(ids.shape)) if ids.size > 1 else 1
    before, after = int(pads[axis]), int(pads[axis + ids.ndim])
    mode = node.attrs.get("mode", "constant")
    if before == after == 0:
        pass_on(node, tracer)
        return
    if tracer.axis_ids(node.inputs[0], axis) is None or before < 0 or after < 0 or mode != "constant":
        close_all(node, tracer, f"crops channels or pads them by mode '{mode}'")
        return
    first, last = tracer.fresh(before), tracer.fresh(after)
    shape = [1] * ids.ndim
    shape[axis] = -1
    whole = np.concatenate([first, ids.ravel(), last])
    # pads cannot shrink below zero channels, and shrink only through ties with channels that exist
    tracer.ids[node.outputs[0].name] = whole.reshape(shape)
    tracer.adjustments.append(Adjustment(node, np.concatenate([first, last]), partial(_repad, node, axis, first, last)))


def _repad(node: gs.Node, axis: int, first: np.ndarray, last: np.ndarray, keep: np.ndarray) -> None:
    in_attribute = "pads" in node.attrs
    pads = np.array(node.attrs["pads"] if in_attribute else constant_value(node.inputs[1]))
    pads[axis], pads[axis + len(pads) // 2] = keep[first].sum(), keep[last].sum()
    if in_attribute:
        node.attrs["pads"] = pads.tolist()
    else:
        node.inputs[1] = gs.Constant(f"{node.name}:pads", pads)


@register("Slice")
def slice_(node: gs.Node, tracer: Tracer) -> None:
    """Slices of axes without channels pass ids on."""
    ids = tracer.ids.get(node.inputs[0].name)
    if ids is None:
        return
    axes = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 3 and not node.inputs[3].is_empty():
        axes = constant_value(node.inputs[3])
    if axes is None or any(ids.shape[int(a)] > 1 for a in axes):
        close_all(node, tracer, "slices channels, or has computed axes")
        return
    pass_on(node, tracer)


@register("Transpose")
def transpose(node: gs.Node, tracer: Tracer) -> None:
    """Moves the ids' axes with the tensor's."""
    ids = tracer.ids.get(node.inputs[0].name)
    if ids is not None:
        tracer.ids[node.outputs[0].name] = np.transpose(ids, node.attrs.get("perm"))


@register("Squeeze", "Unsqueeze")
def squeeze(node: gs.Node, tracer: Tracer) -> None:
    """Adds or drops axes of size 1."""
    ids = tracer.ids.get(node.inputs[0].name)
    if ids is None:
        return
    axes = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 1:
        axes = constant_value(node.inputs[1])
    if axes is None:
        close_all(node, tracer, "has no constant axes")
        return
    axes = tuple(int(a) for a in axes)
    if node.op == "Squeeze":
        if any(ids.shape[a] > 1 for a in axes):
            close_all(node, tracer, "drops a channel axis of one channel")
            return
        tracer.ids[node.outputs[0].name] = np.squeeze(ids, axes)
    else:
        tracer.ids[node.outputs[0].name] = np.expand_dims(ids, axes)


@register("Concat")
def concat(node: gs.Node, tracer: Tracer) -> None:
    """Joins channels along their axis, or ties them along another."""
    parts = [tracer.ids.get(t.name) for t in node.inputs]
    present = [p for p in parts if p is not None]
    if not present:
        return
    axis = node.attrs["axis"]
    if len(present) < len(parts) or any(p.ndim != present[0].ndim for p in present):
        close_all(node, tracer, "joins channels with a tensor that carries none")
        return
    if all(tracer.axis_ids(t, axis) is not None for t in node.inputs):
        tracer.ids[node.outputs[0].name] = np.concatenate(present, axis)
        return
    if any(p.shape[axis] > 1 for p in present) or len({p.shape for p in present}) > 1:
        close_all(node, tracer, "joins tensors whose channels do not line up")
        return
    for p in present[1:]:
        tracer.tie(present[0], p)
    tracer.ids[node.outputs[0].name] = present[0]


@register("Shape", "Size", "Constant", "ConstantOfShape")
def no_channels(node: gs.Node, tracer: Tracer) -> None:
    """Reads sizes, or nothing: what becomes of a channel count is for the reader's rule to decide.

    A shape that is computed from a channel count and then used closes the group at its use, since
    Reshape, Slice and Pad with computed parameters close what they touch.
    """
