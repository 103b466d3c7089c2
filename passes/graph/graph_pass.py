"""The base class of this package's rewrites: a pass with the interface of `onnx_ir.passes`.

Other programs call a pass on an onnx-ir model, alone or in an `onnx_ir.passes.Sequential` with passes of their own.
This package calls `rewrite` on a `Model`, so that several passes in a row (`GraphSequence`) need no conversion in
between.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import PassResult, PostconditionError, PreconditionError

from passes.core.errors import ModelError
from passes.graph.carrying import returned, serialised
from passes.graph.model import Model

__all__ = ["GraphPass", "GraphSequence", "require_nodes", "require_unique_names"]


class GraphPass(ir.passes.FunctionalPass):
    """A rewrite of a graph. A subclass is a frozen dataclass whose fields are its options, and defines `rewrite`.

    Called on an onnx-ir model, a pass returns a new one; the model given is not changed. Whatever the rewrite does not
    change keeps its names, documentation and metadata; so do the signature, operator sets and local functions.

    Requires:
        No weight of a subgraph (an If's branch) is in a file, and no node calls an overload of a function: graphsurgeon
        can represent neither.

    Ensures:
        The ONNX checker accepts the rewritten model.
    """

    @abstractmethod
    def rewrite(self, model: Model) -> int:
        """Rewrite a model in place.

        Returns:
            Number of changes; if it is 0, the model is as it was.

        Raises:
            ModelError: the model lacks something that the options name, or it cannot be changed that way.
        """

    def requires(self, model: ir.Model) -> None:
        """Raise PreconditionError where the model cannot be rewritten; see the class for what must hold."""
        for graph in model.graph.subgraphs():
            for name, value in graph.initializers.items():
                if isinstance(value.const_value, ir.ExternalTensor):
                    raise PreconditionError(f"the weight '{name}' of a graph inside a node is in a file: load it first")
        for node in model.graph.all_nodes():
            if node.overload:
                raise PreconditionError(f"node '{node.name}' calls an overload of a function: inline it first")

    def call(self, model: ir.Model) -> PassResult:
        """The rewritten model, a new object, and whether anything was changed.

        Raises:
            PreconditionError: the model lacks something that the options name, it cannot be changed that way, or it is
                not valid.
            PostconditionError: the ONNX checker rejects the result.
        """
        given = serialised(model)
        graph = Model(given)
        try:
            changes = self.rewrite(graph)
        except ModelError as e:
            raise PreconditionError(f"{type(self).__name__}: {e}") from e
        if not changes:
            return PassResult(returned(given, given, model), modified=False)
        try:
            done = graph.finished()
        except ModelError as e:
            try:
                Model(given).finished()
            except ModelError as own:
                raise PreconditionError(f"the model is not valid as it is given: {own}") from own
            raise PostconditionError(f"{type(self).__name__}: {e}") from e
        return PassResult(returned(done, given, model), modified=True)


@dataclass(frozen=True)
class GraphSequence(GraphPass):
    """Passes one after the other on one graph, with no conversion in between.

    Requires:
        What the first of them does. What a later one needs is checked when its turn comes, by its `rewrite`.

    Ensures:
        What the last of them does.
    """

    steps: tuple[GraphPass, ...]

    def rewrite(self, model: Model) -> int:
        """Rewrite a model in place; returns the number of changes that all steps have made."""
        return sum(step.rewrite(model) for step in self.steps)

    def requires(self, model: ir.Model) -> None:
        """Raise PreconditionError where the first step would."""
        super().requires(model)
        for step in self.steps[:1]:
            step.requires(model)

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError where the last step would."""
        for step in self.steps[-1:]:
            step.ensures(model)


def require_unique_names(model: ir.Model) -> None:
    """Raise PreconditionError unless each node of the main graph has a name of its own."""
    names = Counter(node.name for node in model.graph)
    for name, count in names.items():
        if not name or count > 1:
            what = f"{count} nodes are named '{name}'" if name else "a node has no name"
            raise PreconditionError(f"{what}, and nodes are found by their names: run NameNodes first")


def require_nodes(model: ir.Model, names: Iterable[str]) -> None:
    """Raise PreconditionError unless the main graph has all nodes named, and each node has a name of its own."""
    require_unique_names(model)
    missing = set(names) - {node.name for node in model.graph}
    if missing:
        raise PreconditionError(f"the model has no node '{min(missing)}'")
