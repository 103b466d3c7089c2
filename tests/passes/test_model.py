"""Load, save and the graph between them: nothing of a file is lost, and no file is ever left by halves."""

from __future__ import annotations

import os
import re
import resource
import stat
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper
from zoo import Builder, assert_same, images, parsed, resnet, run

import passes.graph.files
import passes.graph.model
from passes.core.atomic import write_atomically
from passes.core.errors import HmcError, ModelError, OutputError
from passes.graph.files import load, save, weights_beside
from passes.graph.model import Model, constant_value


def documented(opset: int = 17) -> onnx.ModelProto:
    """A ResNet with something in every field that a file has room for."""
    proto = resnet((1, 1), (4, 8), opset=opset)
    proto.producer_version, proto.domain, proto.model_version = "1.2", "test.zoo", 7
    proto.doc_string = "a model"
    proto.metadata_props.add(key="trained on", value="nothing")
    graph = proto.graph
    graph.doc_string = "a graph"
    graph.metadata_props.add(key="pkg.torch.onnx.name", value="ResNet")
    graph.input[0].doc_string = "an image"
    graph.input[0].type.denotation = "IMAGE"
    graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    graph.output[0].doc_string = "logits"
    graph.node[0].doc_string = "the first node"
    for node in graph.node:
        node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value=f"line of {node.name}")
    graph.value_info.extend(onnx.shape_inference.infer_shapes(proto).graph.value_info[::-1])
    graph.value_info[0].doc_string = "an activation"
    annotation = graph.quantization_annotation.add(tensor_name=graph.node[0].output[0])
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=graph.initializer[0].name)
    return proto


def every_encoding() -> onnx.ModelProto:
    """Initializers as raw bytes and as lists of numbers, with documentation, out of the order of use."""
    b = Builder()
    y = b.node("Add", b.node("Mul", "input", "listed"), "raw")
    b.initializers += [
        numpy_helper.from_array(np.full(8, 0.5, np.float32), "raw"),
        helper.make_tensor("listed", TensorProto.FLOAT, [8], list(range(8))),
    ]
    b.initializers[1].doc_string = "a scale"
    return b.model(y)


def initializers_as_inputs() -> onnx.ModelProto:
    """As files before IR version 4 have them."""
    proto = resnet((1,), (4,), opset=11)
    proto.ir_version = 3
    types = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in proto.graph.initializer]
    proto.graph.input.extend(types)
    return proto


def an_outer_scope() -> onnx.ModelProto:
    """An If whose branches read tensors and weights of the graph around them."""
    weight = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    return parsed(
        """<ir_version: 8, opset_import: ["" : 17]>
        outer (float[N,4] input, bool turn) => (float[N,3] output) {
            x = Relu(input)
            output = If(turn) <
                then_branch = yes () => (float[N,3] a) { a = MatMul(x, weight) },
                else_branch = no () => (float[N,3] b) { t = Neg(x)  b = MatMul(t, weight) }
            >
        }""",
        weight=weight,
    )


