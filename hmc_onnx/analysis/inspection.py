"""`inspect`: tables of what a model consists of and how it can be compressed, made without data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from rich.console import Group
from rich.markup import escape

from calib.runtime.observing import observe
from hmc_onnx.analysis.compressible import LAYERS, CompressibleLayer, owners
from hmc_onnx.analysis.find_compressible import find_compressible
from hmc_onnx.analysis.model_inputs import check_evaluation_mode, signature
from hmc_onnx.analysis.narrow_table import NarrowTable
from passes.channels import ChannelGroup
from passes.core.declined import Declined, sentences
from passes.core.errors import ModelError
from passes.decompose import DECOMPOSITIONS
from passes.graph.cost import costs
from passes.graph.model import Model, digest
from passes.graph.outputs import parse_kinds
from passes.normal_form.normalise import normalise

__all__ = ["closed_shapes", "describe", "inspect"]


def inspect(
    proto: onnx.ModelProto,
    size: tuple[int, int] | None = None,
    layout: str = "NCHW",
    outputs: Sequence[str] = (),
) -> Group:
    """Tables of outputs, layers and channel groups.

    Args:
        proto: the model.
        size: height and width to assume where the model leaves them open.
        layout: axis order of the input, "NCHW" or "NHWC".
        outputs: "NAME=kind" for each output whose kind would be guessed wrongly.

    Raises:
        ModelError: the model leaves sizes open and `size` is not given, or the model is in training mode.
        SettingsError: an entry of `outputs` is malformed.
    """
    inputs = closed_shapes(proto, size, layout)
    model = observe(normalise(proto), inputs)
    check_evaluation_mode(model)
    cost, shapes = costs(model, inputs), model.shapes_at(inputs)
    compressible = find_compressible(model, inputs)
    layers = NarrowTable(
        "Layers that compute",
        ("layer", "operator", "output", "kernel", "MACs", "parameters", "can be done"),
        right=("MACs", "parameters"),
        sentences=("can be done",),
        dropped=("output", "kernel", "operator", "parameters", "MACs"),
    )
    model.kinds = parse_kinds(outputs)
    groups, of = compressible.channels.groups, owners(compressible.layers)
    for node in model.graph.nodes:
        if node.op not in LAYERS:
            continue
        weight = shapes.get(node.inputs[1].name, ())
        subject = of.get(node.name)
        layers.add_row(
            escape(node.name),
            node.op,
            _dims(shapes.get(node.outputs[0].name, ())),
            _dims(weight),
            f"{cost[node.name].macs:,}",
            f"{cost[node.name].parameters:,}",
            escape(_possible(subject, node.name) if subject else _declined(node.name, node.op, compressible.declined)),
        )
    table = NarrowTable(
        "Channel groups: what is pruned together",
        ("group", "channels", "written by", "read by", "can be pruned"),
        right=("channels",),
        sentences=("written by", "read by", "can be pruned"),
        dropped=("read by", "written by"),
    )
    for group in groups:
        reason = compressible.declined.get(f"channels of {group.name}")
        table.add_row(
            escape(group.name),
            str(group.size),
            escape(_members(group, "produces")),
            escape(_members(group, "consumes")),
            "yes" if reason is None else escape(f"no: {reason}"),
        )
    why_alone = "why it is left alone"
    alone = NarrowTable("Layers inside other nodes", ("layer", why_alone), sentences=(why_alone,))
    for layer, why in compressible.declined_inside.items():
        alone.add_row(escape(layer), escape(str(why)))
    macs = sum(c.macs for c in cost.values())
    parameters = sum(c.parameters for c in cost.values())
    tables = [_outputs(model), layers, table, *([alone] if compressible.declined_inside else [])]
    return Group(
        *tables,
        f"In all: {macs:,} MACs an image, {parameters:,} parameters",
        "Digest, of the contents (metadata, too) and not of the file:",
        digest(proto),
    )


def describe(
    proto: onnx.ModelProto,
    size: tuple[int, int] | None = None,
    layout: str = "NCHW",
    outputs: Sequence[str] = (),
) -> dict[str, Any]:
    """What `inspect` shows, for programs: of what JSON has. Takes and raises what `inspect` does.

    Sizes that are not known are None. `declined` is why something is left as it is, None where it is not.
    """
    inputs = closed_shapes(proto, size, layout)
    model = observe(normalise(proto), inputs)
    check_evaluation_mode(model)
    model.kinds = parse_kinds(outputs)
    cost, shapes, compressible = costs(model, inputs), model.shapes_at(inputs), find_compressible(model, inputs)
    of, told = owners(compressible.layers), sentences(compressible.declined)
    layers = [
        {
            "name": node.name,
            "operator": node.op,
            "output": list(shapes.get(node.outputs[0].name, ())),
            "weight": list(shapes.get(node.inputs[1].name, ())),
            "macs": cost[node.name].macs,
            "parameters": cost[node.name].parameters,
            "declined": None if node.name in of else _declined(node.name, node.op, compressible.declined),
        }
        for node in model.graph.nodes
        if node.op in LAYERS
    ]
    groups = [
        {
            "name": group.name,
            "channels": group.size,
            "written_by": [s.node.name for s, _ in group.members("produces")],
            "read_by": [s.node.name for s, _ in group.members("consumes")],
            "declined": told.get(f"channels of {group.name}"),
        }
        for group in compressible.channels.groups
    ]
    return {
        "digest": digest(proto),
        "macs": sum(c.macs for c in cost.values()),
        "parameters": sum(c.parameters for c in cost.values()),
        "outputs": [{"name": o.name, "what": o.what, "judged_by": o.judged_by} for o in model.outputs],
        "layers": layers,
        "groups": groups,
        "inside": sentences(compressible.declined_inside),
    }


def _outputs(model: Model) -> NarrowTable:
    """The table of outputs: what each is, and the measure by which a compressed model's is compared with it."""
    columns = ("output", "what it is", "compared by")
    table = NarrowTable("Outputs", columns, sentences=columns[1:])
    for output in model.outputs:
        table.add_row(escape(output.name), output.what, output.judged_by)
    return table


