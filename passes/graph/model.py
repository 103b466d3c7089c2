"""The intermediate representation: an onnx-graphsurgeon graph, and what the file holds besides.

graphsurgeon drops documentation, node metadata, the order of initializers that are also inputs, and the
exact types of inputs and outputs. `Model` keeps the file's own protos beside the graph and puts them back,
so that load followed by save is the identity, and a pass changes what it means to change and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from passes.core.errors import ModelError
from passes.graph.external import Lazy, content, held_tensor, is_external, lazy, let_go
from passes.graph.outputs import Kind, Output, find_outputs
from passes.graph.protos import check, copy_fields, first_line, skeleton
from passes.graph.quiet import quiet
from passes.graph.shapes import ShapeCache, Shapes
from passes.graph.sparse import inner_graphs

__all__ = ["Model", "constant_value", "digest", "element_type", "exported"]


class Model:
    """A graph to rewrite in place (`graph`), with the rest of its file (`header`: a ModelProto without nodes).

    Args:
        proto: the model; it is not changed, and must not be changed while the Model lives (large
            initializers are shared, not copied).
        original: the model that `proto` was made from, whose header and order are kept; default: `proto` itself.

    Attributes:
        kinds: the kinds of outputs that the user has set, by output name; see `passes.graph.outputs`.
        observed: shapes that shape inference does not find, by tensor name; set by the caller, from a run of the model.
        sizes: input shapes by name at which `shapes` are inferred; None: the model's own at batch 1.
    """

    def __init__(self, proto: onnx.ModelProto, original: onnx.ModelProto | None = None) -> None:
        with quiet():
            self.graph: gs.Graph = gs.import_onnx(proto)
        for constant in self.constants():
            tensor = held_tensor(constant)
            if tensor is not None:
                constant.values = lazy(tensor)
                if is_external(tensor):
                    constant.data_location = None
        _own_attributes(self.graph)
        self.kinds: dict[str, Kind] = {}
        self.observed: dict[str, onnx.ValueInfoProto] = {}
        self.sizes: Mapping[str, tuple[int, ...]] | None = None
        self._shapes = ShapeCache()
        own = original or proto
        self.header = onnx.ModelProto()
        copy_fields(own, self.header, skip={"graph", "functions"})
        copy_fields(own.graph, self.header.graph, skip={"node", "initializer", "sparse_initializer", "value_info"})
        self._value_info = {info.name: info for info in own.graph.value_info}
        self._order = {t.name: i for i, t in enumerate(own.graph.initializer)}
        self._node_texts = {
            node.output[0]: (node.op_type, node.doc_string, list(node.metadata_props))
            for node in proto.graph.node
            if node.output and (node.doc_string or node.metadata_props)
        }

    def copy(self) -> Model:
        """A model with its own nodes; constants share their arrays until one of them is replaced."""
        other = Model.__new__(Model)
        other.__dict__.update(self.__dict__)
        other.graph = self.graph.copy()
        other.observed = dict(self.observed)
        other._shapes = self._shapes.copy()
        return other

    @property
    def outputs(self) -> list[Output]:
        """What each output is: see `passes.graph.outputs`.

        Raises:
            SettingsError: `kinds` names an output that the model does not have.
        """
        return find_outputs(self.graph, int(self.graph.opset), self.header.graph, self.kinds)

    @property
    def shapes(self) -> Shapes:
        """Shape of every tensor by name at the input shapes `sizes`; callers must not change it. See `shapes_at`."""
        return self.shapes_at(self.sizes)

    def shapes_at(self, inputs: Mapping[str, tuple[int, ...]] | None = None) -> Shapes:
        """Shape of every tensor by name, with None for a dimension that stays unknown; callers must not change it.

        Shapes are cached for each `inputs` until the graph changes. To see whether it has changed, each call goes over
        all nodes: call this once for all nodes, not at every node.

        Args:
            inputs: input shapes by name; default: the model's own at batch 1.

        Raises:
            ModelError: no `inputs` are given and a dimension other than the batch is unknown, or inference fails.
        """
        return self._shapes.at(self, inputs)

    def tidy(self) -> None:
        """Drop what nothing reads and sort the nodes topologically, in place.

        Functions are not sorted: graphsurgeon's sort of functions recurses for ever if any node has a subgraph.
        """
        with quiet():
            self.graph.cleanup().toposort(mode="nodes")

    @property
    def compared(self) -> list[Output]:
        """The outputs by which the model is compared with another, one for each tensor; those of classes come first.

        Raises:
            ModelError: no output can be compared.
        """
        outputs = self.outputs
        found: dict[str, Output] = {}
        for output in sorted(outputs, key=_rank):
            if output.kind != "other":
                found.setdefault(output.tensor, output)
        if not found:
            what = ", ".join(f"'{o.name}': {o.what}" for o in outputs) or "it has none"
            raise ModelError(f"the model has no output that can be compared ({what}): export a float output, too")
        return list(found.values())

    @property
    def judged(self) -> list[str]:
        """Names of the tensors of `compared`."""
        return [o.tensor for o in self.compared]

    def constants(self) -> list[gs.Constant]:
        """Every initializer that a node of the main graph reads, once, in order of use."""
        found = {t.name: t for node in self.graph.nodes for t in node.inputs if isinstance(t, gs.Constant)}
        return list(found.values())

    def forget_shapes(self) -> None:
        """Drop the recorded shapes of intermediate tensors, which a rewrite may have made stale."""
        kept = {t.name for t in [*self.graph.inputs, *self.graph.outputs]}
        with quiet():
            tensors = self.graph.tensors()
        for tensor in tensors.values():
            if isinstance(tensor, gs.Variable) and tensor.name not in kept:
                tensor.shape = tensor.dtype = None

    def to_proto(self) -> onnx.ModelProto:
        """The model as an onnx.ModelProto, with the file's own header, inputs, outputs and node texts.

        Raises:
            ModelError: a node is of a domain for which the model imports no opset.
        """
        proto = exported(self.graph)
        used_domains = {_domain(node.domain) for node in proto.graph.node}
        copy_fields(self.header, proto, skip={"graph", "functions"})
        for domain in used_domains - {_domain(o.domain) for o in proto.opset_import}:
            raise ModelError(f"the model uses operators of domain '{domain}' but imports no opset for it")
        graph = proto.graph
        copy_fields(
            self.header.graph,
            graph,
            skip={"input", "output", "node", "initializer", "sparse_initializer", "value_info"},
        )
        present = {t.name: t for t in _pop_initializers(graph, set(self._order))}
        present |= {t.name: t for t in graph.initializer}
        del graph.input[:], graph.output[:]
        graph.output.extend(self.header.graph.output)
        for value in self.header.graph.input:
            initializer = present.get(value.name)
            if initializer is not None:  # an initializer that is also an input: its shape may have changed
                value = onnx.helper.make_tensor_value_info(value.name, initializer.data_type, initializer.dims)
            elif value.name in self._initializer_inputs():
                continue
            graph.input.append(value)
        if self.header.ir_version < 4:  # every initializer must be an input, too
            declared = {value.name for value in graph.input}
            graph.input.extend(
                onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims)
                for t in present.values()
                if t.name not in declared
            )
        for node in graph.node:
            op, doc, metadata = self._node_texts.get(node.output[0] if node.output else "", ("", "", []))
            if op == node.op_type:
                if doc:
                    node.doc_string = doc
                node.metadata_props.extend(metadata)
        initializers = sorted(present.values(), key=lambda t: self._order.get(t.name, len(self._order)))
        del graph.initializer[:]
        graph.initializer.extend(initializers)
        self._restore_value_info(graph)
        return proto

    def _restore_value_info(self, graph: onnx.GraphProto) -> None:
        """Set value_info: the file's own entries that still hold, in its order, then those that passes have added."""
        types = {info.name: info.type for info in graph.value_info}
        types |= {t.name: onnx.helper.make_tensor_type_proto(t.data_type, t.dims) for t in graph.initializer}
        plain = {name: _without_denotations(type_) for name, type_ in types.items()}
        kept = [info for info in self._value_info.values() if plain.get(info.name) == _without_denotations(info.type)]
        added = [info for info in graph.value_info if info.name not in self._value_info]
        del graph.value_info[:]
        graph.value_info.extend([*kept, *added])

    def _initializer_inputs(self) -> set[str]:
        """Names of the file's inputs that are initializers, too; they are no longer inputs once nothing reads them."""
        return {v.name for v in self.header.graph.input} - {t.name for t in self.graph.inputs}

    def finished(self) -> onnx.ModelProto:
        """The model as `to_proto` gives it, tidied, checked, and with intermediate shapes if the file had any.

        Raises:
            ModelError: the ONNX checker rejects the graph.
        """
        self.tidy()
        proto = self.to_proto()
        if self._value_info:
            del proto.graph.value_info[:]
            try:
                inferred = onnx.shape_inference.infer_shapes(skeleton(proto), strict_mode=True)
            except onnx.shape_inference.InferenceError as e:
                raise ModelError(f"the ONNX checker rejects the model: {first_line(e)}") from e
            proto.graph.value_info.extend(inferred.graph.value_info)
        check(proto)
        return proto

    def digest(self) -> str:
        """SHA-256 (hex) by which plans and profiles identify the model."""
        return digest(self.to_proto())


