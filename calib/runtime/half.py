"""Conversion of models to float16 with onnxruntime's converter; inputs and outputs keep their types.

A layer whose activations leave the range of float16 on the calibration images stays in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx

from calib.runtime.quantisation import FeedReader
from calib.runtime.quantiser import CalibrationMethod, create_calibrator
from passes.core.errors import ModelError
from passes.graph.protos import first_line
from passes.graph.sorting import in_topological_order

__all__ = ["in_half", "overflowing"]

# Magnitude above which an activation counts as overflowing: half the largest float16, as a margin for unseen images.
LARGEST = float(np.finfo(np.float16).max) / 2


def in_half(proto: onnx.ModelProto, batches: Sequence[Mapping[str, np.ndarray]] = ()) -> onnx.ModelProto:
    """A copy of a model that computes in float16; its inputs and outputs keep their types.

    Args:
        proto: the model, in float32; it is not changed.
        batches: feeds to search for overflow (see `overflowing`); empty for a model that is only timed.

    Raises:
        ModelError: the converter fails.
    """
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16  # noqa: PLC0415 heavy

    own = onnx.ModelProto()
    own.CopyFrom(proto)
    kept = overflowing(proto, batches) if batches else []
    try:
        converted = convert_float_to_float16(
            own, keep_io_types=True, op_block_list=list(DEFAULT_OP_BLOCK_LIST), node_block_list=kept
        )
        return in_topological_order(without_detours(converted) if kept else converted)
    except Exception as e:  # the converter's errors share no base
        raise ModelError(f"onnxruntime's converter cannot bring the model to float16: {first_line(e)}") from e


def overflowing(proto: onnx.ModelProto, batches: Sequence[Mapping[str, np.ndarray]]) -> list[str]:
    """Names of the nodes that write or read a tensor that exceeds `LARGEST` on these feeds, in graph order."""
    operators = sorted({node.op_type for node in proto.graph.node})
    with TemporaryDirectory(prefix="hmc_onnx-") as name:
        path, augmented = Path(name) / "model.onnx", Path(name) / "augmented.onnx"
        own = onnx.ModelProto()
        own.CopyFrom(proto)  # saving with external data changes what is saved
        onnx.save_model(own, path, save_as_external_data=True)
        calibrator = create_calibrator(
            path,
            operators,
            augmented_model_path=augmented.as_posix(),
            calibrate_method=CalibrationMethod.MinMax,
            providers=["CPUExecutionProvider"],
        )
        calibrator.collect_data(FeedReader(batches))
        ranges = calibrator.compute_data()
    large = {name for name, data in ranges.items() if max(np.abs(np.stack(data.range_value)).ravel()) > LARGEST}
    return [node.name for node in proto.graph.node if large.intersection((*node.input, *node.output))]


def without_detours(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself, in which float32 no longer becomes float16 and float32 again between nodes of float32.

    The converter casts what each node that stays in float32 reads and writes, and a large value would be infinite in
    between.
    """
    casts = {n.output[0]: n for n in proto.graph.node if n.op_type == "Cast"}
    to = {name: next(a.i for a in n.attribute if a.name == "to") for name, n in casts.items()}
    direct = {
        name: casts[cast.input[0]].input[0]
        for name, cast in casts.items()
        if to[name] == onnx.TensorProto.FLOAT and to.get(cast.input[0]) == onnx.TensorProto.FLOAT16
    }
    for name, source in direct.items():
        casts[name].input[0] = source  # it may be an output of the model, which keeps its name
    for node in proto.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = direct.get(name, name)
    read = {name for node in proto.graph.node for name in node.input} | {value.name for value in proto.graph.output}
    # a tensor that several nodes read is cast once for each of them
    made: dict[str, onnx.NodeProto] = {n.output[0]: n for n in proto.graph.node if n.op_type != "Cast"}
    kept = [
        n
        for n in proto.graph.node
        if n.op_type != "Cast" or (n.output[0] in read and made.setdefault(n.output[0], n) is n)
    ]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    return proto
