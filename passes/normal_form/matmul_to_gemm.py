"""Rewrites MatMul by a constant matrix as Gemm, the one form in which analyses look for fully connected layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from passes.graph.graph_pass import GraphPass
from passes.graph.model import Model, element_type
from passes.graph.naming import unused_name
from passes.graph.shapes import Shape
from passes.normal_form.affine import affine, is_float, take_over

__all__ = ["MatMulToGemm"]


@dataclass(frozen=True)
class MatMulToGemm(GraphPass):
    """Rewrite x @ W, and x @ W + b, as a Gemm, with x (N, …, I), constant W (I, O) and b (O).

    An x of more than two axes holds several vectors for each image, such as the tokens of a transformer block
    (N, T, I), the pixels of an image in NHWC, or the steps that a recurrent layer takes (T, N, I). It is flattened to a
    matrix with one vector a row before the Gemm, and the result is reshaped behind it. Neither copies anything, so this
    takes no more time than the MatMul. One axis may be longer for a batch of two images than for one; the lengths of
    the others are constants of the Reshape, and must be known.

    Constants must be initializers; MatMuls and Adds with others are left as they are. MatMuls that share their matrix
    go on sharing it, and share the bias where it is the same.

    Requires:
        What every `GraphPass` does.

    Ensures:
        The model computes the same, but for rounding.
    """

    def rewrite(self, model: Model) -> int:
        """Rewrite in place; returns how many MatMuls became Gemms."""
        outputs = {t.name for t in model.graph.outputs}
        matmuls = [n for n in model.graph.nodes if n.op == "MatMul" and isinstance(n.inputs[1], gs.Constant)]
        shapes, of_two = ({}, {}) if not matmuls else (model.shapes_at(_with_images(model, n)) for n in (1, 2))
        fused = 0
        biases: dict[tuple[str, bytes], gs.Constant] = {}  # by the name of the matrix, and the values

        def append_bias(matmul: gs.Node, values: np.ndarray) -> None:
            key = (matmul.inputs[1].name, values.tobytes())
            if key not in biases:
                biases[key] = gs.Constant(unused_name(model.graph, f"{matmul.name}:bias"), values)
            matmul.inputs.append(biases[key])

        for matmul in matmuls:
            product, weight = matmul.outputs[0], matmul.inputs[1]
            shape = shapes.get(matmul.inputs[0].name, ())
            other = of_two.get(matmul.inputs[0].name, ())
            rows = _rows(shape, other)
            if rows is None:
                continue
            if weight.values.ndim != 2 or not is_float(weight):
                continue
            matmul.op = "Gemm"
            fused += 1
            bias, add = _added(product, weight.shape[1], len(shape))
            if bias is not None and add is not None and product.name not in outputs:
                append_bias(matmul, bias.astype(element_type(weight)))
                take_over(matmul, add)
            elif model.graph.opset < 11:  # a Gemm had to have a bias
                append_bias(matmul, np.zeros(weight.shape[1], element_type(weight)))
            if len(shape) > 2:
                _between_reshapes(model.graph, matmul, rows, weight.shape[1])
        model.graph.cleanup()
        return fused


def _rows(of_one: Shape, of_two: Shape) -> list[int] | None:
    """The lengths of all axes but the last, -1 for the axis that is longer for two images; the first if none is.

    Args:
        of_one, of_two: the shape of a tensor for one image and for two.

    Returns:
        None if more than one axis is longer, or the length of another is not known.
    """
    if len(of_one) < 2 or len(of_one) != len(of_two):
        return None
    longer = [i for i, (a, b) in enumerate(zip(of_one[:-1], of_two[:-1], strict=True)) if a != b or a is None] or [0]
    return [-1 if i in longer else int(d or 0) for i, d in enumerate(of_one[:-1])] if len(longer) == 1 else None


def _between_reshapes(graph: gs.Graph, gemm: gs.Node, rows: list[int], outputs: int) -> None:
    """Flatten a Gemm's input (*rows, I) to a matrix, and reshape its output to (*rows, O); an open length is -1."""
    x, y = gemm.inputs[0], gemm.outputs[0]
    flat = gs.Variable(unused_name(graph, f"{gemm.name}:flat"), x.dtype)
    response = gs.Variable(unused_name(graph, f"{gemm.name}:response"), y.dtype)
    one_row = rows[0] == -1 and all(d == 1 for d in rows[1:])  # for each image: then the Reshape can copy the batch
    shape = np.array([0, *rows[1:], outputs] if one_row else [*rows, outputs])
    target = gs.Constant(unused_name(graph, f"{gemm.name}:shape"), shape)
    axis = {"axis": 1 if one_row else len(rows)}
    before = gs.Node("Flatten", unused_name(graph, f"{gemm.name}:flatten"), axis, [x], [flat])
    gemm.inputs[0], gemm.outputs[0] = flat, response
    after = gs.Node("Reshape", unused_name(graph, f"{gemm.name}:reshape"), {}, [response, target], [y])
    at = next(i for i, n in enumerate(graph.nodes) if n is gemm)
    graph.nodes[at : at + 1] = [before, gemm, after]


def _with_images(model: Model, count: int) -> dict[str, tuple[int, ...]]:
    """Input shapes with an open batch set to `count`; below opset 14 a Reshape by an open batch would have no rank."""
    return {t.name: (count, *t.shape[1:]) for t in model.graph.inputs if t.shape and not isinstance(t.shape[0], int)}


def _added(product: gs.Tensor, outputs: int, rank: int) -> tuple[np.ndarray | None, gs.Node | None]:
    """The constant (O,), float64, that is added to a product, and its Add, if only that reads it; else None twice."""
    if len(product.outputs) != 1 or product.outputs[0].op != "Add":
        return None, None
    found = affine(product.outputs[0], outputs, rank, rank - 1)
    return (None, None) if found is None else (found[1], product.outputs[0])
