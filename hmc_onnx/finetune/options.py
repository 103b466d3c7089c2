"""The settings of fine-tuning, the same from the command line and from Python, and what an epoch came to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from passes.core.errors import SettingsError
from passes.core.records import Frozen

__all__ = ["Epoch", "FineTuning", "best_epoch"]

RATES = {"sgd": 0.004, "adamw": 3e-4}
NEAR_RATE, NEAR_HINTS = 0.003, 0.9


class FineTuning(Frozen):
    """How a network is fine-tuned.

    Attributes:
        batchnorm: what is done in training about batch normalisation. "reinsert" puts one behind each Conv of a folded
            graph, and folds it away again; a graph that has its own trains those. "frozen": the same, but their
            statistics are kept. "none": nothing is put in, and a graph's own keep their statistics. "auto": see
            `settled`.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    epochs: float | None = Field(default=None, gt=0, description="times that all images are gone through")
    minutes: float | None = Field(default=None, gt=0, description="time to train for; this or epochs")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    batchnorm: Literal["auto", "reinsert", "frozen", "none"] = "auto"
    optimizer: Literal["sgd", "adamw"] = "sgd"
    rate: float | None = Field(default=None, gt=0, description="highest learning rate; None: what suits the optimizer")
    weight_decay: float = Field(default=1e-4, ge=0)
    batch_size: int = Field(default=128, ge=2, description="images a step, of all processes together")
    temperature: float = Field(default=2.0, gt=0, description="of the distillation")
    labels: float | None = Field(
        default=None, ge=0, le=1, description="weight of the labels, the original having the rest; None: auto"
    )
    hints: float | None = Field(
        default=None, ge=0, le=1, description="share of the sums that end residual blocks in what is learnt; None: auto"
    )
    augmentation: Literal["auto", "crop", "resized", "flip", "none"] = "auto"
    mixup: float = Field(default=1.0, ge=0, le=1, description="largest share of another image laid over each")
    average: float = Field(default=0.998, ge=0, lt=1, description="decay of the mean of the weights over the steps")
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _one_bound(self) -> FineTuning:
        if self.epochs is not None and self.minutes is not None:
            raise SettingsError("epochs and minutes were both given: give one")
        return self

    def settled(self, near: bool) -> FineTuning:
        """With what was left open set, as it won: see docs/design.md.

        Args:
            near: the network does within what the original does, nearly. Then it follows that, with batch statistics
                frozen, as these alone would lose at once what closed-form repair has found. Else it learns anew.
        """
        rate = NEAR_RATE if near and self.optimizer == "sgd" else RATES[self.optimizer]
        own = {"batchnorm": "frozen" if near else "reinsert", "rate": rate}
        own |= {"hints": NEAR_HINTS, "labels": 0.0} if near else {"hints": 0.0, "labels": 0.1}
        return self.model_copy(update={k: v for k, v in own.items() if getattr(self, k) in (None, "auto")})


class Epoch(Frozen):
    """What an epoch came to; 0 is the network before it was trained.

    Attributes:
        loss: mean over the epoch's images, of the weights as they were at each step.
        held: loss of the averaged weights on the images that were held back, changed and mixed as in training, and
        top1: share of these, as they are, whose class is right; without labels: is the original's.
        seconds: since the beginning.
    """

    epoch: int
    loss: float
    held: float
    top1: float
    seconds: float


def best_epoch(history: Sequence[Epoch]) -> Epoch:
    """The one whose weights are taken: of the least loss on the images held back, the first of several."""
    return min(history, key=lambda e: e.held)
