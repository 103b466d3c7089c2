"""A model and how it will be served: what the options say, else what the file says of itself."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

import onnx

from calib.runtime.batching import declared_batch, serving_batch
from calib.runtime.providers import known_provider, parse_options, short_name
from hmc_onnx.analysis.inspection import closed_shapes
from hmc_onnx.analysis.model_inputs import signature
from hmc_onnx.records.handoff import Handoff
from hmc_onnx.records.images import Images
from hmc_onnx.records.provenance import Provenance
from passes.core.errors import ModelError, SettingsError
from passes.graph.model import digest

__all__ = ["Served", "short_digest"]

Dims = tuple[int | None, ...]


@dataclass(frozen=True)
class Served:
    """A model and how it will be served.

    Attributes:
        proto: the model.
        name: on the server.
        batch: images that may be run at once.
        open: whether the number of images is open in all inputs and outputs, so that a server may change it.
        threads: of onnxruntime; 0: what it chooses.
        provider: short name of an execution provider, such as "cpu"; or "auto".
        provider_options: options of that provider, by its own names.
        images: how an image becomes the input; its `size` closes axes that the model leaves open.
    """

    proto: onnx.ModelProto
    name: str
    batch: int
    open: bool
    threads: int
    provider: str
    provider_options: dict[str, str]
    images: Images

    @classmethod
    def of(cls, proto: onnx.ModelProto, name: str, options: Handoff, images: Images) -> Served:
        """Options completed by what the file says of itself.

        Args:
            proto: the model.
            name: for where the options give none; characters that servers do not take are replaced.
            options: as given.
            images: how an image becomes the input.

        Raises:
            ModelError: an input or output is no tensor.
            SettingsError: a batch is asked for that the model does not take; or options for no provider.
        """
        planned = Provenance.read(proto)
        inputs = signature(proto)
        fixed = declared_batch(proto, inputs)
        wanted = options.batch or (planned.batch if planned and not fixed else None)
        threads, provider = options.threads, "auto"
        if options.provider is not None:
            provider = short_name(known_provider(options.provider))
        elif planned:
            provider = planned.provider
        provider_option: tuple[str, ...] = ()
        if options.provider_option is not None:
            provider_option = options.provider_option
            if provider_option and provider == "auto":
                raise SettingsError("`provider_option` is for one provider: name it with `provider`")
        elif planned and planned.provider == provider != "auto":
            provider_option = planned.provider_option
        return cls(
            proto,
            options.name or re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip(".-") or "model",
            serving_batch(proto, inputs, wanted),
            all(dims[:1] == (None,) for dims in (*(d for _, d in inputs.values()), *_outputs(proto).values())),
            (planned.threads if planned else 0) if threads is None else threads,
            provider,
            parse_options(provider_option),
            images,
        )

    @property
    def inputs(self) -> dict[str, Dims]:
        """The shape of each input as the model declares it; None where an axis is open."""
        return {name: dims for name, (_, dims) in signature(self.proto).items()}

    @property
    def outputs(self) -> dict[str, Dims]:
        """The shape of each output as the model declares it."""
        return _outputs(self.proto)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of one image, or of the batch that the model fixes, for each input.

        Raises:
            ModelError: an axis is open, and no size is given.
        """
        asked = self.images.preprocess()
        return closed_shapes(self.proto, asked.size, asked.layout)

    def shapes_at(self, batch: int) -> dict[str, tuple[int, ...]]:
        """`shapes` with another number of images."""
        return {name: (batch, *shape[1:]) for name, shape in self.shapes.items()}

    @cached_property
    def digest(self) -> str:
        """`short_digest` of the model."""
        return short_digest(self.proto)

    def element_type(self, name: str) -> int:
        """ONNX's number of the element type of an input or output."""
        values = (*self.proto.graph.input, *self.proto.graph.output)
        return int(next(v for v in values if v.name == name).type.tensor_type.elem_type)


def short_digest(proto: onnx.ModelProto) -> str:
    """The first 16 digits of the SHA-256 of a model: of its weights, and of all else of it."""
    return digest(proto)[:16]


def _outputs(proto: onnx.ModelProto) -> dict[str, Dims]:
    found: dict[str, Dims] = {}
    for value in proto.graph.output:
        tensor = value.type.tensor_type
        if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
            raise ModelError(
                f"the model's output '{value.name}' is no tensor, or declares no shape: export it with shapes"
            )
        found[value.name] = tuple(d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim)
    return found
