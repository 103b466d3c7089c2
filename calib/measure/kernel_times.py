"""The time of a whole model by its kernels, as onnxruntime's profiler gives them.

A whole run is calm only if nothing disturbs it from its first kernel to its last, and on a busy machine no run may be.
A single kernel is short, so that some of its runs are calm nearly always. The sum of the kernels' lower deciles is thus
the time of a calm run, and can be compared with the times of layers alone, which are measured in the same way.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from calib.measure.latency import undisturbed
from calib.runtime.sessions import CPU, Runtime, Session

__all__ = ["KernelTimes", "kernel_times"]

# The kernels of layers and of what is timed with them: activations, residual sums and changes of layout.
LAYERS = re.compile(r"Conv|Gemm|MatMul|Add$|Relu|Clip|Sigmoid|Swish|Tanh|Reorder|QuantizeLinear")
WARM_UP, MOST_RUNS, LEAST_RUNS, SECONDS = 2, 40, 10, 2.0


@dataclass(frozen=True)
class KernelTimes:
    """Seconds of a calm run: the whole, and each kernel by name and operator."""

    whole: float
    each: Mapping[tuple[str, str], float]

    @property
    def layers(self) -> float:
        """The seconds of the kernels of layers, with what is timed with them."""
        return sum(seconds for (_, op), seconds in self.each.items() if LAYERS.search(op))


def kernel_times(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], runtime: Runtime = CPU) -> KernelTimes | None:
    """Time a model kernel by kernel.

    Args:
        model: the model as it is served.
        feeds: of one run.
        runtime: how to run it.

    Returns:
        None where the provider does not wait for its kernels, so that the profiler says nothing of their time.

    Raises:
        ModelError: onnxruntime cannot run the model.
    """
    if not runtime.on_cpu:
        return None
    session = Session(model, runtime, profiled=True)
    runs: list[float] = []
    while len(runs) < WARM_UP + LEAST_RUNS or (len(runs) < MOST_RUNS and sum(runs) < SECONDS):
        start = time.perf_counter()
        session.run(feeds)
        runs.append(time.perf_counter() - start)
    spent: dict[tuple[str, str], list[float]] = defaultdict(list)
    for kernel in session.profile():
        spent[kernel.name, kernel.op].append(kernel.seconds)
    # a kernel in the body of a loop runs several times in a run
    calm = {k: undisturbed(np.array(own)).value * len(own) / len(runs) for k, own in spent.items()}
    between = max(sum(runs) - sum(map(sum, spent.values())), 0.0) / sum(runs)
    return KernelTimes(sum(calm.values()) / max(1 - between, 0.5), calm)
