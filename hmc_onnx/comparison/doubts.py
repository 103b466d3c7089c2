"""What a comparison shows that speaks against serving the compressed model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

from calib.runtime.sessions import Runtime
from hmc_onnx.records.comparison import Timing, Verification
from passes.core.errors import HmcWarning

__all__ = ["with_doubts"]

# Share by which a file may be slower than what a quantiser alone gives before that is said.
BEHIND = 0.05
# Factor by which the original takes longer than it did before where the machine is busy for sure.
BUSY = 1.2


def with_doubts(
    found: Verification, runtime: Runtime, batch: int | None = None, seconds: float | None = None
) -> Verification:
    """The comparison with its doubts, each of which is warned of, too (`HmcWarning`).

    Args:
        found: the comparison.
        runtime: how both models were run.
        batch: the batch size that is served; None where it is not known, and all that were timed count.
        seconds: what a run of the original at that size took before; None where that is not known.
    """
    sentences = [*_disturbed(found, batch, seconds), *_doubts(found, runtime, batch)]
    for sentence in sentences:
        warnings.warn(sentence, HmcWarning, stacklevel=3)
    return found.model_copy(update={"doubts": sentences})


def _disturbed(found: Verification, batch: int | None, seconds: float | None) -> Iterator[str]:
    for timing in found.timings:
        if seconds is not None and timing.batch == batch and timing.a > BUSY * 1e3 * seconds:
            yield (
                f"the machine was busy while the models were timed: the original took {timing.a:.3g} ms at batch "
                f"{batch}, and {1e3 * seconds:.3g} ms before, so these times may be off: compare again with "
                "'hmc-onnx verify' when nothing else runs"
            )


def _doubts(found: Verification, runtime: Runtime, batch: int | None) -> Iterator[str]:
    if not math.isfinite(found.kl):
        yield (
            "the compressed model, or the original, answers with NaN or infinity on some of these images: do not serve "
            "it before you know why"
        )
    if found.unchanged is None:
        return
    if found.unchanged.precision == "fp16" and runtime.on_cpu:
        yield "these times are not those of the target: onnxruntime has no float16 kernels for processors"
    if found.unchanged.precision != "int8":
        return
    alone = {t.batch: t for t in found.unchanged.timings}
    served = [(t, alone[t.batch]) for t in found.timings if batch in (None, t.batch)]
    takes = "this file takes {0.ratio:.2f} of the original's time at batch {0.batch}"
    if served and all(_slower(own, 1.0) for own, _ in served):
        yield f"{takes.format(served[0][0])}: INT8 is slow here, so give another `precision`, or serve the original"
    elif served and all(_slower(own, other.ratio + other.uncertainty) for own, other in served):
        own, other = min(served, key=lambda pair: pair[1].ratio)
        yield (
            f"{takes.format(own)}, and quantising alone, which is the `target` none, gives {other.ratio:.2f}: a target "
            f"for the time that is below that, such as latency={min(0.8 * other.ratio, 0.99):.2f}, gives less"
        )


def _slower(timing: Timing, ratio: float) -> bool:
    """Whether a model is slower for sure than one that takes `ratio` of the original's time."""
    return timing.sure and timing.ratio - timing.uncertainty > (1 + BEHIND) * ratio
