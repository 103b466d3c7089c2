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
from hmc_onnx.handoff.engines import kept_apart, largest_batch
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
from passes.graph.protos import first_line

__all__ = ["HandedOver", "read"]


@dataclass(frozen=True)
class HandedOver:
    """A model that was handed over, and how its server runs it.

    Attributes:
        proto: the model.
        batch: the most images that the server runs at once; None where the folder does not say.
        provider: short name, such as "cpu"; "auto" where it is left to the server.
        threads: of onnxruntime; 0: what it chooses.
        provider_option: options of the provider, "KEY=VALUE" each, but for how TensorRT builds the engines of this
            model alone.
    """

    proto: onnx.ModelProto
    batch: int | None
    provider: str
    threads: int
    provider_option: tuple[str, ...] = ()


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
    provider, options = short_name(session.providers[0]), session.provider_options[0]
    given = () if provider == "tensorrt" else tuple(f"{key}={value}" for key, value in options.items())
    return HandedOver(proto, session.batch, provider, session.intra_op_num_threads, given)


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
    if short_digest(proto).encode() not in (folder / SCRIPT).read_bytes():
        raise _other_engines(folder / SCRIPT)
    return HandedOver(proto, largest_batch(options), "tensorrt", 0)


def _model(path: Path) -> onnx.ModelProto:
    if not path.exists():
        raise ModelError(f"'{path}' is missing: write the folder again")
    return load(path)


def _check_engines(options: Mapping[str, str], proto: onnx.ModelProto, path: Path) -> None:
    """Check that engines are kept under this model's digest, so that none of another model is served for it."""
    if not kept_apart(options, short_digest(proto)):
        raise _other_engines(path)


def _other_engines(path: Path) -> ModelError:
    return ModelError(
        f"'{path}' does not name its engines after the model beside it, so that another model's engines could be "
        "served: write the folder again"
    )


def _triton(path: Path) -> HandedOver:
    """The model of a repository, after a check that its configuration is what the model asks for."""
    try:
        said = _Configuration.of(parsed(path.read_text(encoding="utf-8")))
    except (OSError, ParseError, LookupError, ValueError, TypeError, AttributeError, RecursionError) as e:
        raise ModelError(
            f"'{path}' is not the configuration of a model ({first_line(e)}): write the folder again"
        ) from e
    if said.backend != "onnxruntime":
        raise ModelError(
            f"'{path}' is for the backend '{said.backend}', and not for onnxruntime: write the folder again"
        )
    if path.resolve().parent.name != said.name:
        raise ModelError(
            f"'{path}' is of the model '{said.name}', and its folder has another name: rename one of the two"
        )
    file = path.parent / "1" / said.file
    proto = _model(file / "model.onnx" if file.is_dir() else file)
    expected = tensors(Served.of(proto, said.name, Handoff(batch=said.batch), Images()))
    for what in ("input", "output"):
        if said.tensors[what] != expected[what]:
            raise ModelError(f"'{path}' has other {what}s than the model beside it: write the folder again")
    if said.provider == "tensorrt":
        _check_engines(said.engines, proto, path)
    return HandedOver(proto, said.batch, said.provider, said.threads)


@dataclass(frozen=True)
class _Configuration:
    """What is read of a model's configuration for Triton: see `hmc_onnx.handoff.triton.config`.

    Attributes:
        name, backend: of the model.
        file: name of the model's file, or of its folder.
        batch: the most images at once; None where the model fixes it.
        threads: of onnxruntime; 0: what it chooses.
        provider: short name of the execution provider, or "auto".
        tensors: the inputs ("input") and outputs ("output").
        engines: options of the TensorRT provider.
    """

    name: str
    backend: str
    file: str
    batch: int | None
    threads: int
    provider: str
    tensors: dict[str, list[dict[str, Any]]]
    engines: dict[str, str]

    @classmethod
    def of(cls, said: Mapping[str, list[Any]]) -> _Configuration:
        """Of a message; raises LookupError, ValueError, TypeError or AttributeError where it is no configuration."""
        most = int(said.get("max_batch_size", [0])[0])
        parameters = {p["key"][0]: p["value"][0]["string_value"][0] for p in said.get("parameters", [])}
        threads = int(parameters.get("intra_op_thread_count", 0))
        if most < 0 or threads < 0:
            raise ValueError("a number of images or threads is below 0")
        kind = said.get("instance_group", [{}])[0].get("kind", ["KIND_AUTO"])[0]
        accelerators = said.get("optimization", [{}])[0].get("execution_accelerators", [{}])[0]
        on_gpu = accelerators.get("gpu_execution_accelerator", [{}])[0]
        provider = {"KIND_CPU": "cpu", "KIND_GPU": "cuda"}.get(kind, "auto")
        if on_gpu:
            provider = on_gpu["name"][0]
        elif "cpu_execution_accelerator" in accelerators:
            provider = accelerators["cpu_execution_accelerator"][0]["name"][0]
        return cls(
            name=said["name"][0],
            backend=said.get("backend", ["none"])[0],
            file=said.get("default_model_filename", ["model.onnx"])[0],
            batch=most or None,
            threads=threads,
            provider=provider,
            tensors={what: [_plain(t) for t in said.get(what, [])] for what in ("input", "output")},
            engines={p["key"][0]: p["value"][0] for p in on_gpu.get("parameters", [])},
        )


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": message["name"][0], "data_type": message["data_type"][0], "dims": message["dims"]}
