"""A latency table with the times of a model, its layers and all their candidates, to plan with on another machine."""

from __future__ import annotations

from calib.measure.latency_table import LatencyTable
from hmc_onnx.execution.context import Context
from hmc_onnx.profiling.candidate_times import Chain, Clock
from hmc_onnx.profiling.int8_choices import times_in_float
from hmc_onnx.search_space.candidates import whole_offers
from hmc_onnx.search_space.possible import any_removals, every_variant

__all__ = ["every_chain", "measure_table"]


def measure_table(context: Context) -> LatencyTable:
    """Measure the times of a model, its layers and all their candidates; the values of the images do not matter.

    Raises:
        ModelError: onnxruntime cannot run the model.
        SettingsError: the provider does not work, or the model declares another batch size.
    """
    clock = Clock(context)
    clock.time_whole()
    chains = every_chain(context, context.settings.align or clock.align())
    clock.measure((name, chain) for name, own in chains.items() for chain in own)
    times_in_float(context, clock, chains)
    return clock.table


def every_chain(context: Context, align: int) -> dict[str, list[Chain]]:
    """Each layer with its candidates: those for the whole layer, and those for what pruning leaves of it.

    Args:
        context: of the model.
        align: the number of channels of which widths are a multiple.
    """
    chains: dict[str, list[Chain]] = {}
    for name, found in every_variant(context, any_removals(context, align), align).items():
        subject = context.compressible.layers[name]
        offers = whole_offers(subject, align, context.settings.fine)
        chains[name] = [(subject.layer.geometry,), *(offer.links for offer in offers)]
        chains[name] += [chain for variant in found for chain in variant.chains]
    return chains
