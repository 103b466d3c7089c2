"""onnxruntime sessions: the one class through which all models run."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from operator import itemgetter
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
from passes.graph.external import bytes_held, has_external, moved_out, pages_let_go, relative
from passes.graph.precision import in_float32
from passes.graph.protos import EXTERNAL_DATA_THRESHOLD, first_line, large

__all__ = ["CPU", "KernelTime", "Runtime", "Session", "providers"]


# Session configuration key for the folder of external weights, for a model that is loaded from memory.
FOLDER = "session.model_external_initializers_file_folder_path"
OPENVINO = "OpenVINOExecutionProvider"
Chosen = list[str | tuple[str, dict[str, str]]]


@dataclass(frozen=True)
class Runtime:
    """How onnxruntime runs models.

    Attributes:
        provider: as for `providers`.
        threads: number of intra-op threads; 0: `default_threads`.
        options: options of the provider, "KEY=VALUE" each.
    """

    provider: str = "cpu"
    threads: int = 0
    options: tuple[str, ...] = ()

    @property
    def threads_used(self) -> int:
        """The number of intra-op threads that sessions really use, never 0."""
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
    """An onnxruntime session on a model that is held in memory.

    Where the provider lacks kernels for a model's bfloat16 or float64, the model is computed in float32.

    Args:
        proto: the model.
        runtime: how to run it.
        profiled: record the time of every kernel, for `profile`.
        timed: run at full speed: weights in external files are packed in memory, as in deployment. False: kernels read
            such weights directly from the mapped file where they can, which is slower and takes less memory.

    Attributes:
        outputs: names of the model's outputs.
        sequences: names of those outputs that are not tensors.
        input_shapes: shape of each input by name; an open size is a string or None.

    Raises:
        ModelError: onnxruntime cannot load the model.
        SettingsError: as for `providers`.
    """

    def __init__(
        self, proto: onnx.ModelProto, runtime: Runtime = CPU, profiled: bool = False, timed: bool = True
    ) -> None:
        options = ort.SessionOptions()
        # Otherwise a session's threads spin for a while after its run, and keep cores from the next session's threads.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._folder = TemporaryDirectory() if profiled else None
        if self._folder is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(self._folder.name) / "kernels")
        filed = has_external(proto)
        if not timed and filed:
            options.add_session_config_entry("session.disable_prepacking", "1")
            # the highest level changes the layout of Convs, which copies their weights
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        # 0 is onnxruntime's default, which also pins each thread to a core; an explicit number does not
        options.intra_op_num_threads = 0 if not runtime.threads and unrestricted() else runtime.threads_used
        options.log_severity_level = 4
        chosen = runtime.session_providers()
        if filed:
            gc.collect()  # graphs are reference cycles: uncollected ones still hold the weights that they have mapped
            pages_let_go()
            _trim()
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
        """Run one batch.

        Args:
            feeds: array for each input; converted to float32 where the input is float32.
            outputs: names of the outputs to return; None: all, in the order of the model.

        Raises:
            ModelError: onnxruntime fails on these inputs.
        """
        values = {n: v.astype(np.float32, copy=False) if n in self._float32 else v for n, v in feeds.items()}
        try:
            return list(self._session.run(None if outputs is None else list(outputs), values))
        except Exception as e:
            raise ModelError(f"onnxruntime cannot run the model: {first_line(e)}") from e

    def profile(self) -> list[KernelTime]:
        """The kernels that a `profiled` session has run so far, in order; this ends the profiling, so call it once."""
        assert self._folder is not None
        said = Path(self._session.end_profiling()).read_text(encoding="utf-8")
        self._folder.cleanup()
        # Objects are reduced as they are read: whole, they are a quarter of a million, which the garbage collector
        # goes through again and again, for several times as long as reading takes.
        events = json.loads(said, object_hook=_reduced)
        return [kernel for _, kernel in sorted(filter(None, events), key=itemgetter(0))]


class KernelTime(NamedTuple):
    """One run of one kernel: the node's name in the optimised graph, its operator, and its time in seconds."""

    name: str
    op: str
    seconds: float


def _reduced(part: dict[str, Any]) -> Any:
    """Of an object in onnxruntime's profile: start and `KernelTime` of a kernel's run, or its operator of arguments."""
    if part.get("cat") == "Node" and part["name"].endswith("_kernel_time"):
        return part["ts"], KernelTime(part["name"].removesuffix("_kernel_time"), part["args"], part["dur"] * 1e-6)
    return part.get("op_name")


@cache
def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None


def _trim() -> None:
    """Return freed memory to the system: of what a model was read with, or packed, glibc keeps as much as its size."""
    trim = getattr(_libc(), "malloc_trim", None)  # other C libraries lack it
    if trim is not None:
        trim(0)


def _start(proto: onnx.ModelProto, options: ort.SessionOptions, chosen: Chosen) -> ort.InferenceSession:
    """A session on the model, or on its float32 version where its types cannot be computed, fed or returned."""
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
