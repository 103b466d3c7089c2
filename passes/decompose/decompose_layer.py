"""Replaces one layer by a chain of layers of low rank."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import PostconditionError

from passes.core.errors import ModelError
from passes.decompose.base import Decomposition
from passes.decompose.registry import DECOMPOSITIONS, why_no_rank
from passes.graph.graph_pass import GraphPass, require_nodes
from passes.graph.layers import OPERATORS, Geometry, Layer, layer_of, replace_by_chain, why_not_a_layer
from passes.graph.model import Model

__all__ = ["DecomposeLayer"]


@dataclass(frozen=True)
class DecomposeLayer(GraphPass):
    """Replace a Conv, ConvTranspose or Gemm by a chain of nodes, named `<node>/0`, `<node>/1` and so on.

    The links of a Conv are Convs, those of a Gemm are Gemms; one link of a ConvTranspose is a ConvTranspose, and the
    others are 1×1 Convs.

    Attributes:
        node: name of the layer.
        method: name of a decomposition in `passes.decompose.DECOMPOSITIONS`.
        rank: from 1 to the decomposition's `max_rank`, at which the chain is exact.
        factors: weights of the chain's links, float64, each of its link's `weight_shape`; None: those that the
            decomposition finds without data, with the identity as second moment.
        bias: bias of the last link, float64 (outputs,); None: the layer's own.

    Requires:
        Each node has a name of its own, and `node` is a layer with constant weights that the method is for.

    Ensures:
        The layer is gone, and its chain is there.
    """

    node: str
    method: str
    rank: int
    factors: tuple[np.ndarray, ...] | None = field(default=None, repr=False)
    bias: np.ndarray | None = field(default=None, repr=False)

    def rewrite(self, model: Model) -> int:
        """Replace the layer in place; returns 1.

        Raises:
            ModelError: the layer is not in the model or cannot be changed, the method does not apply to it, or the
                factors or the bias have other shapes than it needs, or values that are not finite.
        """
        node = next((n for n in model.graph.nodes if n.name == self.node), None)
        if node is None or node.op not in OPERATORS:
            raise ModelError(f"the model has no layer '{self.node}'")
        reason = why_not_a_layer(node, model.shapes)
        if reason is not None:
            raise ModelError(f"layer '{self.node}' cannot be changed: {reason}")
        layer = layer_of(node, model.shapes)
        unsuitable = why_no_rank(self.method, layer.geometry, self.rank)
        if unsuitable is not None:
            raise ModelError(f"layer '{self.node}': {unsuitable}")
        decomposition = DECOMPOSITIONS[self.method]
        links = decomposition.links(layer.geometry, self.rank)
        bias = self._bias(layer)
        weights = self._weights(decomposition, layer, links)
        replace_by_chain(model.graph, node, list(zip(links, weights, strict=True)), bias)
        model.tidy()
        return 1

    def _weights(
        self, decomposition: Decomposition, layer: Layer, links: tuple[Geometry, ...]
    ) -> tuple[np.ndarray, ...]:
        if self.factors is None:
            moment = np.eye(layer.geometry.features)
            return decomposition.factors(layer.geometry, layer.weight, moment, self.rank)
        expected = [link.weight_shape for link in links]
        if [factor.shape for factor in self.factors] != expected:
            found = ", ".join(str(factor.shape) for factor in self.factors)
            raise ModelError(
                f"layer '{self.node}': the factors have shapes {found}, not {', '.join(map(str, expected))}"
            )
        if not all(np.isfinite(factor).all() for factor in self.factors):
            raise ModelError(f"layer '{self.node}': a factor holds NaN or infinity")
        return self.factors

    def _bias(self, layer: Layer) -> np.ndarray:
        if self.bias is None:
            return layer.bias
        if self.bias.shape != layer.bias.shape:
            raise ModelError(f"layer '{self.node}': the bias has shape {self.bias.shape}, not {layer.bias.shape}")
        if not np.isfinite(self.bias).all():
            raise ModelError(f"layer '{self.node}': the bias holds NaN or infinity")
        return self.bias

    def requires(self, model: ir.Model) -> None:
        """Raise PreconditionError unless the layer is in the model, under a name that no other node has."""
        super().requires(model)
        require_nodes(model, [self.node])

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError if the layer is still there, or its chain is not."""
        names = {node.name for node in model.graph}
        if self.node in names or f"{self.node}/0" not in names:
            raise PostconditionError(f"node '{self.node}' is still there, or its chain is not")
