"""The settings of fine-tuning, shared by the command line and Python, and the record of a training epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from hmc_onnx.records.options import Option, Options
from passes.core.errors import SettingsError
from passes.core.records import Frozen

__all__ = ["Epoch", "FineTuning", "best_epoch"]

# Default highest learning rate of each optimizer.
RATES = {"sgd": 0.004, "adamw": 3e-4}
# Default rate (of SGD) and weight of the hints for a network that is near the original: see `FineTuning.settled`.
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
        default=None, gt=0, description="Passes over all training images; fractions such as 0.5 are allowed."
    )
    minutes: float | None = Field(default=None, gt=0, description="Minutes to train for, in place of epochs.")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where torch trains.")
    train_in: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="Arithmetic of the training; auto takes what is faster on the device."
    )
    batchnorm: Literal["auto", "reinsert", "frozen", "none"] = Field(
        default="auto",
        description="Batch normalisation in training. reinsert: if the graph's are folded, one is put behind each Conv "
        "and folded again after training; frozen: the same, with fixed statistics; none: none is inserted. "
        "auto: frozen for a network whose activations are close to the original's, else reinsert.",
    )
    optimizer: Literal["sgd", "adamw"] = Field(default="sgd", description="Optimizer of the training.")
    rate: Annotated[float | None, Option(default="what suits the optimizer and the network")] = Field(
        default=None, gt=0, description="Highest learning rate."
    )
    weight_decay: Annotated[float, PYTHON] = Field(default=1e-4, ge=0, description="Weight decay of the optimizer.")
    batch_size: int = Field(default=128, ge=2, description="Images per training step, over all processes.")
    temperature: Annotated[float, PYTHON] = Field(default=2.0, gt=0, description="Temperature of the distillation.")
    labels: Annotated[float | None, PYTHON] = Field(
        default=None,
        ge=0,
        le=1,
        description="Weight of the labels in the loss; the original's outputs have the rest. None: 0 for a network "
        "whose activations are close to the original's, else 0.1.",
    )
    hints: Annotated[float | None, PYTHON] = Field(
        default=None,
        ge=0,
        le=1,
        description="Weight of the hints (the sums that end residual blocks) in the distillation loss. None: 0.9 for a "
        "network whose activations are close to the original's, else 0.",
    )
    augmentation: Literal["auto", "crop", "resized", "flip", "none"] = Field(
        default="auto",
        description="Augmentation of training images; auto is the one that the preset's networks were trained with.",
    )
    mixup: Annotated[float, PYTHON] = Field(
        default=1.0, ge=0, le=1, description="Largest weight of the other image in mixup."
    )
    average: Annotated[float, PYTHON] = Field(
        default=0.998, ge=0, lt=1, description="Decay of the moving average of the weights, per step."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the order and the augmentation of training images.")

    def model_post_init(self, _: object) -> None:
        """Check that epochs and minutes are not both given; raises SettingsError."""
        if self.epochs is not None and self.minutes is not None:
            raise SettingsError("`epochs` and `minutes` were both given: give one")

    def settled(self, near: bool) -> FineTuning:
        """A copy in which the open settings (None or "auto") are chosen; docs/experiments.md compares the choices.

        Args:
            near: whether the network's activations are close to the original's. A near network is trained towards these
                activations, with frozen batch statistics, because statistics of the batch would at once undo the
                closed-form repair. Any other network is trained on its outputs and the labels.
        """
        rate = NEAR_RATE if near and self.optimizer == "sgd" else RATES[self.optimizer]
        own = {"batchnorm": "frozen" if near else "reinsert", "rate": rate}
        own |= {"hints": NEAR_HINTS, "labels": 0.0} if near else {"hints": 0.0, "labels": 0.1}
        return self.model_copy(update={k: v for k, v in own.items() if getattr(self, k) in (None, "auto")})


class Epoch(Frozen):
    """The results of a training epoch; epoch 0 is the network before training.

    Attributes:
        epoch: its number.
        loss: mean training loss over the epoch's images, with the weights of each step; NaN for epoch 0.
        held: loss of the averaged weights on the held-out images, augmented and mixed as in training.
        top1: top-1 accuracy of the averaged weights on the held-out images without augmentation; without labels, the
            share of images whose class is the original's.
        seconds: training time until the end of the epoch.
    """

    epoch: int
    loss: float
    held: float
    top1: float
    seconds: float


def best_epoch(history: Sequence[Epoch]) -> Epoch:
    """The epoch whose weights are used: the first with the least loss on the held-out images."""
    return min(history, key=lambda e: e.held)
