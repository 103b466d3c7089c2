"""The channel rules by operator: each rule is a small class that says how its operators pass channels on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, ClassVar, TypeVar

import onnx_graphsurgeon as gs

from passes.core.declined import Why

if TYPE_CHECKING:
    from passes.channels.tracing import Tracer

__all__ = ["DEFAULT", "Closed", "Rule", "Rules", "register", "rules", "table"]

MODULES = ("convolution", "linear", "elementwise", "normalisation", "reduction", "movement", "reshaping", "sizes")


class Closed(Exception):
    """Raised by a rule that cannot follow this use of its operator: the channels that the node reads are not pruned.

    The message continues the sentence "Reshape node 'x' …"; tracing makes a `Declined` of it, of the kind `why`.
    """

    def __init__(self, message: str, why: Why = Why.CHANNELS) -> None:
        super().__init__(message)
        self.why = why


class Rule(ABC):
    """How an operator passes channels on. The first line of a rule's docstring is printed in docs/operators.md.

    Attributes:
        outputs: number of outputs that the rule handles (None: all). If a further output is read, the channels are
            closed.
        follows_sizes: whether `trace` handles inputs that are computed from the number of channels. If not, they keep
            their value when channels are removed.
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
    """Rules by operator of the default domain. Other rules than `DEFAULT` can be given to `trace`, such as a copy."""

    def __init__(self, rules: Mapping[str, Rule] | None = None) -> None:
        self._rules = dict(rules or {})

    def copy(self) -> Rules:
        """A copy; rules that are registered with it are not in the original."""
        return Rules(self.by_operator())

    def without(self, *operators: str) -> Rules:
        """A copy that lacks the rules of some operators."""
        return Rules({op: rule for op, rule in self.by_operator().items() if op not in operators})

    def register(self, *operators: str) -> Callable[[AnyRule], AnyRule]:
        """Class decorator that makes a class the rule of some operators.

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
        "How each operator passes on the channels of a tensor (`python -m passes.channels` prints this page). Tied",
        "channels are removed together; closed ones never are, and the report says why. An operator that is not listed",
        "or is of another domain closes the channels that it reads; so does a rule for a use that it cannot follow.",
        "A channel group is pruned if Convs, ConvTransposes and Gemms (or MatMuls by a matrix) write and read it,",
        "since least-squares repair needs such layers. Groups that a layer reads side by side, behind a Concat, are",
        "joined into one. `hmc-onnx inspect` lists the groups.",
        "",
        "| operators | channels |",
        "|---|---|",
    ]
    for kind, operators in by_rule.items():
        assert kind.__doc__ is not None
        lines.append(f"| {', '.join(sorted(operators))} | {kind.__doc__.splitlines()[0]} |")
    return "\n".join(lines) + "\n"
