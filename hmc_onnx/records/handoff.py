"""How a compressed model is handed over to a server."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from calib.runtime.providers import parse_options
from hmc_onnx.records.options import Option, Options
from hmc_onnx.records.settings import MOST_THREADS

__all__ = ["MOST_IMAGES", "Handoff", "ServingTarget"]

ServingTarget = Literal["triton", "tensorrt", "onnxruntime"]

# Servers hold a number of images in 32 bits.
MOST_IMAGES = 2**31 - 1
NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
PLANNED = "what the file was planned for"


class Handoff(Options):
    """How a model will be served; what is None is taken from what the file says of itself (`Provenance`).

    Raises:
        SettingsError: a value is out of range.
    """

    panel: ClassVar[str] = "Handoff"

    batch: Annotated[int | None, Option(default=f"{PLANNED}, else 1")] = Field(
        default=None, ge=1, le=MOST_IMAGES, description="Images that the server may run at once."
    )
    threads: Annotated[int | None, Option(default=f"{PLANNED}, else what onnxruntime chooses")] = Field(
        default=None,
        ge=0,
        le=MOST_THREADS,
        description="Threads of onnxruntime on the server; 0: what onnxruntime chooses there.",
    )
    provider: Annotated[
        str | None,
        Option(default=f"{PLANNED}; auto leaves it to Triton, and is cpu for onnxruntime"),
    ] = Field(default=None, description="Execution provider of onnxruntime on the server.")
    provider_option: Annotated[
        tuple[str, ...] | None,
        Option(given=list[str], metavar="K=V", example="[device_type=GPU]", default=f"{PLANNED}, if for this provider"),
    ] = Field(default=None, description="An option of that provider (may be repeated).")
    name: Annotated[str | None, Option(default="the file's name without its ending")] = Field(
        default=None, description="The model's name on the server: letters, digits, '_', '-' and '.'."
    )

    @field_validator("provider_option")
    @classmethod
    def _of_keys_and_values(cls, options: tuple[str, ...] | None) -> tuple[str, ...] | None:
        parse_options(options or ())
        return options

    @field_validator("name")
    @classmethod
    def _as_servers_take_it(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(NAME, name):
            raise ValueError("use letters, digits, '_', '-' and '.', and begin with a letter, a digit or '_'")
        return name
