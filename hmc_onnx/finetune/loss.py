"""What training minimises: how far the outputs are from the original's, and cross-entropy where there are labels.

Class scores are distilled as by Hinton et al. (arXiv:1503.02531): T² KL(softmax(t / T) ‖ softmax(s / T)). Another
output's values are taken for Gaussians of the variance that the original's have in the batch, as in
`calib.measure.divergence`: half the squared error as a share of that.

Hints (Romero et al., arXiv:1412.6550) are tensors within both networks, here the sums that end residual blocks; their
error is the squared difference as a share of the original's variance. On images that the original has learnt by heart
its class scores say little more than the labels do, and these still say all that it makes of the image.
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
STEEPNESS = 10.0  # of the mean error of the hints, beside the scores' divergence: both for one learning rate


@dataclass(frozen=True)
class Loss:
    """The loss of a batch.

    Attributes:
        temperature: T above.
        labels: weight of the cross-entropy with labels; the distillation has what is left of 1.
        probabilities: the class scores are probabilities, and not logits.
        judged: how many of the outputs the network is judged by: those behind them are hints.
        hints: share of the distillation that is of the hints.
        classes: the first output chooses a class for each image; else its error is a squared one, as of the others, and
            labels are not used.
    """

    temperature: float
    labels: float
    probabilities: bool = False
    judged: int = 1
    hints: float = 0.0
    classes: bool = True

    def __call__(self, outputs: Sequence[Tensor], answers: Sequence[Tensor], batch: Batch) -> Tensor:
        """The mean over images of the loss.

        Args:
            outputs: of the network: what it is judged by, and then the hints or none of them.
            answers: of the original.
            batch: what they are of, for its labels.
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
        """Logits (N, K), float32; one column decides between two classes."""
        flat = output.reshape(len(output), -1).float()
        if self.classes and flat.shape[1] == 1:
            flat = torch.cat([1 - flat if self.probabilities else torch.zeros_like(flat), flat], 1)
        return flat.clamp_min(SMALLEST).log() if self.probabilities else flat


def relative_error(output: Tensor, answer: Tensor) -> Tensor:
    """Mean squared error as a share of the answer's variance, both summed up in float32."""
    with torch.no_grad():
        spread = answer.float().var(correction=0).clamp_min(SMALLEST)
    error = torch.linalg.vector_norm(output - answer, dtype=torch.float32)  # no copies in float32
    return error**2 / output.numel() / spread


def are_probabilities(output: Tensor) -> bool:
    """Whether class scores are probabilities, as `calib.measure.divergence.log_probabilities` tells it."""
    flat = output.reshape(len(output), -1).float()
    return bool((flat >= 0).all()) and torch.allclose(flat.sum(1), torch.ones(()).to(flat), atol=1e-3)
