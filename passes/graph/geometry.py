"""The geometry of a layer: its numbers of channels, kernel, strides, pads, dilations and groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

__all__ = ["Geometry"]


@dataclass(frozen=True)
class Geometry:
    """Everything about a Conv, a ConvTranspose or a Gemm but its weights.

    `inputs` and `outputs` are numbers of channels. `pads` is in ONNX's order: all begins, then all ends.
    Empty `kernel`, `strides`, `pads` and `dilations` make it a Gemm. `transposed` makes it a ConvTranspose, whose
    output is longer by `output_padding` at the end of each spatial axis (empty: by nothing).
    """

    inputs: int
    outputs: int
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(O, I / groups, *kernel)."""
        return (self.outputs, self.inputs // self.groups, *self.kernel)

    @property
    def inputs_a_group(self) -> int:
        """I / groups."""
        return self.inputs // self.groups

    @property
    def outputs_a_group(self) -> int:
        """O / groups."""
        return self.outputs // self.groups

    @property
    def features(self) -> int:
        """Number of input values that one output value is computed from: I / groups times the kernel's size."""
        return self.inputs // self.groups * math.prod(self.kernel)

    @property
    def parameters(self) -> int:
        """Number of weights, without bias."""
        return self.outputs * self.features

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Spatial output size for a spatial input size."""
        d = len(self.kernel)
        if self.transposed:
            longer = self.output_padding or (0,) * d
            return tuple(
                (n - 1) * self.strides[i]
                + self.dilations[i] * (self.kernel[i] - 1)
                + 1
                + longer[i]
                - self.pads[i]
                - self.pads[i + d]
                for i, n in enumerate(size)
            )
        return tuple(
            (n + self.pads[i] + self.pads[i + d] - self.dilations[i] * (self.kernel[i] - 1) - 1) // self.strides[i] + 1
            for i, n in enumerate(size)
        )

    def macs(self, size: Sequence[int]) -> int:
        """Multiply-accumulates for one input of the spatial size `size`."""
        return self.parameters * math.prod(size if self.transposed else self.output_size(size))

    def resized(self, inputs: int, outputs: int) -> Geometry:
        """The same Conv with other channel counts; a grouped one keeps the size of its groups."""
        groups = self.groups if self.groups == 1 else inputs // self.inputs_a_group
        return replace(self, inputs=inputs, outputs=outputs, groups=groups)

    def one_group(self) -> Geometry:
        """The geometry of each single group, as a Conv without groups."""
        return replace(self, inputs=self.inputs_a_group, outputs=self.outputs_a_group, groups=1)
