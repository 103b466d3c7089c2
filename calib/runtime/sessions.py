"""onnxruntime sessions: the one place that runs a model."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import onnx

from calib.runtime import ort
from calib.runtime.providers import CPU as CPU_PROVIDER
from calib.runtime.providers import parse_options, providers
from calib.runtime.threads import default_threads, unrestricted
from passes.core.errors import ModelError
from passes.graph.external import bytes_held, has_external, moved_out, relative
from passes.graph.precision import in_float32
from passes.graph.protos import EXTERNAL_DATA_THRESHOLD, first_line, large

__all__ = ["CPU", "KernelTime", "Runtime", "Session", "providers"]


# The entry of a session's configuration that names the folder of external weights, for a model held in memory.
FOLDER = "session.model_external_initializers_file_folder_path"
OPENVINO = "OpenVINOExecutionProvider"
Chosen = list[str | tuple[str, dict[str, str]]]


@dataclass(frozen=True)
class Runtime:
    """How onnxruntime runs models.

    Attributes:
        provider: as for `providers`.
        threads: the intra-op threads that are asked for; 0: `default_threads`.
        options: of the provider, "KEY=VALUE" each.
    """

    provider: str = "cpu"
    threads: int = 0
    options: tuple[str, ...] = ()

    @property
    def threads_used(self) -> int:
        """The intra-op threads that sessions have: never 0."""
        return self.threads or default_threads()

    @property
    def name(self) -> str:
        """onnxruntime's name of the provider; raises as `providers` does."""
        return providers(self.provider, self.options)[0]

    @property
    def on_cpu(self) -> bool:
        """Whether onnxruntime's own kernels for the CPU run the model; raises as `providers` does."""
        return self.name == CPU_PROVIDER

    def session_providers(self) -> list[str | tuple[str, dict[str, str]]]:
        """The providers in the form that sessions take; raises as `providers` does.

        OpenVINO does not see the number of threads that a session has: it is told by an option.
        """
        first, *others = providers(self.provider, self.options)
        given = parse_options(self.options)
        on_cpu = given.get("device_type", "CPU").startswith("CPU")
        if first == OPENVINO and on_cpu and not {"num_of_threads", "load_config"} & given.keys():
            given["num_of_threads"] = str(self.threads_used)
        return [(first, given) if given else first, *others]


CPU = Runtime()


class Session:
    """An onnxruntime session on a model held in memory.

    A model of bfloat16 or float64 for which the provider has no kernels is computed in float32.

    Args:
        proto: the model.
        runtime: how to run it.
        profiled: keep the time of every kernel, for `profile`.
        timed: keep weights that are in a file packed in memory, as they are when served. Else kernels that can read
            them where they are do, which is slower.

    Raises:
        ModelError: onnxruntime cannot load the model.
        SettingsError: as for `providers`.
    """

    def __init__(
        self, proto: onnx.ModelProto, runtime: Runtime = CPU, profiled: bool = False, timed: bool = True
    ) -> None:
        options = ort.SessionOptions()
        # Else the threads of one session spin for a while after its run, and take the cores from the next session's.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._folder = TemporaryDirectory() if profiled else None
        if self._folder is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(self._folder.name) / "kernels")
        filed = has_external(proto)
        if not timed and filed:
            options.add_session_config_entry("session.disable_prepacking", "1")
            # the last level brings Convs into another layout, with copies of their weights
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        # its own default also binds each thread to a core, which a number that is set does not
        options.intra_op_num_threads = 0 if not runtime.threads and unrestricted() else runtime.threads_used
        options.log_severity_level = 4
        chosen = runtime.session_providers()
        if filed:
            gc.collect()  # graphs are rings of nodes and tensors, and old ones still map what they have read
        try:
            self._session = _start(proto, options, chosen)
        except Exception as e:  # onnxruntime's exceptions share no base but Exception
            raise ModelError(f"onnxruntime cannot load the model: {first_line(e)}") from e
        if filed:
            _trim()
        fed = [*self._session.get_inputs(), *self._session.get_overridable_initializers()]
        self._float32 = {i.name for i in fed if i.type == "tensor(float)"}
        self.outputs: list[str] = [o.name for o in self._session.get_outputs()]
        self.sequences = {o.name for o in self._session.get_outputs() if not o.type.startswith("tensor(")}
        self.input_shapes: dict[str, list[Any]] = {i.name: i.shape for i in self._session.get_inputs()}

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> list[np.ndarray]:
        """The named outputs (all by default) for one batch.

        Raises:
            ModelError: onnxruntime fails on these inputs.
        """
        values = {n: v.astype(np.float32, copy=False) if n in self._float32 else v for n, v in feeds.items()}
        try:
            return list(self._session.run(None if outputs is None else list(outputs), values))
        except Exception as e:
            raise ModelError(f"onnxruntime cannot run the model: {first_line(e)}") from e

    def profile(self) -> list[KernelTime]:
        """What a `profiled` session has run since it was made, kernel by kernel, in order; it can be asked once."""
        assert self._folder is not None
        events = json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8"))
        self._folder.cleanup()
        return [
            KernelTime(e["name"].removesuffix("_kernel_time"), e["args"]["op_name"], e["dur"] * 1e-6)
            for e in sorted(events, key=lambda e: e["ts"])
            if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")
        ]


class KernelTime(NamedTuple):
    """One run of one kernel: the node's name in the optimised graph, its operator, and seconds."""

    name: str
    op: str
    seconds: float


@cache
def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None


def _trim() -> None:
    """Give freed memory back: glibc keeps what a session has freed in packing its weights, as much as they are."""
    trim = getattr(_libc(), "malloc_trim", None)  # other libraries of C have none
    if trim is not None:
        trim(0)


def _start(proto: onnx.ModelProto, options: ort.SessionOptions, chosen: Chosen) -> ort.InferenceSession:
    """A session on the model, or on one in float32 where this has types that cannot be run, fed or returned."""
    try:
        session = _load(proto, options, chosen)
    except Exception:  # onnxruntime's exceptions share no base but Exception
        computable = in_float32(proto)
        if computable is None:
            raise
        return _load(computable, options, chosen)
    if any(value.type == "tensor(bfloat16)" for value in (*session.get_inputs(), *session.get_outputs())):
        return _load(in_float32(proto) or proto, options, chosen)
    return session


def _load(proto: onnx.ModelProto, options: ort.SessionOptions, chosen: Chosen) -> ort.InferenceSession:
    if bytes_held(proto) >= EXTERNAL_DATA_THRESHOLD:
        with TemporaryDirectory() as temporary:
            return _load(moved_out(proto, large(proto), Path(temporary) / "weights"), options, chosen)
    light, folder = relative(proto)
    if folder is not None:
        options.add_session_config_entry(FOLDER, str(folder))
    # Its own fallback would run the model on the CPU when the provider fails, and say so on standard output.
    return ort.InferenceSession(light.SerializeToString(), options, providers=chosen, disable_fallback=True)
