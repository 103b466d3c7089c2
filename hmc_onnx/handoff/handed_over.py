"""What was handed over, read back from its folder as the server reads it, to be run and compared."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.text_format import ParseError
from pydantic import TypeAdapter

from calib.runtime.providers import short_name
from hmc_onnx.handoff.onnxruntime import SESSION, SessionFile
from hmc_onnx.handoff.served import Served, short_digest
from hmc_onnx.handoff.tensorrt import OPTIONS, SCRIPT
from hmc_onnx.handoff.text_format import parsed
from hmc_onnx.handoff.triton import tensors
from hmc_onnx.records.handoff import Handoff
from hmc_onnx.records.images import Images
from passes.core.errors import ModelError
from passes.core.records import read_record
from passes.graph.files import load

__all__ = ["HandedOver", "read"]


@dataclass(frozen=True)
class HandedOver:
    """A model that was handed over, and how its server runs it.

    Attributes:
        proto: the model.
        batch: the most images that the server runs at once; None where the folder does not say.
        provider: short name, such as "cpu"; "auto" where it is left to the server.
        threads: of onnxruntime; 0: what it chooses.
    """

    proto: onnx.ModelProto
    batch: int | None
    provider: str
    threads: int


def read(folder: str | os.PathLike[str]) -> HandedOver:
    """Read a folder that `handoff` wrote.

    Raises:
        ModelError: it is no such folder, or what is in it does not fit together.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ModelError(f"'{folder}' {what}: give the folder that `hmc-onnx handoff` wrote")
    if (folder / SESSION).is_file():
        return _onnxruntime(folder)
    if (folder / SCRIPT).is_file() or (folder / OPTIONS).is_file():
        return _tensorrt(folder)
    configs = sorted(folder.glob("*/config.pbtxt"))
    if len(configs) == 1:
        return _triton(configs[0])
    if configs:
        names = ", ".join(f"'{config.parent.name}'" for config in configs)
        raise ModelError(f"'{folder}' holds {len(configs)} models ({names}): give the folder of one of them")
    if (folder / "config.pbtxt").is_file():
        return _triton(folder / "config.pbtxt")
    raise ModelError(
        f"'{folder}' holds no model that was handed over (it has neither {SESSION}, nor {SCRIPT}, nor a "
        "config.pbtxt): give a folder that `hmc-onnx handoff` wrote"
    )


def _onnxruntime(folder: Path) -> HandedOver:
    session = read_record(folder / SESSION, SessionFile, "session options", "a file of session options", ModelError)
    proto = _model(folder / "model.onnx")
    for options in session.provider_options:
        _check_engines(options, proto, folder / SESSION)
    return HandedOver(proto, session.batch, short_name(session.providers[0]), session.intra_op_num_threads)


def _tensorrt(folder: Path) -> HandedOver:
    """The model of TensorRT's folder, after a check that script and options keep engines for it and no other."""
    for file in (folder / SCRIPT, folder / OPTIONS):
        if not file.is_file():
            raise ModelError(f"'{file}' is missing: write the folder again")
    proto = _model(folder / "model.onnx")
    try:
        options = TypeAdapter(dict[str, str]).validate_json((folder / OPTIONS).read_bytes())
    except ValueError as e:
        raise ModelError(f"'{folder / OPTIONS}' holds no options of a provider: write the folder again") from e
    _check_engines(options, proto, folder / OPTIONS)
    if short_digest(proto) not in (folder / SCRIPT).read_text(encoding="utf-8"):
        raise _other_engines(folder / SCRIPT)
    return HandedOver(proto, None, "tensorrt", 0)


def _model(path: Path) -> onnx.ModelProto:
    if not path.exists():
        raise ModelError(f"'{path}' is missing: write the folder again")
    return load(path)


def _check_engines(options: Mapping[str, str], proto: onnx.ModelProto, path: Path) -> None:
    """Check that engines are kept under this model's digest, so that none of another model is served for it."""
    prefix = options.get("trt_engine_cache_prefix")
    if prefix is not None and not prefix.endswith(f"_{short_digest(proto)}"):
        raise _other_engines(path)


def _other_engines(path: Path) -> ModelError:
    return ModelError(
        f"'{path}' names its engines after another model than the one beside it, so that engines of that model would "
        "be served: write the folder again"
    )


def _triton(path: Path) -> HandedOver:
    """The model of a repository, after a check that its configuration is what the model asks for."""
    try:
        said = parsed(path.read_text(encoding="utf-8"))
        name, most = said["name"][0], said.get("max_batch_size", [0])[0]
        parameters = {p["key"][0]: p["value"][0]["string_value"][0] for p in said.get("parameters", [])}
        threads = int(parameters.get("intra_op_thread_count", 0))
    except (OSError, ParseError, KeyError, ValueError, TypeError) as e:
        raise ModelError(f"'{path}' is not the configuration of a model ({e}): write the folder again") from e
    if path.resolve().parent.name != name:
        raise ModelError(f"'{path}' is of the model '{name}', and its folder has another name: rename one of the two")
    file = path.parent / "1" / "model.onnx"
    proto = _model(file / "model.onnx" if file.is_dir() else file)
    served = Served.of(proto, name, Handoff(batch=most or None), Images())
    expected = tensors(served)
    for what in ("input", "output"):
        if [_plain(t) for t in said.get(what, [])] != expected[what]:
            raise ModelError(f"'{path}' has other {what}s than the model beside it: write the folder again")
    provider = "auto"
    if said.get("instance_group"):
        provider = "cpu" if said["instance_group"][0]["kind"][0] == "KIND_CPU" else "cuda"
    if said.get("optimization"):
        provider = "openvino" if provider == "cpu" else "tensorrt"
    if provider == "tensorrt":
        _check_engines(_accelerator_options(said), proto, path)
    return HandedOver(proto, most or None, provider, threads)


def _accelerator_options(said: Mapping[str, Any]) -> dict[str, str]:
    """The options of the TensorRT provider in a configuration."""
    accelerators = said["optimization"][0].get("execution_accelerators", [{}])[0]
    accelerator = accelerators.get("gpu_execution_accelerator", [{}])[0]
    return {p["key"][0]: p["value"][0] for p in accelerator.get("parameters", [])}


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": message["name"][0], "data_type": message["data_type"][0], "dims": message["dims"]}