def a_function() -> onnx.ModelProto:
    return onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        graph (float[N,4] input) => (float[N,4] output) { output = local.twice(input) }
        <domain: "local", opset_import: ["" : 17]> twice (x) => (y) { y = Add(x, x) }"""
    )


FILES = {
    "documented": documented,
    "documented, opset 13": lambda: documented(13),
    "Constant nodes": lambda: resnet((1, 1), (4, 8), weights="constants", option_a="torchscript"),
    "batch norm": lambda: resnet((1, 1), (4, 8), batchnorm="nodes", shortcut="B"),
    "every encoding of weights": every_encoding,
    "initializers that are inputs": initializers_as_inputs,
    "outer scope": an_outer_scope,
    "function": a_function,
}


@pytest.mark.parametrize("build", FILES.values(), ids=FILES)
def test_a_model_that_no_pass_touches_is_written_as_it_was(build, tmp_path: Path) -> None:
    proto = build()
    original = proto.SerializeToString(deterministic=True)
    save(proto, tmp_path / "in.onnx")
    save(Model(load(tmp_path / "in.onnx")).to_proto(), tmp_path / "out.onnx")
    assert onnx.load(tmp_path / "out.onnx") == proto  # first, for a readable difference
    assert (tmp_path / "out.onnx").read_bytes() == original


@pytest.mark.parametrize("build", FILES.values(), ids=FILES)
def test_finishing_an_untouched_model_keeps_its_nodes_and_signature(build) -> None:
    proto = build()
    done = Model(proto).finished()
    assert sorted(done.graph.node, key=str) == sorted(proto.graph.node, key=str)
    assert done.graph.input == proto.graph.input
    assert done.graph.output == proto.graph.output
    assert done.functions == proto.functions
    assert {t.name for t in done.graph.value_info} == {t.name for t in proto.graph.value_info}


def test_reading_the_weights_changes_no_byte_of_them() -> None:
    proto = every_encoding()
    model = Model(proto)
    assert [c.values.sum() for c in model.constants()] == [28.0, 4.0]
    done = model.to_proto()
    assert [t.name for t in done.graph.initializer] == ["raw", "listed"]
    assert [numpy_helper.to_array(t).tolist() for t in done.graph.initializer] == [[0.5] * 8, [*range(8)]]
    onnx.checker.check_model(done, full_check=True)


def test_the_proto_that_a_model_was_made_from_is_not_changed() -> None:
    proto = documented()
    before = proto.SerializeToString(deterministic=True)
    model = Model(proto)
    model.graph.nodes[0].inputs[1].values = model.graph.nodes[0].inputs[1].values * 2
    model.forget_shapes()
    model.finished()
    assert proto.SerializeToString(deterministic=True) == before


def test_a_copy_is_changed_without_the_original() -> None:
    model = Model(documented())
    before = model.digest()
    copy = model.copy()
    copy.graph.nodes[0].inputs[1].values = copy.graph.nodes[0].inputs[1].values * 2
    copy.graph.nodes[-1].name = "another"
    copy.graph.nodes.pop(1)
    assert model.digest() == before
    assert copy.digest() != before


def test_shapes_recorded_before_a_rewrite_do_not_outlive_it() -> None:
    model = Model(documented())
    first = model.graph.nodes[0]
    before = {v.name: v for v in model.to_proto().graph.value_info}[first.outputs[0].name]
    assert before.type.tensor_type.shape.dim[3].dim_value == 16
    first.attrs["pads"] = [1, 1, 1, 3]  # wider by two
    first.attrs["strides"] = [1, 1]
    model.forget_shapes()
    model.graph.nodes = model.graph.nodes[:1]
    model.graph.outputs = [first.outputs[0]]
    model.header.graph.output[0].CopyFrom(onnx.ValueInfoProto(name=first.outputs[0].name))
    done = onnx.shape_inference.infer_shapes(model.to_proto(), strict_mode=True)
    assert [d.dim_value for d in done.graph.output[0].type.tensor_type.shape.dim][1:] == [4, 16, 18]


def test_a_node_that_a_pass_put_in_place_of_another_does_not_inherit_its_documentation() -> None:
    proto = documented()
    model = Model(proto)
    relu = next(n for n in model.graph.nodes if n.op == "Relu")
    relu.op = "Tanh"
    tanh = next(n for n in model.to_proto().graph.node if n.op_type == "Tanh")
    assert not tanh.metadata_props


def test_an_initializer_that_is_an_input_is_declared_with_its_new_shape() -> None:
    proto = initializers_as_inputs()
    model = Model(proto)
    gemm = model.graph.nodes[-1]
    names = gemm.inputs[1].name, gemm.inputs[2].name
    gemm.inputs[1].values, gemm.inputs[2].values = gemm.inputs[1].values[:7], gemm.inputs[2].values[:7]
    model.header.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    done = model.finished()
    declared = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in done.graph.input}
    assert (declared[names[0]], declared[names[1]]) == ([7, 4], [7])
    assert_same([y[:, :7] for y in run(proto, images())], run(done, images()))


def test_an_initializer_that_is_an_input_and_is_read_no_more_leaves_the_signature() -> None:
    model = Model(initializers_as_inputs())
    gemm = model.graph.nodes[-1]
    bias = gemm.inputs.pop(2)
    done = model.finished()
    assert bias.name not in {v.name for v in done.graph.input} | {t.name for t in done.graph.initializer}


def test_a_custom_domain_without_an_opset_is_refused() -> None:
    model = Model(resnet((1,), (4,)))
    model.graph.nodes[1].domain = "com.example"
    with pytest.raises(ModelError, match=r"domain 'com\.example' but imports no opset"):
        model.to_proto()


def an_unknown_attribute(model: Model) -> None:
    model.graph.nodes[0].attrs["colour"] = 5


def a_weight_that_does_not_fit(model: Model) -> None:
    model.graph.nodes[-1].inputs[1].values = np.zeros((10, 5), np.float32)


def an_input_that_nobody_makes(model: Model) -> None:
    model.graph.nodes[2].inputs[0] = gs.Variable("nobody's", np.float32)


@pytest.mark.parametrize("build", [documented, lambda: resnet((1, 1), (4, 8))], ids=["with shapes", "without"])
@pytest.mark.parametrize("spoil", [an_unknown_attribute, a_weight_that_does_not_fit, an_input_that_nobody_makes])
def test_a_graph_that_a_pass_has_broken_is_refused_in_one_sentence(build, spoil) -> None:
    model = Model(build())
    spoil(model)
    with pytest.raises(ModelError, match="the ONNX checker rejects the model: ") as caught:
        model.finished()
    assert "\n" not in str(caught.value)


def test_a_custom_operator_stands_in_no_one_s_way() -> None:
    b = Builder()
    y = b.node("Swirl", b.conv("input", 3, 4), domain="com.example", turns=3)
    proto = b.model({y: ["N", 4, 8, 8]})
    proto.graph.value_info.extend(onnx.shape_inference.infer_shapes(proto).graph.value_info)
    assert Model(proto).finished() == proto


def test_the_digest_knows_a_model_by_its_content(tmp_path: Path) -> None:
    proto = documented()
    digest = Model(proto).digest()
    assert re.fullmatch("[0-9a-f]{64}", digest)
    save(proto, tmp_path / "m.onnx")
    assert Model(load(tmp_path / "m.onnx")).digest() == digest
    assert Model(documented()).digest() == digest
    other = Model(proto)
    other.graph.nodes[0].inputs[1].values = np.nextafter(other.graph.nodes[0].inputs[1].values, np.float32(9))
    assert other.digest() != digest


def test_constant_value_reads_initializers_and_constant_nodes() -> None:
    graph = Model(resnet((1,), (4,), weights="constants")).graph
    conv = next(n for n in graph.nodes if n.op == "Conv")
    assert constant_value(conv.inputs[1]).shape == (4, 3, 3, 3)
    assert constant_value(conv.inputs[0]) is None  # the input
    assert constant_value(conv.outputs[0]) is None
    initializer = Model(resnet((1,), (4,))).graph.nodes[0].inputs[1]
    np.testing.assert_array_equal(constant_value(initializer), constant_value(conv.inputs[1]))


# Reading


def truncated(share: float):
    def write(path: Path) -> None:
        content = resnet((1,), (4,)).SerializeToString()
        path.write_bytes(content[: int(len(content) * share)])

    return write


def write_empty_graph(path: Path) -> None:
    proto = resnet((1,), (4,))
    del proto.graph.node[:]
    path.write_bytes(proto.SerializeToString())


def write_invalid(path: Path) -> None:
    proto = resnet((1,), (4,))
    proto.graph.node[3].input[0] = "nobody makes this"
    path.write_bytes(proto.SerializeToString())


def write_surplus(path: Path) -> None:
    proto = resnet((1,), (4,))
    proto.graph.initializer[0].raw_data += bytes(4)
    path.write_bytes(proto.SerializeToString())


UNREADABLE = {
    "missing": (lambda path: None, "no model file at"),
    "a folder": (lambda path: path.mkdir(), "no model file at"),
    "empty": (lambda path: path.write_bytes(b""), "is not an ONNX file, or holds an empty graph"),
    "text": (lambda path: path.write_text("not a model"), "is not an ONNX file"),
    "an image": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)), "is not an ONNX file"),
    "without nodes": (write_empty_graph, "holds an empty graph"),
    "too long a weight": (write_surplus, r"has \d+ bytes, but its shape needs \d+: export the model again"),
    "invalid": (write_invalid, "the ONNX checker rejects the model"),
    **{f"cut at {s:.0%}": (truncated(s), "is not an ONNX file") for s in (0.01, 0.2, 0.5, 0.8, 0.99)},
}


@pytest.mark.parametrize(("write", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_file_that_is_no_model_is_refused_in_one_sentence(write, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write(path)
    with pytest.raises(ModelError, match=message) as caught:
        load(path)
    assert f"'{path}'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_beside_the_model_are_read_and_come_back_inside_it(tmp_path: Path) -> None:
    proto = documented()
    onnx.save(proto, tmp_path / "outside.onnx", save_as_external_data=True, location="weights.bin", size_threshold=64)
    assert (tmp_path / "weights.bin").stat().st_size > 1000
    loaded = load(tmp_path / "outside.onnx")
    assert_same(run(loaded, images()), run(documented(), images()))
    save(loaded, tmp_path / "inside.onnx")
    (tmp_path / "weights.bin").unlink()
    assert_same(run(load(tmp_path / "inside.onnx"), images()), run(documented(), images()))


def test_missing_weights_beside_the_model_are_named(tmp_path: Path) -> None:
    proto = documented()
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=64)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"cannot be read \(.*weights\.bin") as caught:
        load(tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)


# Writing


def test_saving_replaces_a_file_at_once_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"an older one")
    with open(path, "rb") as reader:  # has the old file open, and keeps it
        save(resnet((1,), (4,)), path)
        assert reader.read() == b"an older one"
    assert load(path) == resnet((1,), (4,))
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_a_saved_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_atomically(tmp_path / "ours", b"content")
    assert stat.S_IMODE(os.stat(tmp_path / "ours").st_mode) == stat.S_IMODE(os.stat(tmp_path / "plain").st_mode)


def test_a_disk_that_fills_up_costs_neither_the_old_file_nor_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"an older one")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"cannot write '.*m\.onnx' \(File too large\)"):
            save(resnet((1,), (4,)), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"an older one"
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


PLACES = {"in a missing folder": "missing/m.onnx", "at a folder": "folder", "below a file": "file/m.onnx"}


@pytest.mark.parametrize("beyond", [False, True], ids=["one file", "weights beside it"])
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_what_cannot_be_written_is_refused_in_one_sentence_and_leaves_nothing(
    place: str, beyond: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"kept")
    if beyond:
        monkeypatch.setattr(passes.graph.files, "EXTERNAL_DATA_THRESHOLD", 1000)
    path = tmp_path / place
    with pytest.raises(OutputError, match=f"cannot write '{re.escape(str(path))}' .+: .+") as caught:
        save(resnet((1,), (4,)), path)
    assert isinstance(caught.value, HmcError)
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder"]
    assert (tmp_path / "file").read_bytes() == b"kept"


@pytest.mark.parametrize("name", ["m.onnx", "./m.onnx", "folder/../m.onnx"])
def test_the_two_files_of_a_large_model_are_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(passes.graph.files, "EXTERNAL_DATA_THRESHOLD", 1000)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    save(resnet((1,), (8,)), name)
    assert weights_beside(name) == {Path(name).parent / "m.onnx.data"}
    monkeypatch.chdir("/")
    onnx.checker.check_model(tmp_path / "m.onnx")
    assert_same(run(load(tmp_path / "m.onnx"), images()), run(resnet((1,), (8,)), images()))


def test_a_model_too_large_for_protobuf_goes_into_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = resnet((1, 1), (16, 16))
    before = proto.SerializeToString(deterministic=True)
    monkeypatch.setattr(passes.graph.files, "EXTERNAL_DATA_THRESHOLD", 1000)
    save(proto, tmp_path / "m.onnx")
    assert proto.SerializeToString(deterministic=True) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert (tmp_path / "m.onnx").stat().st_size < (tmp_path / "m.onnx.data").stat().st_size
    assert_same(run(load(tmp_path / "m.onnx"), images()), run(resnet((1, 1), (16, 16)), images()))
