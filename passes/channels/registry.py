"""The rules by operator: each is a small class that says how its operators pass channels on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, ClassVar, TypeVar

import onnx_graphsurgeon as gs

if TYPE_CHECKING:
    from passes.channels.tracing import Tracer

__all__ = ["Closed", "Rule", "register", "rule_for", "rules", "table"]

MODULES = ("convolution", "linear", "elementwise", "normalisation", "reduction", "movement", "reshaping", "sizes")


class Closed(Exception):
    """Raised by a rule where this use of its operator cannot be followed: what it reads cannot be pruned.

    The message goes on after "Reshape node 'x' ".
    """


class Rule(ABC):
    """How an operator passes channels on. The first line of a rule's docstring stands in docs/operators.md.

    Attributes:
        outputs: how many outputs the rule deals with (None: all); where another one is read, the channels are closed.
        follows_sizes: whether `trace` deals with inputs that are computed from the number of channels; if not, they
            keep their value when channels go.
    """

    outputs: ClassVar[int | None] = 1
    follows_sizes: ClassVar[bool] = False

    @abstractmethod
    def trace(self, node: gs.Node, tracer: Tracer) -> None:
        """Read the streams of the node's inputs, set those of its outputs, and record slots, ties and adjustments.

        Raises:
            Closed: the channels that the node reads cannot be followed.
        """


_RULES: dict[str, Rule] = {}
AnyRule = TypeVar("AnyRule", bound=type[Rule])


def register(*operators: str) -> Callable[[AnyRule], AnyRule]:
    """Class decorator: this rule is for these operators of the default domain.

    Raises:
        ValueError: an operator has a rule already.
    """

    def decorate(rule: AnyRule) -> AnyRule:
        for op in operators:
            if op in _RULES:
                raise ValueError(f"operator {op} has a channel rule already")
        _RULES.update(dict.fromkeys(operators, rule()))
        return rule

    return decorate


def rules() -> dict[str, Rule]:
    """Every operator that has a rule, in the order of MODULES."""
    for module in MODULES:
        import_module(f"passes.channels.rules.{module}")  # where they register themselves
    return dict(_RULES)


def rule_for(node: gs.Node) -> Rule | None:
    """The node's rule; None for custom domains and unknown operators."""
    return rules().get(node.op) if node.domain in (None, "", "ai.onnx") else None


def table() -> str:
    """docs/operators.md, made from the rules."""
    by_rule: dict[type[Rule], list[str]] = {}
    for op, rule in rules().items():
        by_rule.setdefault(type(rule), []).append(op)
    lines = [
        "# Operators",
        "",
        "What becomes of the channels of a tensor at each operator (`python -m passes.channels` prints this page).",
        "An operator that is not here, or of another domain, closes the channels that it touches: they are not pruned,",
        "and the report says why. The same holds where a rule cannot follow the use that a graph makes of it.",
        "Of the groups that are found, those are pruned that Convs and Gemms (or a MatMul of matrices) write and read,",
        "since their least-squares repair needs that; groups that a layer reads side by side, behind a Concat, are",
        "chosen from together. `hmc-onnx inspect` says which these are.",
        "",
        "| operators | channels |",
        "|---|---|",
    ]
    for kind, operators in by_rule.items():
        assert kind.__doc__ is not None
        lines.append(f"| {', '.join(sorted(operators))} | {kind.__doc__.splitlines()[0]} |")
    return "\n".join(lines) + "\n"
