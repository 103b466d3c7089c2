"""The least time that a model can be brought to, known from shapes and times alone: before any sensitivity."""

from __future__ import annotations

from hmc_onnx.execution.context import Context
from hmc_onnx.profiling.candidate_times import Chain, Clock
from hmc_onnx.profiling.int8_choices import times_in_float
from hmc_onnx.search_space.candidates import Offer, whole_offers
from hmc_onnx.search_space.possible import any_removals, every_variant

__all__ = ["least_latency"]


def least_latency(context: Context, clock: Clock) -> float:
    """About the least share of the original's time that a plan can reach, by the fastest candidate of every layer.

    Of each layer only the candidates of fewest MACs are timed, and each layer has its fastest, as if all that it needs
    of its neighbours could be had together. A candidate of more MACs may be faster still, by some percent.

    Raises:
        SettingsError: a time is needed that the table of another machine lacks.
    """
    settings, compressible = context.settings, context.compressible
    clock.time_whole()
    align = settings.align or clock.align()
    smallest: dict[str, list[Chain]] = {}
    gone: set[str] = set()
    for name, found in every_variant(context, any_removals(context, align), align).items():
        subject = compressible.layers[name]
        if any(variant.removed for variant in found):
            gone.add(name)
        by_method: dict[str, Offer] = {}
        for offer in [*whole_offers(subject, align, settings.fine), *(o for v in found for o in v.offers)]:
            known = by_method.setdefault(offer.method, offer)
            if subject.macs(*offer.links) < subject.macs(*known.links):
                by_method[offer.method] = offer
        narrowest = min((v.geometry for v in found if not v.removed), key=lambda g: subject.macs(g))
        smallest[name] = [(subject.layer.geometry,), (narrowest,), *(o.links for o in by_method.values())]
    clock.measure((name, chain) for name, chains in smallest.items() for chain in chains)
    times = {name: clock.times(name, chains) for name, chains in smallest.items()}
    in_float = times_in_float(context, clock, smallest)
    fastest = {name: min([*found.values(), *in_float[name].values()]) for name, found in times.items()}
    own = sum(found[compressible.layers[name].layer.geometry,] for name, found in times.items())
    least = sum(0.0 if name in gone else seconds for name, seconds in fastest.items())
    measured = clock.profile()
    unchanged = measured.seconds if measured.unchanged is None else measured.unchanged
    # as in the integer program: where the layers take longer alone than together, all their times shrink
    return (max(unchanged - own, 0.0) + least * min(unchanged / own, 1.0)) / measured.seconds
