"""The settings of a run, the same from the command line, a YAML file and Python."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from calib.runtime.sessions import Runtime
from passes.core.errors import SettingsError

__all__ = ["QUICK", "Settings", "Strategy", "Target", "parse_target"]

Strategy = Literal["hmc", "nahc", "ahc", "prune", "lowrank"]


class Target(BaseModel):
    """The share of the original's time, MACs and parameters that may be used; None where there is no bound."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    latency: float | None = Field(default=None, gt=0, le=1)
    macs: float | None = Field(default=None, gt=0, le=1)
    params: float | None = Field(default=None, gt=0, le=1)

    def __str__(self) -> str:
        return ",".join(f"{k}={v:g}" for k, v in self if v is not None)


class Settings(BaseModel):
    """What a profile depends on, besides the model and the data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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
    threads: int = Field(default=0, ge=0, description="threads of onnxruntime; 0: one for each usable core")
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
    chunk: int = Field(default=128, ge=1, description="images run at once while measuring sensitivity")

    @property
    def runtime(self) -> Runtime:
        """How onnxruntime is to run."""
        return Runtime(self.provider, self.threads)


# What `--quick` sets where nothing else is said.
QUICK = {"samples": 256, "kl_samples": 16, "positions": 32, "fine": False}


def parse_target(text: str) -> Target:
    """Read "latency=0.6", "macs=0.5", "params=0.4" or several with commas between.

    Raises:
        SettingsError: anything else, or a share outside (0, 1].
    """
    values: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = (word.strip() for word in part.partition("="))
        try:
            repeated, values[name] = name in values, float(number)
        except ValueError:
            repeated = True
        if repeated or name not in Target.model_fields:
            raise SettingsError(
                f"target '{text}' is not understood: "
                "write latency=0.6, macs=0.5 or params=0.5, or several with commas between"
            )
    for name, value in values.items():
        if not 0 < value <= 1:
            raise SettingsError(f"target {name}={value:g} is out of range: it is a share, above 0 and at most 1")
    return Target(**values)
