"""The rules by operator: each is a small class that says how its operators pass channels on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, ClassVar, TypeVar

import onnx_graphsurgeon as gs

if TYPE_CHECKING:
    from passes.channels.tracing import Tracer

__all__ = ["DEFAULT", "Closed", "Rule", "Rules", "register", "rules", "table"]

MODULES = ("convolution", "linear", "elementwise", "normalisation", "reduction", "movement", "reshaping", "sizes")


class Closed(Exception):
    """Raised by a rule where this use of its operator cannot be followed: what it reads cannot be pruned.

    The message goes on after "Reshape node 'x' "; tracing makes a `Declined` of it.
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


AnyRule = TypeVar("AnyRule", bound=type[Rule])


class Rules:
    """Rules by operator of the default domain. A copy can be given to `trace` in place of `DEFAULT`."""

    def __init__(self, rules: Mapping[str, Rule] | None = None) -> None:
        self._rules = dict(rules or {})

    def copy(self) -> Rules:
        """The same rules; what is registered with the copy is its own."""
        return Rules(self.by_operator())

    def without(self, *operators: str) -> Rules:
        """A copy that lacks the rules of some operators."""
        return Rules({op: rule for op, rule in self.by_operator().items() if op not in operators})

    def register(self, *operators: str) -> Callable[[AnyRule], AnyRule]:
        """Class decorator: this rule is for these operators.

        Raises:
            ValueError: an operator has a rule already.
        """

        def decorate(rule: AnyRule) -> AnyRule:
            for op in operators:
                if op in self._rules:
                    raise ValueError(f"operator {op} has a channel rule already")
            self._rules.update(dict.fromkeys(operators, rule()))
            return rule

        return decorate

    def by_operator(self) -> dict[str, Rule]:
        """Every operator that has a rule, in the order of registration."""
        if self is DEFAULT:
            for module in MODULES:
                import_module(f"passes.channels.rules.{module}")  # where they register themselves
        return dict(self._rules)

    def rule_for(self, node: gs.Node) -> Rule | None:
        """The node's rule; None for custom domains and unknown operators."""
        return self.by_operator().get(node.op) if node.domain in (None, "", "ai.onnx") else None


# The rules of passes/channels/rules.
DEFAULT = Rules()
register = DEFAULT.register


def rules() -> dict[str, Rule]:
    """Every operator that has a rule by default, in the order of MODULES."""
    return DEFAULT.by_operator()


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
