"""What a model may become, as a profile in which nothing is measured: by it, a target out of reach is found at once."""

from __future__ import annotations

from hmc_onnx.analysis.compressible import CompressibleLayer
from hmc_onnx.execution.context import Context
from hmc_onnx.records.profile import LayerChoice, LayerProfile, Profile
from hmc_onnx.search_space.candidates import Offer, whole_offers
from hmc_onnx.search_space.layer_choices import decomposed, left_whole
from hmc_onnx.search_space.possible import any_removals, every_variant
from hmc_onnx.search_space.variants import Variant

__all__ = ["possible_profile"]


def possible_profile(context: Context, align: int) -> Profile:
    """All that may be done to a model with its MACs and parameters, and a sensitivity of zero.

    The least MACs and parameters are those of the measured profile, or a little less: a measured profile lacks the
    candidates that others of the same cost beat.

    Args:
        context: the model.
        align: numbers of channels and ranks are multiples of this.
    """
    removals = any_removals(context, align)
    layers = []
    for name, found in every_variant(context, removals, align).items():
        subject = context.compressible.layers[name]
        whole = whole_offers(subject, align, context.settings.fine)
        layers.append(
            LayerProfile(
                name=name,
                input_group=subject.input_group,
                output_group=subject.output_group,
                macs=subject.macs(),
                parameters=sum(context.costs[use.name].parameters for use in subject.uses),
                choices=[choice for variant in found for choice in _choices(subject, variant, whole)],
            )
        )
    return Profile(
        model=context.digest,
        data="",
        settings=context.settings,
        align=align,
        macs=context.cost.macs,
        parameters=context.cost.parameters,
        groups=list(removals.values()),
        layers=layers,
        declined=context.compressible.declined,
    )


def _choices(subject: CompressibleLayer, variant: Variant, whole: list[Offer]) -> list[LayerChoice]:
    own = left_whole(subject, variant)
    return [own, *(decomposed(own, o) for o in (whole if variant.inputs == variant.outputs == 0 else variant.offers))]