def closed_shapes(
    proto: onnx.ModelProto, size: tuple[int, int] | None = None, layout: str = "NCHW"
) -> dict[str, tuple[int, ...]]:
    """Shape of each input, with batch 1 and the given height and width where these are open; raises ModelError."""
    return {name: _closed(name, shape, size, layout) for name, (_, shape) in signature(proto).items()}


def _closed(name: str, shape: tuple[int | None, ...], size: tuple[int, int] | None, layout: str) -> tuple[int, ...]:
    dims = list(shape)
    if dims and dims[0] is None:
        dims[0] = 1
    if size is not None and len(dims) == 4:
        first = 2 if layout == "NCHW" else 1
        for axis, given in zip((first, first + 1), size, strict=True):
            dims[axis] = given if dims[axis] is None else dims[axis]
    closed = tuple(d for d in dims if d is not None)
    if len(closed) < len(dims):
        shown = ", ".join("?" if d is None else str(d) for d in dims)
        if len(dims) != 4:
            raise ModelError(
                f"the model leaves axes of its input '{name}' open ({shown}), which is not of images: "
                "export it with that input's shape fixed"
            )
        raise ModelError(f"the model leaves the size of its input '{name}' open ({shown}): give `size=(HEIGHT, WIDTH)`")
    return closed


def _possible(subject: CompressibleLayer, node: str) -> str:
    geometry = subject.layer.geometry
    if node != subject.layer.name:
        return f"what is done to '{subject.layer.name}', whose weights it shares"
    if subject.grouped:
        return "prune whole groups" if subject.input_group is not None else "prune outputs, as many of each group"
    methods = [name for name, d in DECOMPOSITIONS.items() if d.why_not(geometry) is None]
    ends = [e for e, g in (("inputs", subject.input_group), ("outputs", subject.output_group)) if g is not None]
    prune = f"; prune {' and '.join(ends)}" if ends else "; its channels cannot be pruned"
    return f"decompose ({', '.join(methods)}){prune}"


def _declined(name: str, op: str, declined: dict[str, Declined]) -> str:
    return f"nothing: {declined.get(name, f'{op} is not decomposed')}"


def _members(group: ChannelGroup, role: str) -> str:
    """Node names; a node that does not carry all classes in order is followed by those that it carries."""
    parts = []
    for slot, classes in group.members(role):
        whole = len(classes) == group.size and (classes == range(group.size)).all()
        parts.append(slot.node.name if whole else f"{slot.node.name} {_ranges(classes.tolist())}")
    return ", ".join(parts)


def _ranges(classes: list[int]) -> str:
    """Classes as ranges, [0-15, 40-47], in the order of the axis; with more than eight ranges, only their number."""
    runs: list[list[int]] = []
    for c in classes:
        if runs and c == runs[-1][1] + 1:
            runs[-1][1] = c
        else:
            runs.append([c, c])
    shown = [f"{a}-{b}" if a != b else str(a) for a, b in runs]
    return f"[{', '.join(shown)}]" if len(shown) <= 8 else f"[{len(classes)} entries]"


def _dims(shape: tuple[int | None, ...]) -> str:
    return "×".join("?" if d is None else str(d) for d in shape)
