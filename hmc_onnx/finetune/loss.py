"""What training minimises: how far the outputs are from the original's, and cross-entropy where there are labels.

Class scores are distilled as by Hinton et al. (arXiv:1503.02531): T² KL(softmax(t / T) ‖ softmax(s / T)). Another
output's values are taken for Gaussians of the variance that the original's have in the batch, as in
`calib.divergence`: half the squared error as a share of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hmc_onnx.finetune.images import Batch

__all__ = ["Loss", "are_probabilities"]

SMALLEST = 1e-12


@dataclass(frozen=True)
class Loss:
    """The loss of a batch.

    Attributes:
        temperature: T above.
        labels: weight of the cross-entropy with labels; the distillation has what is left of 1.
        probabilities: the class scores are probabilities, and not logits.
    """

    temperature: float
    labels: float
    probabilities: bool = False

    def __call__(self, outputs: Sequence[Tensor], answers: Sequence[Tensor], batch: Batch) -> Tensor:
        """The mean over images of the loss; the first output is the class scores.

        Args:
            outputs: of the network, what is judged of it.
            answers: of the original.
            batch: what they are of, for its labels.
        """
        scores, wanted = (self.scores(o[0]) for o in (outputs, answers))
        t = self.temperature
        distilled = t**2 * F.kl_div(
            F.log_softmax(scores / t, 1), F.log_softmax(wanted / t, 1), reduction="batchmean", log_target=True
        )
        for output, answer in zip(outputs[1:], answers[1:], strict=True):
            spread = answer.float().var(correction=0).clamp_min(SMALLEST)
            distilled = distilled + ((output.float() - answer.float()) ** 2).mean() / (2 * spread)
        if batch.labels is None or not self.labels:
            return distilled
        errors = F.cross_entropy(scores, batch.labels, reduction="none")
        if batch.share is not None and batch.other is not None:
            errors = torch.lerp(errors, F.cross_entropy(scores, batch.other, reduction="none"), batch.share)
        return (1 - self.labels) * distilled + self.labels * errors.mean()

    def scores(self, output: Tensor) -> Tensor:
        """Logits (N, K), float32."""
        flat = output.reshape(len(output), -1).float()
        return flat.clamp_min(SMALLEST).log() if self.probabilities else flat


def are_probabilities(output: Tensor) -> bool:
    """Whether class scores are probabilities, as `calib.divergence.log_probabilities` tells it."""
    flat = output.reshape(len(output), -1).float()
    return bool((flat >= 0).all()) and torch.allclose(flat.sum(1), torch.ones(()).to(flat), atol=1e-3)
