"""The training loss: the distance of the outputs from the original's, and cross-entropy if there are labels.

Class scores are distilled (Hinton et al., arXiv:1503.02531): with the original's logits t, the network's s and a
temperature T the loss is T² KL(softmax(t / T) ‖ softmax(s / T)). For any other output it is half the squared error
divided by the variance of the original's values in the batch, as in `calib.measure.divergence`.

Hints (Romero et al., arXiv:1412.6550) are intermediate tensors of both networks, here the sums that end residual
blocks. Their error is the squared difference divided by the original's variance. They help on images that the original
has memorised, where its class scores say little more than the labels, but its activations still describe the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hmc_onnx.finetune.images import Batch

__all__ = ["Loss", "are_probabilities", "relative_error"]

SMALLEST = 1e-12
STEEPNESS = 10.0  # factor on the hints' mean error, so that one learning rate suits both hints and scores


@dataclass(frozen=True)
class Loss:
    """The loss of a batch.

    Attributes:
        temperature: T above.
        labels: weight of the cross-entropy with labels, 0 to 1; the distillation has the rest.
        probabilities: whether the class scores are probabilities; else they are logits.
        judged: number of network outputs that are compared; the tensors after these are hints.
        hints: weight of the hints within the distillation, 0 to 1.
        classes: whether the first output is class scores. If not, it has a squared error like the other outputs, and
            labels are not used.
    """

    temperature: float
    labels: float
    probabilities: bool = False
    judged: int = 1
    hints: float = 0.0
    classes: bool = True

    def __call__(self, outputs: Sequence[Tensor], answers: Sequence[Tensor], batch: Batch) -> Tensor:
        """The mean loss over the images, a scalar.

        Args:
            outputs: tensors of the network: the `judged` outputs, optionally followed by the hints.
            answers: the same tensors of the original.
            batch: the images' batch, for its labels.
        """
        scores, wanted = (self.scores(o[0]) for o in (outputs, answers))
        t = self.temperature
        if self.classes:
            distilled = t**2 * F.kl_div(
                F.log_softmax(scores / t, 1), F.log_softmax(wanted / t, 1), reduction="batchmean", log_target=True
            )
        else:
            distilled = relative_error(outputs[0], answers[0]) / 2
        errors = [relative_error(output, answer) for output, answer in zip(outputs[1:], answers[1:], strict=True)]
        others, hints = errors[: self.judged - 1], errors[self.judged - 1 :]
        distilled = distilled + sum(others) / 2
        if hints:
            distilled = (1 - self.hints) * distilled + self.hints * STEEPNESS * sum(hints) / len(hints)
        if batch.labels is None or not self.labels or not self.classes:
            return distilled
        wrong = F.cross_entropy(scores, batch.labels, reduction="none")
        if batch.share is not None and batch.other is not None:
            wrong = torch.lerp(wrong, F.cross_entropy(scores, batch.other, reduction="none"), batch.share)
        return (1 - self.labels) * distilled + self.labels * wrong.mean()

    def scores(self, output: Tensor) -> Tensor:
        """An output as logits (N, K), float32; one column becomes two classes."""
        flat = output.reshape(len(output), -1).float()
        if self.classes and flat.shape[1] == 1:
            flat = torch.cat([1 - flat if self.probabilities else torch.zeros_like(flat), flat], 1)
        return flat.clamp_min(SMALLEST).log() if self.probabilities else flat


def relative_error(output: Tensor, answer: Tensor) -> Tensor:
    """Mean squared error divided by the variance of `answer`, a scalar; both are computed in float32."""
    with torch.no_grad():
        spread = answer.float().var(correction=0).clamp_min(SMALLEST)
    error = torch.linalg.vector_norm(output - answer, dtype=torch.float32)  # avoids float32 copies of both
    return error**2 / output.numel() / spread


def are_probabilities(output: Tensor) -> bool:
    """Whether class scores are probabilities, by the rule of `calib.measure.divergence.log_probabilities`."""
    flat = output.reshape(len(output), -1).float()
    return bool((flat >= 0).all()) and torch.allclose(flat.sum(1), torch.ones(()).to(flat), atol=1e-3)