def exported(graph: gs.Graph) -> onnx.ModelProto:
    """The graph as graphsurgeon exports it; external weights stay external, even if they have been read."""
    with quiet():
        let_go(t for t in graph.tensors().values() if isinstance(t, gs.Constant))
        return gs.export_onnx(graph, do_type_check=False)


def digest(proto: onnx.ModelProto) -> str:
    """SHA-256 (hex) of a model, independent of where and in which field its weights are stored."""
    light = skeleton(proto)
    del light.graph.initializer[:]
    sha = hashlib.sha256(light.SerializeToString(deterministic=True))
    for tensor in proto.graph.initializer:  # one by one, as together they may be too large for protobuf
        if tensor.data_type == onnx.TensorProto.STRING:
            sha.update(tensor.SerializeToString(deterministic=True))
            continue
        head = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        sha.update(head.SerializeToString(deterministic=True))
        sha.update(content(tensor))
    return sha.hexdigest()


def _rank(output: Output) -> int:
    """Class scores and probabilities are compared first, then decisions between two, then the rest."""
    return 0 if output.kind in ("scores", "probabilities") else 1 if output.classes else 2


def _own_attributes(graph: gs.Graph) -> None:
    """Copy the tensors of Constant nodes: on export graphsurgeon renames them, and they are the caller's."""
    for node in graph.nodes:
        for key, value in node.attrs.items():
            if isinstance(value, gs.Graph):
                _own_attributes(value)
            elif isinstance(value, gs.Constant) and (given := held_tensor(value)) is not None:
                tensor = onnx.TensorProto()
                tensor.CopyFrom(given)
                node.attrs[key] = gs.Constant(value.name, Lazy(tensor))


