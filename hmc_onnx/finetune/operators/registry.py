"""How rules are found: by operator name, each name once.

A rule is bound to a node once, when the module is built, and gives the function that is run at every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from passes.core.errors import ModelError

__all__ = ["RULES", "Mode", "Operator", "Rule", "ints", "rule"]

Value = Any  # a tensor; of several outputs a tuple of tensors; None for an input that is left out
Rule = Callable[["Operator"], Callable[..., Value]]

RULES: dict[str, Rule] = {}


@dataclass
class Mode:
    """What a whole module's BatchNormalizations do.

    Attributes:
        batch_statistics: normalise by the batch at hand and keep a running mean of that, as in training.
        momentum: weight of the batch in the running mean.
        shared: batch statistics are over the batches of all processes of the default process group.
    """

    batch_statistics: bool = False
    momentum: float = 0.1
    shared: bool = False


@dataclass(frozen=True)
class Operator:
    """A node as its rule sees it."""

    op: str
    name: str
    opset: int
    outputs: int = 1
    attributes: dict[str, Any] = field(default_factory=dict)
    mode: Mode = field(default_factory=Mode)

    def get(self, attribute: str, default: Any = None) -> Any:
        """An attribute's value."""
        return self.attributes.get(attribute, default)

    def refuse(self, what: str) -> ModelError:
        """The error of something that the rule does not cover."""
        return ModelError(
            f"node '{self.name}' ({self.op}) cannot be fine-tuned through: {what}; compress without fine-tuning"
        )


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule under operator names; a name that has one already is an error of the program."""

    def register(function: Rule) -> Rule:
        for name in names:
            if name in RULES:
                raise ValueError(f"operator {name} has two rules")
            RULES[name] = function
        return function

    return register


def ints(value: Tensor | Iterable[int]) -> list[int]:
    """Integers of a tensor, such as axes or a shape."""
    return [int(v) for v in (value.reshape(-1).tolist() if isinstance(value, torch.Tensor) else value)]
