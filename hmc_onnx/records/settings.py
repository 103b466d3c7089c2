"""What a profile depends on besides the model and the images: the same from the command line, YAML and Python."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from calib.measure.latency_table import LatencyTable
from calib.runtime.providers import known_provider, parse_options
from calib.runtime.quantisation import Calibration
from calib.runtime.sessions import Runtime
from hmc_onnx.records.options import Option, Options
from hmc_onnx.records.selection import LayerSelection
from passes.graph.outputs import KINDS, parse_kinds

__all__ = ["MOST_THREADS", "QUICK", "Precision", "Settings"]

Precision = Literal["fp32", "fp16", "int8"]

# Far more than any machine has cores for; onnxruntime fails where a number does not fit into 32 bits.
MOST_THREADS = 4096
PYTHON = Option(command_line=False, file=False)


class Settings(Options):
    """What a profile depends on, besides the model and the data.

    Raises:
        SettingsError: a value is of a wrong type or out of range.
    """

    panel: ClassVar[str] = "Measuring and serving"

    samples: int = Field(default=1024, ge=1, description="Number of calibration images, drawn from the data.")
    kl_samples: Annotated[int | None, PYTHON] = Field(
        default=None,
        ge=1,
        description="How many of these images sensitivity is measured on. None: 64, and fewer for a network of more "
        "than two billion MACs, in proportion, down to 32.",
    )
    positions: Annotated[int, PYTHON] = Field(
        default=64, ge=1, description="Output positions of each image that the second moments are taken over."
    )
    align: Annotated[int | None, Option(default="8 for TensorRT; what pays where latency is measured; else 4")] = Field(
        default=None, ge=1, description="Ranks and numbers of channels are multiples of this."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the draw of images and positions.")
    provider: Annotated[str, Option(metavar="NAME")] = Field(
        default="auto",
        description="Execution provider of onnxruntime that will serve the model: auto (cuda where it works, else cpu) "
        "or one that the installed onnxruntime has, by its name (OpenVINOExecutionProvider) or in short (cpu, cuda, "
        "tensorrt, openvino, dml, coreml, …).",
    )
    provider_option: Annotated[tuple[str, ...], Option(metavar="K=V", example="[device_type=GPU]")] = Field(
        default=(),
        exclude_if=lambda given: not given,
        description="An option of that provider, such as device_type=GPU of OpenVINO (may be repeated).",
    )
    threads: int = Field(
        default=0, ge=0, le=MOST_THREADS, description="Threads of onnxruntime; 0: one for each core that it may use."
    )
    latency: bool = Field(
        default=False, description="Measure the time of every candidate too, so that a plan can be made for latency."
    )
    batch: Annotated[int | None, Option(default="what the model declares, else 1")] = Field(
        default=None, ge=1, description="Images in a run when serving; latency is measured at this batch size."
    )
    fine: Annotated[bool, PYTHON] = Field(
        default=True, description="Offer all ranks and numbers of channels, and not only every second."
    )
    branches: Annotated[bool | None, PYTHON] = Field(
        default=None, description="Offer to remove whole residual branches. None: where latency is measured."
    )
    keep: Annotated[tuple[str, ...], Option(metavar="PATTERN", example="[stem.*, fc]")] = Field(
        default=(),
        exclude_if=lambda given: not given,
        description="Leave the layers alone whose names match, such as 'stem.*' (as in a shell; may be repeated): they "
        "are not decomposed, pruned or repaired. `precision` and `finetune` are for the whole network still.",
    )
    only: Annotated[tuple[str, ...], Option(metavar="PATTERN", example="['layer3.*']")] = Field(
        default=(),
        exclude_if=lambda given: not given,
        description="Leave all layers alone but those whose names match (may be repeated).",
    )
    exhaustive: bool = Field(
        default=False, description="Measure every candidate's sensitivity on all images, which takes longer."
    )
    judge: Annotated[tuple[str, ...], Option(metavar="KIND")] = Field(
        default=(),
        exclude_if=lambda given: not given,  # plans and profiles that do not say it stay as they were
        description="What an output is, where it is taken for something else: NAME=kind, the kind one of "
        + ", ".join(KINDS)
        + ".",
    )
    chunk: Annotated[int, PYTHON] = Field(
        default=128, ge=1, description="Images run at once while sensitivity is measured."
    )
    precision: Precision = Field(
        default="fp32",
        exclude_if=lambda value: value == "fp32",
        description="Precision that will be served: everything is planned, measured, verified and written in it.",
    )
    calibration: Calibration = Field(
        default="minmax",
        exclude_if=lambda value: value == "minmax",
        description="How the ranges of INT8 activations are found on the calibration images.",
    )
    latency_table: Annotated[
        LatencyTable | Path | None, Option(given=Path, metavar="FILE", default="times are measured here")
    ] = Field(
        default=None,
        exclude=True,  # a profile holds the table's digest
        description="Times of another machine, as `hmc-onnx latency measure` wrote them, to plan for that machine.",
    )

    def model_post_init(self, _: object) -> None:
        """Check what is said of outputs and of the provider."""
        parse_kinds(self.judge)
        known_provider(self.provider)
        parse_options(self.provider_option)

    @property
    def selection(self) -> LayerSelection:
        """The layers that are left alone."""
        return LayerSelection(self.keep, self.only)

    @property
    def runtime(self) -> Runtime:
        """How onnxruntime is to run."""
        return Runtime(self.provider, self.threads, self.provider_option)

    def run_by(self, runtime: Runtime) -> Settings:
        """These settings with another runtime."""
        other = {"provider": runtime.provider, "threads": runtime.threads, "provider_option": runtime.options}
        return self.model_copy(update=other)


# What a quick profile sets where nothing else is said.
QUICK: Mapping[str, Any] = MappingProxyType({"samples": 256, "kl_samples": 16, "positions": 32, "fine": False})