def _domain(name: str) -> str:
    """A domain's name; the default one may be spelt out."""
    return "" if name == "ai.onnx" else name


def constant_value(tensor: gs.Tensor) -> np.ndarray | None:
    """The value of an initializer, or of a tensor made by a Constant node; None where it is computed."""
    if isinstance(tensor, gs.Constant):
        return np.asarray(tensor.values)
    if len(tensor.inputs) == 1 and tensor.inputs[0].op == "Constant" and "value" in tensor.inputs[0].attrs:
        return np.asarray(tensor.inputs[0].attrs["value"].values)
    return None


def element_type(constant: gs.Constant) -> np.dtype:
    """The element type of an initializer; graphsurgeon gives types that numpy lacks (bfloat16) as ONNX's enum value."""
    dtype = constant.dtype
    return onnx.helper.tensor_dtype_to_np_dtype(dtype) if isinstance(dtype, int) else np.dtype(dtype)


def _pop_initializers(graph: onnx.GraphProto, names: set[str]) -> list[onnx.TensorProto]:
    """Remove the named initializers from all subgraphs and return them: on export, graphsurgeon copies them there."""
    found: dict[str, onnx.TensorProto] = {}
    for attribute in (a for node in graph.node for a in node.attribute):
        for inner in inner_graphs(attribute):
            found |= {t.name: t for t in _pop_initializers(inner, names)}
            found |= {t.name: t for t in inner.initializer if t.name in names}
            kept = [t for t in inner.initializer if t.name not in names]
            del inner.initializer[:]
            inner.initializer.extend(kept)
    return list(found.values())


def _without_denotations(type_: onnx.TypeProto) -> onnx.TypeProto:
    """A type without denotations (names for the meaning of its axes), which graphsurgeon drops."""
    plain = onnx.TypeProto()
    plain.CopyFrom(type_)
    plain.ClearField("denotation")
    if plain.HasField("tensor_type"):
        for dim in plain.tensor_type.shape.dim:
            dim.ClearField("denotation")
    return plain
