"""The walk over a graph: the graph runs part by part on all images, and only tensors still needed are kept.

`advance` computes some tensors from those that are held. A walk to every layer in turn thus costs about one forward
pass in all. A tensor is dropped when the last node that reads it has run. The tensors that are held form a cut of the
graph; `tail` gives a session on everything behind the cut.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping

import numpy as np
import onnx_graphsurgeon as gs

from calib.data.calibration import length
from calib.measure.activations import Activations, Store
from calib.runtime.sessions import CPU, Runtime, Session
from passes.graph.model import Model
from passes.graph.subgraph import node_inputs, nodes_between, submodel

__all__ = ["Walk"]

ALL = slice(None)


class Walk:
    """The walk over one graph.

    Args:
        model: the graph. Nodes that have not run yet may be changed or replaced between two calls of `advance`.
        chunks: the calibration images, as one feed of the model's inputs per chunk.
        runtime: as for `Session`.
        memory: bytes of activations to hold in memory; the rest is held on disk. None: all in memory.
    """

    def __init__(
        self,
        model: Model,
        chunks: Iterable[Mapping[str, np.ndarray]],
        runtime: Runtime = CPU,
        memory: int | None = None,
    ) -> None:
        self.model = model
        self.runtime = runtime
        self._memory = memory
        self.chunks = self._held(chunks)
        self.images = [length(chunk) for chunk in self.chunks]  # number of images of each chunk
        self._done: set[str] = set()

    def _held(self, chunks: Iterable[Mapping[str, np.ndarray]]) -> list[Activations]:
        store = Store(self._memory)
        return [Activations(store, chunk) for chunk in chunks]

    def fork(self, model: Model) -> Walk:
        """Another walk that goes on from here, over a graph whose nodes that have run are those of this one."""
        other = copy.copy(self)
        other.model, other.chunks, other._done = model, self._held(self.chunks), set(self._done)
        return other

    def advance(self, wanted: Collection[str]) -> None:
        """Compute the wanted tensors; then drop all others that no node still to run reads."""
        graph = self.model.graph
        held = set(self.chunks[0])
        nodes = nodes_between(graph, held, wanted)
        if nodes:
            self._done.update(t.name for node in nodes for t in node.outputs)
            ahead = self._read_ahead()
            made = [t.name for node in nodes for t in node.outputs if t.name]
            keep = [name for name in made if name in ahead or name in wanted]
            reads = {t.name for node in nodes for t in node_inputs(node)} & held
            proto = submodel(self.model, nodes, {n: self.chunks[0][n].dtype for n in sorted(reads)}, keep)
            session = Session(proto, self.runtime, timed=False)
            if session.sequences:  # these cannot be fed to a session, so the nodes that make them run again
                again = [n for n in nodes if session.sequences.intersection(t.name for t in n.outputs)]
                self._done.difference_update(t.name for node in again for t in node.outputs)
                keep = [name for name in keep if name not in session.sequences]
                ahead = self._read_ahead()
                keep += [name for name in made if name in ahead and name not in {*keep, *session.sequences}]
                proto = submodel(self.model, nodes, {n: self.chunks[0][n].dtype for n in sorted(reads)}, keep)
                session = Session(proto, self.runtime, timed=False)
            for chunk in self.chunks:
                results = session.run({n: chunk[n] for n in reads}, keep)
                for name in [n for n in chunk if n not in ahead and n not in wanted]:  # first, to save memory
                    del chunk[name]
                chunk.update(zip(keep, results, strict=True))
        ahead = self._read_ahead()
        for chunk in self.chunks:
            for name in [n for n in chunk if n not in ahead and n not in wanted]:
                del chunk[name]

    def _read_ahead(self) -> set[str]:
        """Names of the tensors that a node which has not run reads, or that are outputs of the graph."""
        graph = self.model.graph
        waiting = (n for n in graph.nodes if not all(t.name in self._done for t in n.outputs))
        return {t.name for n in waiting for t in node_inputs(n)} | {t.name for t in graph.outputs}

    def holds(self, name: str) -> bool:
        """Whether a tensor is held."""
        return name in self.chunks[0]

    def missing(self, name: str) -> list[gs.Node]:
        """The nodes that still have to run before a tensor is known, in graph order."""
        return nodes_between(self.model.graph, set(self.chunks[0]), [name])

    def values(self, name: str) -> Iterator[np.ndarray]:
        """A held tensor, chunk by chunk."""
        return (chunk[name] for chunk in self.chunks)

    def tail(self, replaceable: Collection[str]) -> Tail:
        """A session on all nodes between the cut and the outputs, in which these initializers can be replaced."""
        return Tail(self, replaceable)


class Tail:
    """A session on the part of the graph behind a walk's cut. It is valid until the walk advances.

    Args:
        walk: the walk.
        replaceable: names of the initializers that `outputs` may replace.

    Attributes:
        judged: descriptions of the outputs that it computes.
    """

    def __init__(self, walk: Walk, replaceable: Collection[str]) -> None:
        model, self._chunks = walk.model, walk.chunks
        self.judged = model.compared
        self._outputs = [output.tensor for output in self.judged]
        held = set(walk.chunks[0])
        nodes = nodes_between(model.graph, held, self._outputs)
        self._reads = sorted({t.name for node in nodes for t in node_inputs(node)} & held)
        dtypes = {n: walk.chunks[0][n].dtype for n in self._reads}
        self._session: Session | None = None  # None: the outputs are held already, so nothing can change them
        if nodes:
            proto = submodel(model, nodes, dtypes, [n for n in self._outputs if n not in held], replaceable)
            self._session = Session(proto, walk.runtime, timed=False)
            self._replaceable = {v.name for v in proto.graph.input} - set(self._reads)

    def outputs(self, weights: Mapping[str, np.ndarray], chunks: slice = ALL) -> list[list[np.ndarray]]:
        """Run the tail with some initializers replaced.

        Args:
            weights: values of replaceable initializers, by name.
            chunks: which chunks to run.

        Returns:
            For each output in `judged`, its values chunk by chunk.
        """
        found: list[list[np.ndarray]] = []
        values = {n: v for n, v in weights.items() if self._session is not None and n in self._replaceable}
        for chunk in self._chunks[chunks]:
            computed: dict[str, np.ndarray] = {}
            if self._session is not None:
                feeds = {n: chunk[n] for n in self._reads} | values
                computed = dict(zip(self._session.outputs, self._session.run(feeds), strict=True))
            found.append([computed[n] if n in computed else chunk[n] for n in self._outputs])
        return [list(chunks) for chunks in zip(*found, strict=True)]
