"""The context of a run, which its stages share: the model in its forms, the images, the settings, the checkpoint.

What several stages need of a model (its normal form, shapes, costs, layers and channel groups, its digest) is computed
here once, when it is first used.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx

from calib.data.calibration import CalibrationData, length
from calib.measure.latency_table import LatencyTable, read_table
from calib.runtime.batching import (
    calibration_chunks,
    declared_batch,
    input_shapes,
    serving_batch,
    serving_feeds,
    spread_feeds,
)
from calib.runtime.half import in_half
from calib.runtime.observing import observe
from calib.runtime.quantisation import quantise, quantise_for_timing, raise_opset, weight_levels
from calib.runtime.sessions import Runtime
from hmc_onnx.analysis.compressible import Compressible
from hmc_onnx.analysis.find_compressible import find_compressible
from hmc_onnx.analysis.model_inputs import check_kind
from hmc_onnx.execution.checkpoint import Checkpoint
from hmc_onnx.records.settings import Precision, Settings
from hmc_onnx.records.work import HERE, Work
from passes.core.errors import ModelError
from passes.core.progress import Progress
from passes.graph.cost import Cost, activation_bytes, costs
from passes.graph.external import LARGE
from passes.graph.model import Model, digest
from passes.graph.outputs import parse_kinds
from passes.graph.protos import EXTERNAL_DATA_THRESHOLD, byte_size
from passes.normal_form.normalise import normalise

__all__ = ["Context", "check_convertible"]

# Images from which the ranges of activations are found, for INT8 and float16.
RANGE_IMAGES = 512
# Bytes of second moments beyond which these, and the weights of all candidates, are kept on disk.
SHELVED = 2.5e8
# What the activations of a feed of these may take of the memory; onnxruntime allocates up to three times as much.
RANGE_MEMORY = 0.3
# Images in a feed of which histograms are made, where there is memory for so many.
HISTOGRAM_IMAGES = 16


class Context:
    """A model, the images to calibrate it with, and how to work on it.

    Args:
        served: the original model as it is deployed; it is not changed, and must not be while the context lives.
        data: calibration images as feeds of the model.
        settings: see `Settings`.
        work: see `Work`.
    """

    def __init__(
        self, served: onnx.ModelProto, data: CalibrationData, settings: Settings | None = None, work: Work = HERE
    ) -> None:
        self.served, self.data = served, data
        self.settings, self.work = settings or Settings(), work
        self.inputs = input_shapes(served, data)

    @property
    def runtime(self) -> Runtime:
        """The provider and threads with which onnxruntime runs."""
        return self.settings.runtime

    @property
    def progress(self) -> Progress:
        """The function that is told of progress."""
        return self.work.progress

    @property
    def memory(self) -> int:
        """Upper bound on the bytes of activations that are held in memory."""
        return int(self.work.memory * 1e9)

    @cached_property
    def normal(self) -> Model:
        """The model in normal form, with observed shapes where inference finds none; callers must not change it."""
        model = observe(normalise(self.served), self.inputs, self.runtime)
        model.kinds = parse_kinds(self.settings.judge)
        return model

    def served_form(
        self, proto: onnx.ModelProto, timed_only: bool = False, in_float: Collection[str] = ()
    ) -> onnx.ModelProto:
        """Convert a model to the precision of the settings.

        Args:
            proto: a model with the original's signature, in float.
            timed_only: whether the result is only timed, so that INT8 activations may have arbitrary ranges.
            in_float: names of layers of the original that stay in float32 where the others are in INT8.

        Raises:
            ModelError: the model cannot be quantised.
        """
        precision = self.settings.precision
        if precision == "fp32":
            return proto
        check_convertible(proto, precision)
        if precision == "fp16":
            return in_half(proto, [] if timed_only else self._range_feeds)
        provider, nodes = self.runtime.name, self._nodes_of(proto, in_float)
        if timed_only:
            return quantise_for_timing(raise_opset(proto), provider, nodes)
        return quantise(raise_opset(proto), self._range_feeds, self.settings.calibration, provider, nodes)

    @cached_property
    def _range_feeds(self) -> list[dict[str, np.ndarray]]:
        """Feeds from which the ranges of activations are found, for INT8 and float16.

        They have as many images as the model declares. Where it leaves the number open, they have fewer than others if
        images are large, as all activations of a feed are held at once.
        """
        declared = declared_batch(self.served, self.data.feeds)
        fit = int(RANGE_MEMORY * self.memory / max(activation_bytes(self.normal, self.inputs), 1))
        if self.settings.calibration != "minmax":  # histograms depend on how images are divided
            fit = min(fit, HISTOGRAM_IMAGES)
        size = length(self.chunks[0])
        most = next(n for n in range(min(max(fit, 1), size), 0, -1) if size % n == 0)  # so that all are of one size
        feeds = spread_feeds(self.chunks, RANGE_IMAGES, declared or most)
        return [own for own in feeds if declared is None or length(own) == declared]

    @cached_property
    def served_alone(self) -> onnx.ModelProto:
        """The original in the precision of the settings, with nothing else done to it: what a quantiser alone gives."""
        return self.served_form(self.normal.finished())

    def _nodes_of(self, proto: onnx.ModelProto, layers: Collection[str]) -> list[str]:
        """Names of the nodes of a compressed model that some layers of the original have become."""
        if not layers:
            return []
        every = sorted((use.name for s in self.compressible.layers.values() for use in s.uses), key=len, reverse=True)
        found = []
        for node in proto.graph.node:
            owner = next((n for n in every if node.name == n or node.name.startswith(f"{n}/")), None)
            if owner in layers:
                found.append(node.name)
        return found

    @property
    def weight_levels(self) -> int:
        """The largest integer of the grid that INT8 weights lie on; 0 in another precision."""
        return weight_levels(self.runtime.name) if self.settings.precision == "int8" else 0

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the normal form, by which profiles and plans identify the model."""
        return self._size_and_digest[1]

    @cached_property
    def large(self) -> bool:
        """Whether the weights are too large to be held in several forms at once."""
        return self._size_and_digest[0] > LARGE

    @cached_property
    def moment_bytes(self) -> list[int]:
        """Bytes of the second moment of each layer's patches, in float64."""
        return [8 * s.layer.geometry.features**2 for s in self.compressible.layers.values() if not s.grouped]

    @property
    def shelved(self) -> bool:
        """Whether what the profile makes of each layer is kept on disk, as it is many times the size of the weights."""
        return self.large or sum(self.moment_bytes) > SHELVED

    @cached_property
    def _size_and_digest(self) -> tuple[int, str]:
        proto = self.normal.to_proto()
        return byte_size(proto), digest(proto)

    @cached_property
    def costs(self) -> dict[str, Cost]:
        """MACs per image, and parameters, of each node of the normal form, by name."""
        return costs(self.normal, self.inputs)

    @cached_property
    def cost(self) -> Cost:
        """MACs per image, and parameters, of the whole model."""
        return sum(self.costs.values(), Cost())

    @cached_property
    def compressible(self) -> Compressible:
        """The layers and channel groups that can be compressed, and the reasons why others cannot."""
        found = find_compressible(self.normal, self.inputs, self.settings.selection)
        removable = self.settings.latency if self.settings.branches is None else self.settings.branches
        return found if removable else found.without_removal()

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint of the run's measurements.

        Raises:
            SettingsError: the folder belongs to another run.
            OutputError: the folder cannot be written.
        """
        identity = {
            "version": version("hmc-onnx"),
            "model": self.digest,
            "data": self.data.digest(),
            "settings": self.settings.model_dump_json(),
            "latency table": self.latency_table.digest() if self.latency_table else "",
        }
        return Checkpoint(self.work.work_dir, identity)

    @cached_property
    def latency_table(self) -> LatencyTable | None:
        """The latency table (of another machine) that the settings name, or None; raises SettingsError."""
        given = self.settings.latency_table
        return read_table(given) if isinstance(given, Path) else given

    @cached_property
    def chunks(self) -> list[dict[str, np.ndarray]]:
        """The calibration images, as feeds of a batch size that the model can run."""
        return calibration_chunks(self.normal, self.data, self.settings.samples, self.settings.chunk, self.runtime)

    @cached_property
    def serving_batch(self) -> int:
        """Images per run in deployment: as set, else the declared batch size, else 1.

        Raises:
            SettingsError: the model declares a batch size other than the one set.
        """
        return serving_batch(self.served, self.data.feeds, self.settings.batch)

    @cached_property
    def serving_feeds(self) -> dict[str, np.ndarray]:
        """Feeds for one run at the batch size of deployment; images are repeated if the data have fewer."""
        return serving_feeds(self.data, self.serving_batch)


def check_convertible(proto: onnx.ModelProto, precision: Precision) -> None:
    """Check that a model can be converted to a precision.

    Raises:
        ModelError: the model is quantised or in half precision already, or too large for onnxruntime's converters.
    """
    if precision == "fp32":
        return
    check_kind(proto)
    others = {t.data_type for t in proto.graph.initializer} & {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    if others:
        raise ModelError(
            f"the model's weights are {onnx.TensorProto.DataType.Name(others.pop()).lower()} already, and "
            f"`precision` {precision} is made from float32: give the model that it was made from"
        )
    if byte_size(proto) >= EXTERNAL_DATA_THRESHOLD:
        raise ModelError(
            f"the model is of 2 GiB or more, which onnxruntime's converters to {precision} do not take: "
            "leave out `precision`"
        )
