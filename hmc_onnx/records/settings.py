"""What a profile depends on besides the model and the images: the same from the command line, YAML and Python."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from calib.measure.latency_table import LatencyTable
from calib.runtime.sessions import Runtime
from passes.core.records import Frozen
from passes.graph.outputs import KINDS, parse_kinds

__all__ = ["QUICK", "Settings"]


class Settings(Frozen):
    """What a profile depends on, besides the model and the data.

    Raises:
        SettingsError: `outputs` is not understood.
    """

    samples: int = Field(default=1024, ge=1, description="calibration images for the second moments")
    kl_samples: int | None = Field(
        default=None,
        ge=1,
        description="of these, images for measuring sensitivity; None: 256, and fewer of a network of more than half a "
        "billion MACs, in proportion, down to 32",
    )
    positions: int = Field(default=64, ge=1, description="output positions looked at in each image")
    align: int | None = Field(
        default=None,
        ge=1,
        description="ranks and channel counts are multiples of this; None: as many as pay where latency is measured, "
        "8 for TensorRT, else 4",
    )
    seed: int = Field(default=0, ge=0)
    provider: Literal["auto", "cpu", "cuda", "tensorrt"] = "auto"
    threads: int = Field(default=0, ge=0, description="threads of onnxruntime; 0: its default")
    latency: bool = Field(default=False, description="measure the time of every candidate")
    batch: int | None = Field(
        default=None,
        ge=1,
        description="images a run when serving, which latency is measured at; None: what the model declares, else 1",
    )
    fine: bool = Field(default=True, description="offer all ranks and channel counts, and not every second")
    branches: bool | None = Field(
        default=None, description="offer to remove whole residual branches; None: where latency is measured"
    )
    exhaustive: bool = Field(default=False, description="measure every candidate's sensitivity on all images")
    outputs: tuple[str, ...] = Field(
        default=(),
        exclude_if=lambda given: not given,  # plans and profiles that do not say it stay as they were
        description="what an output is, where that is taken for something else: NAME=kind, the kind one of "
        + ", ".join(KINDS),
    )
    chunk: int = Field(default=128, ge=1, description="images run at once while measuring sensitivity")
    latency_table: LatencyTable | Path | None = Field(
        default=None,
        exclude=True,  # a profile holds the table's digest
        description="times of another machine, to plan for it: see `hmc-onnx latency measure`",
    )

    def model_post_init(self, _: object) -> None:
        """Check what is said of outputs."""
        parse_kinds(self.outputs)

    @property
    def runtime(self) -> Runtime:
        """How onnxruntime is to run."""
        return Runtime(self.provider, self.threads)


# What `--quick` sets where nothing else is said.
QUICK = {"samples": 256, "kl_samples": 16, "positions": 32, "fine": False}
