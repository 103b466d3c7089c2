"""A compressed model handed over to a server: the files that Triton, TensorRT or onnxruntime need, in one folder.

This package can be called: `hmc_onnx.handoff(model, "triton", "repository")` calls the function `handoff` below.
"""

from __future__ import annotations

import os
from pathlib import Path

import onnx

from hmc_onnx.callable_package import make_callable
from hmc_onnx.handoff import onnxruntime, tensorrt, triton
from hmc_onnx.handoff.handed_over import HandedOver
from hmc_onnx.handoff.handed_over import read as handed_over
from hmc_onnx.handoff.served import Served
from hmc_onnx.records.handoff import Handoff, ServingTarget
from hmc_onnx.records.images import Images
from passes.core.arguments import check_one_of
from passes.core.atomic import new_folder
from passes.core.errors import SettingsError
from passes.graph.files import load

__all__ = ["HandedOver", "Handoff", "handed_over", "handoff"]

WRITERS = {"triton": triton.write, "tensorrt": tensorrt.write, "onnxruntime": onnxruntime.write}
# Of the preprocessing, what says the shape of an input that leaves its size open.
SHAPE = {"size", "layout"}


def handoff(
    model: onnx.ModelProto | str | os.PathLike[str],
    to: ServingTarget,
    directory: str | os.PathLike[str],
    *,
    options: Handoff | None = None,
    images: Images | None = None,
) -> list[str]:
    """Write what a server needs to run a model into a new folder: whole, or not at all.

    Args:
        model: a model or the path of one, of any precision.
        to: "triton", "tensorrt" or "onnxruntime".
        directory: the folder; it may be there already if it is empty or, for Triton, is a repository of other models.
        options: how the model will be served; default: what it was planned for.
        images: how an image becomes the input: for the script of onnxruntime, and for the size of an input that leaves
            it open.

    Returns:
        Remarks, a sentence each.

    Raises:
        ModelError: the model cannot be read, or the server cannot run it.
        SettingsError: the target is unknown, or an option does not fit the model.
        OutputError: the folder is not empty, or cannot be written.
    """
    check_one_of(to, ServingTarget, "target")
    options, images = options or Handoff(), images or Images()
    if to == "tensorrt":
        tensorrt.check_provider(options.provider)
        options = options.model_copy(update={"provider": "tensorrt"})
    unused = sorted(images.model_fields_set - SHAPE) if to != "onnxruntime" else []
    if unused:
        given = ", ".join(f"`{name}`" for name in unused)
        raise SettingsError(f"{given}: only what is handed over to onnxruntime prepares images: leave it out")
    name = "model" if isinstance(model, onnx.ModelProto) else Path(model).stem
    proto = model if isinstance(model, onnx.ModelProto) else load(model)
    served = Served.of(proto, name, options, images)
    place = Path(directory)
    # Triton wants a folder for each model, in a repository that may hold others already
    added = to == "triton" and any(place.glob("*/config.pbtxt"))
    with new_folder(place / served.name if added else place) as folder:
        own = folder / served.name if to == "triton" and not added else folder
        own.mkdir(exist_ok=True)
        return WRITERS[to](served, own)


make_callable(__name__, handoff)
