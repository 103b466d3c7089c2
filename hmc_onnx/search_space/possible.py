"""What a model may become, from shapes alone: all that has to be timed or counted before anything is measured."""

from __future__ import annotations

from collections.abc import Mapping

from hmc_onnx.execution.context import Context
from hmc_onnx.records.profile import GroupChoice, GroupProfile
from hmc_onnx.search_space.pruning_steps import steps
from hmc_onnx.search_space.variants import Variant, variants
from passes.channels import ChannelGroup
from passes.decompose import DECOMPOSITIONS

__all__ = ["any_removals", "every_variant"]


def any_removals(context: Context, align: int) -> dict[str, GroupProfile]:
    """A profile of each channel group in which each choice removes the right number of channels, but arbitrary ones."""
    fine, compressible = context.settings.fine, context.compressible
    return {n: _any_removal(g, align, fine, n in compressible.removable) for n, g in compressible.groups.items()}


def every_variant(context: Context, removals: Mapping[str, GroupProfile], align: int) -> dict[str, list[Variant]]:
    """The variants of each layer, by name; `removals` is as `any_removals` gives it."""
    fine, found = context.settings.fine, {}
    for name, subject in context.compressible.layers.items():
        ends = [removals[n] if n is not None else None for n in (subject.input_group, subject.output_group)]
        found[name] = list(variants(subject, ends[0], ends[1], align, list(DECOMPOSITIONS), fine))
    return found


def _any_removal(group: ChannelGroup, align: int, fine: bool, removable: bool) -> GroupProfile:
    on_offer = steps(group, align, fine)
    gone = [[], *map(on_offer.any, range(len(on_offer.keeps))), *([list(range(group.size))] if removable else [])]
    choices = [GroupChoice(keep=group.size - len(some), removed=some, sensitivity=0.0) for some in gone]
    return GroupProfile(name=group.name, size=group.size, producers=[], consumers=[], choices=choices)
