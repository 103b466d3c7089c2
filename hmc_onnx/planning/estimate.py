"""What a run is about to do, and about how long it takes: counted from the graph, and timed on a few steps of it.

The profile takes most of a run. Its stages are estimated one by one: a forward pass over some calibration images and
the decompositions of one layer are timed, and the counts of what will be done are multiplied by these times.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import joblib
import numpy as np

from calib.data.calibration import length
from calib.measure import latency
from calib.measure.probing import LOT_MACS, LOT_PROBES, SECONDS
from calib.runtime.batching import declared_batch
from calib.runtime.sessions import Session
from hmc_onnx.analysis.compressible import CompressibleLayer, readers
from hmc_onnx.execution.context import Context
from hmc_onnx.planning.repaired_branches import are_repaired
from hmc_onnx.planning.trial import most_trials
from hmc_onnx.profiling.candidate_times import default_align
from hmc_onnx.profiling.profiler import sensitivity_images
from hmc_onnx.search_space.candidates import front, whole_offers
from hmc_onnx.search_space.possible import any_removals, every_variant
from passes.core.blas import one_blas_thread
from passes.core.declined import Declined, sentences
from passes.decompose import Problem

__all__ = ["Estimate", "estimate"]

# Of what is offered, the share whose sensitivity is measured (the Pareto front), and the share of the images that it is
# measured on, as most candidates are out early. These and the numbers below are rough guesses.
MEASURED, OF_IMAGES = 0.5, 0.5
# Forward passes that walking once for the second moments and twice for the repair takes, with the moments' own sums;
# and seconds until worker processes have started.
WALKS, WORKERS_START = 6, 10.0
# Batch sizes at which the two networks are timed in the end, and plans that are timed until one keeps its target.
BATCHES, PLANS = 3, 3
# Plans that are tried beside the first where residual branches may be removed, images that each is repaired on, and
# forward passes that a repair takes, and that of a few layers behind one branch.
TRIALS, TRIAL_IMAGES, REPAIR, FEW_REPAIRED = 3, 192, 4, 1
# A run that takes so many seconds is timed once.
ONCE = 0.3
# Copies of the model that are held at once, in float32.
COPIES = 4
# Bytes of a process with its libraries, before it holds anything of the model.
PROCESS = 3e8
# Copies of a layer's second moment that a worker holds while it solves for its weights.
SOLVING = 3


@dataclass(frozen=True)
class Estimate:
    """What a profile, and the repair and the comparison behind it, come to.

    Attributes:
        layers: that may be changed.
        groups: of channels that may be pruned.
        decompositions: offered for whole layers.
        prunings: numbers of channels on offer, of all groups, and the residual branches that may be removed.
        combinations: decompositions offered for pruned layers.
        declined: why the others are left alone, by name.
        seconds: that it takes, about.
        memory: bytes that it takes, about.
    """

    layers: int
    groups: int
    decompositions: int
    prunings: int
    combinations: int
    declined: dict[str, Declined]
    seconds: float
    memory: float

    @property
    def minutes(self) -> int:
        """Minutes, at least 1."""
        return max(1, round(self.seconds / 60))

    def __str__(self) -> str:
        return (
            f"about {self.minutes} {'minute' if self.minutes == 1 else 'minutes'} and {self.memory / 1e9:.1f} GB: "
            f"{self.layers} layers, {self.groups} channel groups, {self.decompositions + self.prunings} candidates, "
            f"and {self.combinations} decompositions of pruned layers"
        )

    def dump(self) -> dict[str, Any]:
        """The fields, of what JSON has; of `declined`, the sentences."""
        return asdict(self) | {"declined": sentences(self.declined)}


def estimate(context: Context) -> Estimate:
    """Count what is to be done for a run, and time a few steps of it.

    Raises:
        ModelError: onnxruntime cannot run the model.
        SettingsError: the options `keep` and `only` do not fit the model.
    """
    settings, compressible, workers = context.settings, context.compressible, context.work.jobs or joblib.cpu_count()
    layers = compressible.layers
    align = settings.align or default_align(settings.runtime)
    removals = any_removals(context, align)
    possible = every_variant(context, removals, align)
    whole, pruned, chains = {}, {}, set()
    for name, subject in layers.items():
        whole[name] = whole_offers(subject, align, settings.fine)
        own = possible[name]
        pruned[name] = [offer for variant in own for offer in variant.offers]
        every = [o.links for o in whole[name]] + [chain for v in own for chain in v.chains]
        chains |= {(chain, subject.size, subject.maps, subject.macs(*chain)) for chain in every}
    a_start, a_pass = _pass(context)
    an_offer = _decomposition(layers, align, settings.fine)
    images = min(sensitivity_images(context), len(context.data.feeds[next(iter(context.data.feeds))]))
    samples = len(context.chunks) * length(context.chunks[0])
    behind = {name: _share_behind(context, name) for name in layers}
    tried = sum(len(whole[n]) * MEASURED * behind[n] for n in layers)
    tried += sum(
        (len(r.choices) - 1)
        * max((behind[s.layer.name] for s, _ in readers(compressible.groups[n], layers)), default=0)
        for n, r in removals.items()
    )
    work = {n: len(whole[n]) + len(pruned[n]) for n in layers}
    lots = max(len(chains) / LOT_PROBES, sum(macs for *_, macs in chains) * (settings.batch or 1) / LOT_MACS)
    trials = min(most_trials(context), TRIALS) if compressible.removable else 0
    branches = sum(s.ends_branch for s in layers.values()) if are_repaired(context) else 0
    repairs = (trials + 1 if trials else 0) * REPAIR + branches * FEW_REPAIRED
    seconds = (
        WALKS * samples * a_pass
        + a_start * (len(layers) + len(removals))
        + (WORKERS_START if workers > 1 else 0)
        + tried * images * OF_IMAGES * a_pass
        + sum(an_offer * work[n] * _weights(s) for n, s in layers.items()) / workers
        + (math.ceil(lots) * (SECONDS + 1) if settings.latency else 0)
        + latency.SECONDS * (BATCHES + (PLANS if settings.latency else 0))
        + repairs * min(samples, TRIAL_IMAGES) * a_pass
    )
    largest = max((math.prod(s.size) * s.layer.geometry.inputs * s.maps for s in layers.values()), default=0)
    held = SOLVING * workers * max(context.moment_bytes, default=0) if context.shelved else sum(context.moment_bytes)
    memory = held + COPIES * 4.0 * context.cost.parameters
    memory += min(context.memory, 4 * samples * largest) + PROCESS * (1 + workers * (workers > 1))
    return Estimate(
        layers=len(layers),
        groups=len(compressible.groups),
        decompositions=sum(map(len, whole.values())),
        prunings=sum(len(r.choices) - 1 for r in removals.values()),
        combinations=sum(map(len, pruned.values())),
        declined=compressible.declined,
        seconds=seconds,
        memory=memory,
    )


def _pass(context: Context) -> tuple[float, float]:
    """Seconds to start a session, and of a forward pass for one image: the faster of two runs of a batch, if short."""
    declared = declared_batch(context.served, context.data.feeds)
    feeds = context.serving_feeds if declared else context.chunks[0]
    Session(context.served, context.runtime)  # the first one loads libraries
    began = time.perf_counter()
    session = Session(context.served, context.runtime)
    start = time.perf_counter() - began
    times: list[float] = []
    while not times or (len(times) < 2 and times[0] < ONCE):
        began = time.perf_counter()
        session.run(feeds)
        times.append(time.perf_counter() - began)
    return start, min(times) / length(feeds)


def _decomposition(layers: dict[str, CompressibleLayer], align: int, fine: bool) -> float:
    """Seconds of one decomposition for each weight of its layer.

    One of each kind is timed, on a layer of median size; before that on the smallest, where libraries are loaded.
    """
    able = sorted((s for s in layers.values() if whole_offers(s, align, fine)), key=_weights)
    seconds = 0.0
    for subject in (able[0], able[len(able) // 2]) if able else ():
        layer = subject.layer
        offered = list({o.method: o for o in whole_offers(subject, align, fine)}.values())
        began = time.perf_counter()
        with one_blas_thread():  # as where the profile is made
            front(Problem.of(layer.geometry, layer.weight, np.eye(layer.geometry.features)), offered)
        seconds = (time.perf_counter() - began) / len(offered) / _weights(subject)
    return seconds


def _weights(subject: CompressibleLayer) -> int:
    return subject.layer.geometry.outputs * subject.layer.geometry.features


def _share_behind(context: Context, name: str) -> float:
    """The share of the network's MACs that a change of a layer makes run again."""
    position = context.compressible.layers[name].position
    behind = sum(context.costs[n.name].macs for n in context.normal.graph.nodes[position:] if n.name in context.costs)
    return behind / max(context.cost.macs, 1)
