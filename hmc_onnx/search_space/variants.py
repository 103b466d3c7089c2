"""Variants: a layer as the choices for its input and output group leave it, and the decompositions to try on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hmc_onnx.analysis.compressible import CompressibleLayer, readers
from hmc_onnx.records.profile import GroupProfile
from hmc_onnx.search_space.candidates import Offer, offers, over_all_uses
from hmc_onnx.search_space.elimination import Consumer, Floors, eliminate
from hmc_onnx.search_space.pruning_steps import carried, steps
from passes.channels import ChannelGroup
from passes.core.shelf import MEMORY, Shelf
from passes.graph.layers import Geometry

__all__ = ["Variant", "removal", "variants"]

# Shares of a pruned layer's MACs at which each decomposition is tried on it.
RATIOS_WHEN_PRUNED = (0.7, 0.5, 0.35, 0.22)


def removal(
    group: ChannelGroup, layers: dict[str, CompressibleLayer], align: int, fine: bool = True, shelf: Shelf = MEMORY
) -> tuple[Any, ...]:
    """The task of eliminating a group's channels for all pruning steps: `eliminate` and its arguments."""
    consumers = [Consumer(shelf.keep(s.layer.values), s.moments.second, c) for s, c in readers(group, layers)]
    on_offer = steps(group, align, fine)
    floors = Floors(carried(group), align)
    return eliminate, consumers, group.size, on_offer.counts, floors, on_offer, shelf


@dataclass(frozen=True)
class Variant:
    """A layer as it is left by one choice for its input group and one for its output group.

    Attributes:
        inputs, outputs: indices of these choices.
        kept_in, kept_out: masks of the input channels (I,) and output channels (O,) that stay; one of the masks is all
            False if the layer is removed with its residual branch.
        geometry: geometry of the remaining layer.
        offers: the decompositions to try on it.
    """

    inputs: int
    outputs: int
    kept_in: np.ndarray
    kept_out: np.ndarray
    geometry: Geometry
    offers: list[Offer]

    @property
    def removed(self) -> bool:
        """Whether the layer is removed with its residual branch."""
        return not (self.kept_in.any() and self.kept_out.any())

    @property
    def chains(self) -> list[tuple[Geometry, ...]]:
        """The chains whose times are needed: the remaining layer as a chain of one link, and those of the offers."""
        return [] if self.removed else [(self.geometry,), *(o.links for o in self.offers)]


def variants(
    subject: CompressibleLayer,
    input_group: GroupProfile | None,
    output_group: GroupProfile | None,
    align: int,
    methods: Sequence[str],
    fine: bool = True,
) -> Iterator[Variant]:
    """Yield the layer for each pair of choices of its input and output group.

    A layer that is pruned at one end has decompositions on offer. A layer that is pruned at both ends has none, because
    the combinations would be too many. Those of the whole layer are not included: see `whole_offers`.

    Args:
        subject: the layer.
        input_group, output_group: profiles of its groups; None for a group that it does not have or that cannot be
            pruned.
        align, methods: as for `offers`.
        fine: whether to use all of `RATIOS_WHEN_PRUNED`; else every second one.
    """
    geometry, ratios = subject.layer.geometry, RATIOS_WHEN_PRUNED if fine else RATIOS_WHEN_PRUNED[1::2]
    for a, gone_in in enumerate(_removed(input_group)):
        kept_in = _kept(subject.input_classes, gone_in, geometry.inputs)
        for b, gone_out in enumerate(_removed(output_group)):
            # a grouped Conv that loses whole groups has the same channel group at both ends
            if subject.grouped and subject.input_group is not None and a != b:
                continue
            kept_out = _kept(subject.output_classes, gone_out, geometry.outputs)
            if not kept_in.any() and kept_out.any() and not subject.ends_branch:  # the branch would go on
                continue
            offered: list[Offer] = []
            if not (kept_in.any() and kept_out.any()):
                yield Variant(a, b, kept_in, kept_out, geometry, offered)
                continue
            part = geometry.resized(int(kept_in.sum()), int(kept_out.sum()))
            if not subject.grouped and (a == 0) != (b == 0):
                found = offers(part, subject.size, align, methods, ratios, subject.maps)
                offered = over_all_uses(subject, found)
            yield Variant(a, b, kept_in, kept_out, part, offered)


def _removed(group: GroupProfile | None) -> list[list[int]]:
    return [c.removed for c in group.choices] if group else [[]]


def _kept(classes: np.ndarray | None, removed: Sequence[int], channels: int) -> np.ndarray:
    return np.ones(channels, bool) if classes is None else ~np.isin(classes, removed)
