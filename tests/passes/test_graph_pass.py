"""The interface of our passes: any onnx-ir model in, another out, and nothing lost that a rewrite does not touch."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from exported import exported, names
from onnx import TensorProto, helper, numpy_helper
from onnx_ir.passes import PassError, PostconditionError, PreconditionError, Sequential, common
from zoo import Builder, assert_same, images, parsed, resnet, run

from passes.core.errors import ModelError
from passes.graph.graph_pass import GraphPass, GraphSequence, require_nodes
from passes.graph.model import Model
from passes.normal_form.decide_ifs import DecideIfs
from passes.normal_form.fold_affine import FoldAffine
from passes.normal_form.fold_remaining_constants import FoldRemainingConstants
from passes.normal_form.inline_functions import InlineFunctions
from passes.normal_form.matmul_to_gemm import MatMulToGemm
from passes.normal_form.name_nodes import NameNodes
from passes.normal_form.normalise import Normalise, normalise
from passes.normal_form.own_constants import OwnConstants
from passes.normal_form.remove_identities import RemoveIdentities
from passes.normal_form.separate_constants import SeparateConstants

EVERY = (
    RemoveIdentities(),
    NameNodes(),
    FoldRemainingConstants(),
    SeparateConstants(),
    FoldAffine(),
    MatMulToGemm(),
)


@dataclass(frozen=True)
class Rename(GraphPass):
    """Rename an operator, valid or not."""

    old: str
    new: str

    def rewrite(self, model: Model) -> int:
        found = [n for n in model.graph.nodes if n.op == self.old]
        for node in found:
            node.op = self.new
        return len(found)


@dataclass(frozen=True)
class Refuse(GraphPass):
    """Find the model wanting."""

    def rewrite(self, model: Model) -> int:
        raise ModelError("the model has no such thing: take another")


def rich() -> onnx.ModelProto:
    """A model that has something to say everywhere: one Relu may become a Tanh, and all else must stay."""
    proto = parsed(
        """
        <ir_version: 10, opset_import: ["": 18, "local": 1], producer_name: "somebody", domain: "d", model_version: 7>
        main (float[N, 4] x, bool c) => (float[N, 4] y) <float[4] a, float[4] b> {
            h = Add(x, a)
            r = Relu(h)
            f = local.twice(r)
            y = If(c) <
                then_branch = then () => (float[N, 4] t) { t = Mul(f, b) },
                else_branch = orelse () => (float[N, 4] e) { e = Sigmoid(f) }
            >
        }
        <opset_import: ["": 18], domain: "local">
        twice (v) => (w) { k = Constant <value = float {2}> () w = Mul(v, k) }
        """,
        a=np.arange(4, dtype=np.float32),
        b=np.arange(4, dtype=np.float32),
    )
    proto.doc_string, proto.graph.doc_string = "a model", "a graph"
    branch = proto.graph.node[3].attribute[0].g
    said: list = [proto, proto.graph, *proto.graph.node, *branch.node, *proto.graph.input, *proto.graph.output]
    for i, thing in enumerate([*said, *proto.graph.initializer, *proto.functions]):
        thing.doc_string = thing.doc_string or f"doc {i}"
        thing.metadata_props.add(key="place", value=str(i))
    proto.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, ["N", 4]))
    return proto


def test_what_a_rewrite_does_not_touch_survives_it() -> None:
    model = ir.from_proto(rich())
    model.meta["held"] = model.graph.node(1).meta["held"] = "in memory"
    result = Rename("Relu", "Tanh")(model)
    assert result.modified
    assert result.model.meta["held"] == "in memory"
    expected = ir.to_proto(model)
    changed = next(n for n in expected.graph.node if n.op_type == "Relu")
    changed.op_type = "Tanh"
    changed.ClearField("doc_string")
    del changed.metadata_props[:]
    found = ir.to_proto(result.model)
    del expected.graph.value_info[:], found.graph.value_info[:]  # inferred anew
    assert str(found) == str(expected)


def test_a_pass_changes_nothing_of_the_model_given() -> None:
    proto = resnet((1, 1), (4, 8), batchnorm="nodes")
    model = ir.from_proto(proto)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    result = FoldAffine()(model)
    assert result.modified and result.model is not model
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("step", [*EVERY, GraphSequence(EVERY)], ids=lambda step: type(step).__name__)
@pytest.mark.parametrize("source", ["rich", "resnet20a-torchscript-13"])
def test_a_pass_with_nothing_to_do_returns_an_equal_model(step: GraphPass, source: str) -> None:
    done = Normalise()(ir.from_proto(rich() if source == "rich" else exported(source))).model
    again = step(done)
    assert not again.modified and again.model is not done
    assert str(ir.to_proto(again.model)) == str(ir.to_proto(done))


@pytest.mark.parametrize("name", [n for n in names() if n.startswith("resnet20a-")])
def test_the_normal_form_by_passes_of_onnx_ir_and_ours_is_that_of_normalise(name: str) -> None:
    proto = exported(name)
    result = Normalise()(ir.from_proto(proto))
    expected = normalise(proto).finished() if result.modified else proto
    for done, wanted in zip(parts(ir.to_proto(result.model)), parts(expected), strict=True):
        assert done == wanted
    assert parts(normalise(proto).finished()) == parts(expected)


def parts(proto: onnx.ModelProto) -> tuple[list[bytes], ...]:
    """Nodes and initializers, each list sorted: an order of the nodes is as good as another, and is no change."""
    graph = ir.to_proto(ir.from_proto(proto)).graph
    return tuple(
        sorted(m.SerializeToString(deterministic=True) for m in part) for part in (graph.node, graph.initializer)
    )


def test_they_run_among_passes_of_onnx_ir() -> None:
    proto = resnet((1, 1), (4, 8), batchnorm="nodes", weights="constants", head="reducemean_matmul_add")
    both = Sequential(
        OwnConstants(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        FoldAffine(),
        common.CommonSubexpressionEliminationPass(),
        MatMulToGemm(),
    )
    result = both(ir.from_proto(proto))
    assert result.modified
    done = ir.to_proto(result.model)
    assert {"BatchNormalization", "MatMul"}.isdisjoint(n.op_type for n in done.graph.node)
    assert_same(run(done, images()), run(proto, images()))


def test_functions_are_inlined_and_ifs_decided_on_models_of_onnx_ir() -> None:
    proto = parsed(
        """
        <ir_version: 10, opset_import: ["": 18, "local": 1]>
        agraph (float[N, 4] x) => (float[N, 4] y) {
            f = local.twice(x)
            c = Constant <value = bool {1}> ()
            d = Not(c)
            y = If(d) <
                then_branch = then () => (float[N, 4] t) { t = Neg(f) },
                else_branch = orelse () => (float[N, 4] e) { e = Sigmoid(f) }
            >
        }
        <opset_import: ["": 18], domain: "local">
        twice (v) => (w) { k = Constant <value = float {2}> () w = Mul(v, k) }
        """
    )
    model = ir.from_proto(proto)
    inlined = InlineFunctions()(model)
    assert inlined.modified
    assert len(model.functions) == 1 and not inlined.model.functions
    assert [n.op_type for n in inlined.model.graph] == ["Constant", "Mul", "Constant", "Not", "If"]
    assert not InlineFunctions()(inlined.model).modified
    decided = DecideIfs()(inlined.model)
    assert decided.modified
    assert "If" not in [n.op_type for n in decided.model.graph]
    assert not DecideIfs()(decided.model).modified
    whole = Normalise()(ir.from_proto(proto)).model
    assert not whole.functions
    assert [n.op_type for n in whole.graph] == ["Mul", "Sigmoid"]
    feeds = {"x": np.arange(8, dtype=np.float32).reshape(2, 4) - 4}
    for done in (decided.model, whole):
        assert_same(run(ir.to_proto(done), feeds), run(proto, feeds))


def test_a_sequence_counts_the_changes_of_all_its_steps() -> None:
    proto = resnet((1, 1), (4, 8), batchnorm="nodes", head="reducemean_matmul_add")
    model, other = Model(proto), Model(proto)
    counts = [step.rewrite(model) for step in EVERY]
    assert counts[-2:] == [5, 1]
    assert GraphSequence(EVERY).rewrite(other) == sum(counts)
    assert model.digest() == other.digest()


def test_options_are_fields_that_do_not_change() -> None:
    step = Rename("Relu", "Tanh")
    assert step == Rename(old="Relu", new="Tanh")
    with pytest.raises(FrozenInstanceError):
        step.old = "Add"  # type: ignore[misc]


def test_a_result_that_the_checker_rejects_is_not_handed_on() -> None:
    with pytest.raises(PostconditionError, match="Rename: the ONNX checker rejects the model"):
        Rename("Relu", "NoSuchOperator")(ir.from_proto(rich()))


def test_a_model_that_is_not_valid_as_it_is_given_is_the_callers_fault() -> None:
    proto = rich()
    next(node for node in proto.graph.node if node.op_type == "Add").op_type = "NoSuchOperator"
    with pytest.raises(PreconditionError, match="the model is not valid as it is given: the ONNX checker rejects"):
        Rename("Relu", "Tanh")(ir.from_proto(proto))


def test_what_the_model_lacks_is_a_precondition_in_a_sequence_too() -> None:
    with pytest.raises(PreconditionError, match="Refuse: the model has no such thing: take another"):
        Refuse()(ir.from_proto(rich()))
    with pytest.raises(PassError) as caught:
        Sequential(NameNodes(), Refuse())(ir.from_proto(rich()))
    assert isinstance(caught.value.__cause__, PreconditionError)


def test_nodes_are_named_before_they_are_looked_for() -> None:
    b = Builder()
    proto = b.model(b.node("Relu", b.node("Relu", "input", at="a"), at="b"))
    model = ir.from_proto(proto)
    require_nodes(model, ["a/Relu", "b/Relu"])
    with pytest.raises(PreconditionError, match="the model has no node 'c'"):
        require_nodes(model, ["a/Relu", "c"])
    for name, said in (("a/Relu", "2 nodes are named 'a/Relu'"), (None, "a node has no name")):
        model.graph.node(1).name = name
        with pytest.raises(PreconditionError, match=f"{said}, .* run NameNodes first"):
            require_nodes(model, ["a/Relu"])
    require_nodes(NameNodes()(model).model, ["a/Relu"])


def test_an_overload_of_a_function_is_refused() -> None:
    model = ir.from_proto(rich())
    model.graph.node(2).overload = "second"
    with pytest.raises(PreconditionError, match="calls an overload of a function: inline it first"):
        NameNodes()(model)


def test_weights_in_a_file_stay_there_unless_they_change(tmp_path: Path) -> None:
    proto = resnet((1, 1), (4, 8), batchnorm="nodes", head="reducemean_matmul_add")
    onnx.save(
        onnx.ModelProto.FromString(proto.SerializeToString()),
        tmp_path / "model.onnx",
        save_as_external_data=True,
        location="weights",
        size_threshold=100,
    )
    model = ir.load(tmp_path / "model.onnx")
    done = MatMulToGemm()(model)
    assert done.modified
    kept = [v.const_value for v in done.model.graph.initializers.values()]
    inside = [t for t in kept if isinstance(t, ir.ExternalTensor)]
    assert len(inside) >= 5
    assert {(t.location, t.base_dir) for t in inside} == {("weights", str(tmp_path))}
    folded = FoldAffine()(done)
    ir.save(folded.model, tmp_path / "folded.onnx")
    assert_same(run(onnx.load(tmp_path / "folded.onnx"), images()), run(proto, images()))


def test_weights_of_inner_graphs_in_a_file_are_refused(tmp_path: Path) -> None:
    model = ir.from_proto(rich())
    tensor = ir.ExternalTensor(
        "weights", 0, 16, ir.DataType.FLOAT, shape=ir.Shape([4]), name="inner", base_dir=tmp_path
    )
    value = ir.Value(name="inner", const_value=tensor, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([4]))
    next(iter(model.graph.subgraphs())).initializers["inner"] = value
    with pytest.raises(PreconditionError, match="the weight 'inner' of a graph inside a node is in a file"):
        NameNodes()(model)


def test_lifting_constants_leaves_the_callers_proto_as_it_is() -> None:
    proto = resnet((1, 1), (4, 8), weights="constants")
    before = proto.SerializeToString(deterministic=True)
    lift = common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)
    Sequential(OwnConstants(), lift)(ir.from_proto(proto))
    assert proto.SerializeToString(deterministic=True) == before
    assert numpy_helper.to_array(proto.graph.node[0].attribute[0].t).size
