"""What is likely wrong with images or their labels, by a model's answers to a few of them, before the work."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from calib.data.calibration import CalibrationData, length
from calib.measure.divergence import check_comparable, settled
from calib.runtime.batching import TOLERANCE, at_once, declared_batch, whole_batches
from calib.runtime.sessions import CPU, Runtime
from hmc_onnx.analysis.sanity import Finding, findings
from hmc_onnx.comparison.judging import Judged
from passes.core.differences import relative_difference
from passes.core.errors import DataError, HmcWarning, ModelError
from passes.graph.outputs import Output

__all__ = ["look_at", "warn_of"]

# Images whose answers are looked at.
LOOKED_AT = 128
# Images that run one by one and together.
SIDE_BY_SIDE = 8


def look_at(
    proto: onnx.ModelProto, data: CalibrationData, runtime: Runtime = CPU, judge: Sequence[str] = ()
) -> list[Finding]:
    """What is likely wrong with the images, their preprocessing or their labels.

    Args:
        proto: the original model.
        data: images as it is fed them, with or without labels.
        runtime: how to run the model.
        judge: "NAME=kind" for each output whose kind the user states.

    Raises:
        ModelError: the model does not run, or its outputs tell images apart only where several run together.
    """
    judged = Judged(proto, runtime, judge)
    fixed = declared_batch(proto, data.feeds)
    size = fixed or at_once(data.feeds, LOOKED_AT)
    some, scores = data.draw(max(LOOKED_AT, size)), None
    if judged.outputs[0].kind in ("scores", "probabilities"):
        chunks = whole_batches(some, size, fixed)
        answers = [judged.run(feeds)[0] for feeds in chunks]
        if answers[0].ndim == 2 and len(answers[0]) == length(chunks[0]):
            scores = np.concatenate(answers)
    found = findings(proto, some, scores, data)
    return found if fixed else [*found, *_mixed(judged, {k: v[:SIDE_BY_SIDE] for k, v in some.feeds.items()})]


def warn_of(found: Sequence[Finding], fatal: Sequence[str] = ()) -> None:
    """Warn of each finding (`HmcWarning`).

    Args:
        found: what `look_at` found.
        fatal: codes of findings with which the result would mean nothing, besides those that say so.

    Raises:
        DataError: a finding is fatal.
    """
    for finding in found:
        if finding.fatal or finding.code in fatal:
            raise DataError(finding.sentence)
        warnings.warn(finding.sentence, HmcWarning, stacklevel=3)


def _mixed(judged: Judged, feeds: Mapping[str, np.ndarray]) -> list[Finding]:
    """A finding where the answer for an image depends on the others that run with it; raises as `look_at`."""
    images = length(feeds)
    alone = judged.batches([{k: v[i : i + 1] for k, v in feeds.items()} for i in range(images)])
    try:
        together = judged.run(feeds)
    except ModelError:  # it runs at one batch size alone
        return []
    kinds = settled(judged.outputs, alone, [1] * images)
    shares = [_apart(*each) for each in zip(kinds, alone, together, strict=True)]
    if max(shares) > TOLERANCE:
        check_comparable(kinds)
    for output, share in zip(kinds, shares, strict=True):
        if output.kind != "other" and TOLERANCE < share < math.inf:
            return [
                Finding(
                    code="mixed_batch",
                    sentence=f"the answer for an image depends on the others that run with it (output '{output.name}' "
                    f"differs by {share:.0%} among {images}): it is measured one image a run, so serve it like that",
                )
            ]
    return []


def _apart(output: Output, alone: Sequence[np.ndarray], together: np.ndarray) -> float:
    """The difference of an output for images that run one by one and together; infinite if it has other shapes."""
    if together.ndim <= output.images:
        return math.inf
    rows = np.concatenate(alone, axis=output.images)
    return relative_difference(rows, together) if rows.shape == together.shape else math.inf
