"""The settings of fine-tuning, the same from the command line and from Python, and what an epoch came to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from hmc_onnx.records.options import Option, Options
from passes.core.errors import SettingsError
from passes.core.records import Frozen

__all__ = ["Epoch", "FineTuning", "best_epoch"]

RATES = {"sgd": 0.004, "adamw": 3e-4}
NEAR_RATE, NEAR_HINTS = 0.003, 0.9


PYTHON = Option(command_line=False, file=False)


class FineTuning(Options):
    """How a network is fine-tuned.

    Raises:
        SettingsError: a value is out of range, or epochs and minutes are both given.
    """

    model_config = ConfigDict(allow_inf_nan=False)
    panel: ClassVar[str] = "Fine-tuning"

    epochs: Annotated[float | None, Option(default="10, if minutes is not given either")] = Field(
        default=None, gt=0, description="How often to go through all images; a part is possible, such as 0.5."
    )
    minutes: float | None = Field(default=None, gt=0, description="Minutes to train for, in place of epochs.")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where torch trains.")
    train_in: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="Arithmetic of the training; auto takes what is faster on the device."
    )
    batchnorm: Literal["auto", "reinsert", "frozen", "none"] = Field(
        default="auto",
        description="Batch normalisation in training. reinsert puts one behind each Conv of a graph in which they were "
        "folded, and folds it away again; frozen does so and keeps the statistics as they are; none puts in nothing. "
        "auto: frozen for a network that does nearly what the original does, else reinsert.",
    )
    optimizer: Literal["sgd", "adamw"] = Field(default="sgd", description="Optimizer of the training.")
    rate: Annotated[float | None, Option(default="what suits the optimizer and the network")] = Field(
        default=None, gt=0, description="Highest learning rate."
    )
    weight_decay: Annotated[float, PYTHON] = Field(default=1e-4, ge=0, description="Weight decay of the optimizer.")
    batch_size: int = Field(
        default=128, ge=2, description="Images in a step of the training, of all processes together."
    )
    temperature: Annotated[float, PYTHON] = Field(default=2.0, gt=0, description="Temperature of the distillation.")
    labels: Annotated[float | None, PYTHON] = Field(
        default=None,
        ge=0,
        le=1,
        description="Weight of the labels in the loss; the original's answers have the rest. None: 0 for a network "
        "that does nearly what the original does, else 0.1.",
    )
    hints: Annotated[float | None, PYTHON] = Field(
        default=None,
        ge=0,
        le=1,
        description="Weight, in the loss, of the sums that end residual blocks. None: 0.9 for a network that does "
        "nearly what the original does, else 0.",
    )
    augmentation: Literal["auto", "crop", "resized", "flip", "none"] = Field(
        default="auto",
        description="How training images are changed; auto takes what the preset's networks were trained with.",
    )
    mixup: Annotated[float, PYTHON] = Field(
        default=1.0, ge=0, le=1, description="Largest share of another image that is laid over each."
    )
    average: Annotated[float, PYTHON] = Field(
        default=0.998, ge=0, lt=1, description="Decay of the running mean of the weights over the steps."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the order and the changes of training images.")

    def model_post_init(self, _: object) -> None:
        """Check that there is one bound."""
        if self.epochs is not None and self.minutes is not None:
            raise SettingsError("`epochs` and `minutes` were both given: give one")

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
