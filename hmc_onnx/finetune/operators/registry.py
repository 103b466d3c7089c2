"""The registry of rules by operator name.

A rule takes a node, once, when the module is built, and returns the function that computes it for every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from passes.core.errors import ModelError

__all__ = ["RULES", "Mode", "Operator", "Rule", "ints", "rule"]

Value = Any  # a tensor; a tuple of tensors for several outputs; None for an omitted input
Rule = Callable[["Operator"], Callable[..., Value]]

RULES: dict[str, Rule] = {}


@dataclass
class Mode:
    """How the BatchNormalizations of a module behave.

    Attributes:
        batch_statistics: normalise with the statistics of the batch and update the running ones, as in training.
        momentum: weight of the batch in the running statistics.
        shared: compute the batch statistics over all processes of the default process group.
    """

    batch_statistics: bool = False
    momentum: float = 0.1
    shared: bool = False


@dataclass(frozen=True)
class Operator:
    """A node in the form in which a rule takes it.

    Attributes:
        op: its operator.
        name: its name, for messages.
        opset: version of the default operator set of the model.
        outputs: number of its outputs.
        attributes: values of its ONNX attributes, by name.
        mode: the mode of the module that it is in.
    """

    op: str
    name: str
    opset: int
    outputs: int = 1
    attributes: dict[str, Any] = field(default_factory=dict)
    mode: Mode = field(default_factory=Mode)

    def get(self, attribute: str, default: Any = None) -> Any:
        """The value of an attribute, or the default if the node does not have it."""
        return self.attributes.get(attribute, default)

    def refuse(self, what: str) -> ModelError:
        """The error to raise for a node that the rule does not cover; `what` says why."""
        return ModelError(
            f"fine-tuning does not support node '{self.name}' ({self.op}), because {what}: compress without fine-tuning"
        )


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule under operator names; raises ValueError for a name that has a rule already."""

    def register(function: Rule) -> Rule:
        for name in names:
            if name in RULES:
                raise ValueError(f"operator {name} has two rules")
            RULES[name] = function
        return function

    return register


def ints(value: Tensor | Iterable[int]) -> list[int]:
    """The integers in a tensor or an iterable, such as axes or a shape, as a list."""
    return [int(v) for v in (value.reshape(-1).tolist() if isinstance(value, torch.Tensor) else value)]
