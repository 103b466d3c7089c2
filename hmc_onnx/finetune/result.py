"""What a fine-tuning comes to; without torch, as it is a public name."""

from __future__ import annotations

import os
from dataclasses import dataclass

import onnx

from hmc_onnx.finetune.options import Epoch
from passes.core.errors import HmcError
from passes.graph.files import save

__all__ = ["FineTuned"]


@dataclass(frozen=True)
class FineTuned:
    """The result of fine-tuning.

    Attributes:
        model: the fine-tuned model.
        history: the results of the epochs; the first is epoch 0, before training.
        stopped: the error that ended the training early; None if it ran to its end.
        first: whether this process has rank 0 among those that `torchrun` started, and so should write the result.
    """

    model: onnx.ModelProto
    history: list[Epoch]
    stopped: HmcError | None = None
    first: bool = True

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model atomically; raises OutputError."""
        save(self.model, path)
