"""Probes: their texts, models of them that onnxruntime runs, and what follows a layer in a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from zoo import Builder, resnet, run

from passes.graph.layers import Geometry
from passes.graph.model import Model
from passes.graph.shapes import batch_one, infer_shapes
from passes.normal_form.normalise import normalise
from passes.probe import ACTIVATIONS, Parts, Probe, epilogue, probe_model

EPILOGUES = [(), ("Add",), *((a,) for a in ACTIVATIONS), *(("Add", a) for a in ACTIVATIONS)]


def conv(inputs: int, outputs: int, *kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1) -> Geometry:
    """A Conv with pads that keep the size where the stride is 1."""
    d = len(kernel)
    pads = tuple(dilation * (k // 2) for k in kernel) * 2
    return Geometry(inputs, outputs, kernel, (stride,) * d, pads, (dilation,) * d, groups)


def up(inputs: int, outputs: int, kernel: int, pads: tuple[int, ...], longer: tuple[int, ...] = ()) -> Geometry:
    """A ConvTranspose of stride 2."""
    size = (kernel, kernel), (2, 2), pads, (1, 1)
    return Geometry(inputs, outputs, *size, transposed=True, output_padding=longer)


PLAIN = Probe((conv(8, 12, 3, 3),), (8, 8), 2)
PROBES = {
    "Gemm": Probe((Geometry(24, 10),), (), 2),
    "three Gemms": Probe((Geometry(24, 3), Geometry(3, 7), Geometry(7, 10)), (), 1),
    "3x3": PLAIN,
    "stride 2 on an odd size": Probe((conv(8, 12, 3, 3, stride=2),), (9, 7), 1),
    "stride 3": Probe((conv(8, 12, 3, 3, stride=3),), (10, 11), 1),
    "1x1 stride 2 on an odd size": Probe((conv(8, 12, 1, 1, stride=2),), (7, 7), 1),
    "7x7 stride 2, no pads": Probe((Geometry(3, 12, (7, 7), (2, 2), (0,) * 4, (1, 1)),), (15, 15), 1),
    "uneven pads": Probe((Geometry(8, 12, (5, 3), (1, 2), (2, 0, 1, 2), (1, 1)),), (8, 9), 1),
    "pads that make it larger": Probe((Geometry(8, 12, (1, 1), (1, 1), (1, 2, 1, 2), (1, 1)),), (5, 5), 1),
    "dilated": Probe((conv(8, 12, 3, 3, dilation=2),), (9, 9), 1),
    "grouped": Probe((conv(8, 12, 3, 3, groups=4),), (8, 8), 1),
    "depthwise, then pointwise": Probe((conv(8, 8, 3, 3, groups=8), conv(8, 20, 1, 1)), (8, 8), 1),
    "1-D": Probe((conv(8, 12, 3, stride=2),), (13,), 3),
    "3-D": Probe((conv(4, 6, 3, 3, 3, stride=2),), (5, 6, 7), 1),
    "spatial SVD": Probe((conv(8, 3, 3, 1), conv(3, 12, 1, 3)), (8, 8), 1),
    "Tucker": Probe((conv(16, 4, 1, 1), conv(4, 5, 3, 3, stride=2), conv(5, 16, 1, 1)), (11, 11), 1),
    "transposed": Probe((conv(8, 4, 1, 1), up(4, 12, 4, (1, 1, 1, 1))), (4, 5), 1),
    "transposed, output padding": Probe((up(8, 12, 3, (1, 1, 0, 0), (1, 0)),), (4, 5), 1),
    "down to one place": Probe((Geometry(8, 12, (5, 5), (1, 1), (0,) * 4, (1, 1)),), (5, 5), 1),
}


def checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the shapes of its tensors, of its outputs too, which it leaves open and the checker wants."""
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    onnx.checker.check_model(model, full_check=True)
    return model


def outputs(model: onnx.ModelProto) -> list[np.ndarray]:
    """What a checked model makes of normal inputs."""
    rng = np.random.default_rng(0)
    types = {i.name: i.type.tensor_type for i in model.graph.input}
    shapes = {name: [d.dim_value for d in t.shape.dim] for name, t in types.items()}
    dtypes = {name: helper.tensor_dtype_to_np_dtype(t.elem_type) for name, t in types.items()}
    return run(model, {name: rng.normal(size=shape).astype(dtypes[name]) for name, shape in shapes.items()})


def ran(probes: Sequence[Probe], parts: Parts = Parts.LINKS) -> onnx.ModelProto:
    """The model, checked and run."""
    model = checked(probe_model(probes, parts))
    found = outputs(model)
    assert len(found) >= len(probes)
    for output in found:
        assert set(output.shape[2:]) <= {1}
        assert np.isfinite(output).all()
    return model


def sizes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Channels and spatial size of what each node of a checked model makes."""
    values = [*model.graph.value_info, *model.graph.output]
    return {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim)[1:] for v in values}


def test_a_probe_reads_like_a_chain() -> None:
    links = (
        Geometry(16, 8, (3, 1), (2, 1), (1, 0, 1, 0), (1, 1)),
        Geometry(8, 32, (1, 3), (2, 2), (0, 1, 0, 1), (1, 2)),
        Geometry(32, 32, (3, 3), (1, 1), (1,) * 4, (1, 1), 32),
    )
    probe = Probe(links, (32, 30), 8, "float16", ("Add", "Relu"))
    chain = "8 3×1 s2,1 p1,0,1,0 > 32 1×3 s2 p0,1,0,1 d1,2 > 32 3×3 p1 g32"
    assert str(probe) == f"float16 8×16×32×30 > {chain} > Add > Relu"
    assert str(Probe((Geometry(64, 10),), (), 1)) == "float32 1×64 > 10"


def test_each_part_of_a_probe_is_in_its_text() -> None:
    link = PLAIN.links[0]
    changes = {
        "inputs": 9,
        "outputs": 13,
        "kernel": (3, 1),
        "strides": (1, 2),
        "pads": (1, 1, 1, 0),
        "dilations": (2, 1),
        "groups": 4,
        "transposed": True,
        "output_padding": (1, 0),
    }
    others = [
        *(replace(PLAIN, links=(replace(link, **{name: value}),)) for name, value in changes.items()),
        replace(PLAIN, links=(link, conv(12, 12, 1, 1))),
        replace(PLAIN, size=(8, 9)),
        replace(PLAIN, batch=3),
        replace(PLAIN, dtype="float16"),
        replace(PLAIN, epilogue=("Relu",)),
        replace(PLAIN, epilogue=("Add", "Relu")),
    ]
    assert len({str(PLAIN), *map(str, others)}) == 1 + len(others)
    assert str(replace(PLAIN, links=(replace(link),))) == str(PLAIN)


@st.composite
def drawn(draw: st.DrawFn, least: int = 0) -> Probe:
    """A probe of one or two links, of few values, so that probes often differ in one of them alone."""
    d = draw(st.integers(least, 3))
    size = found = tuple(draw(st.integers(1, 9)) for _ in range(d))
    channels, links = draw(st.sampled_from([4, 8])), []
    for _ in range(draw(st.integers(1, 2))):
        each = [tuple(draw(st.integers(low, high)) for _ in range(n * d)) for low, high, n in BOUNDS]
        outputs = draw(st.sampled_from([4, 8]))
        links.append(Geometry(channels, outputs, *each, draw(st.sampled_from([1, 2, 4])) if d else 1))
        found, channels = links[-1].output_size(found), outputs
        assume(all(n > 0 for n in found))
    return Probe(tuple(links), size, draw(st.integers(1, 2)), epilogue=draw(st.sampled_from(EPILOGUES)))


BOUNDS = ((1, 3, 1), (1, 3, 1), (0, 2, 2), (1, 2, 1))  # of kernel, strides, pads and dilations


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(drawn(), min_size=2, max_size=6))
def test_probes_have_one_text_where_they_are_equal(probes: list[Probe]) -> None:
    assert len({str(p) for p in probes}) == len(set(probes))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(drawn(least=1), st.sampled_from(Parts))
def test_any_small_geometry_makes_a_model_that_runs(probe: Probe, parts: Parts) -> None:
    found = sizes(ran([probe], parts))
    size = probe.size
    for i, link in enumerate(probe.links):
        size = link.output_size(size)
        assert found.get(f"0/link{i}") == (None if parts is Parts.BARE else (link.outputs, *size))
    if parts is not Parts.LINKS or "Add" in probe.epilogue:
        assert found["0/other"] == (probe.links[-1].outputs, *size)


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("follows", [(), ("Add", "Relu")], ids=["alone", "in a residual sum"])
def test_a_probe_holds_its_links_as_they_are(name: str, follows: tuple[str, ...]) -> None:
    probe = replace(PROBES[name], epilogue=follows)
    model = ran([probe])
    nodes = {n.name: n for n in model.graph.node}
    weights = {t.name: tuple(t.dims) for t in model.graph.initializer}
    for i, link in enumerate(probe.links):
        node = nodes[f"0/link{i}"]
        outputs, inputs, *kernel = link.weight_shape
        order = (inputs, outputs) if link.transposed else (outputs, inputs)
        assert weights[node.input[1]] == (*order, *kernel)
        if link.kernel:
            held = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            assert tuple(held["kernel_shape"]) == link.kernel
            assert (tuple(held["strides"]), tuple(held["pads"])) == (link.strides, link.pads)
            assert (tuple(held["dilations"]), held["group"]) == (link.dilations, link.groups)


@pytest.mark.parametrize("follows", EPILOGUES, ids=" ".join)
@pytest.mark.parametrize("probe", [PLAIN, PROBES["Gemm"]], ids=["Conv", "Gemm"])
def test_what_follows_a_layer_follows_its_links(probe: Probe, follows: tuple[str, ...]) -> None:
    model = ran([replace(probe, epilogue=follows)])
    behind = [n.op_type for n in model.graph.node if n.name.split("/")[1] in follows]
    assert behind == list(follows)
    reads = {n.name: n.input[0] for n in model.graph.node}
    chain = [name := "0/after"]
    while name != "0/before":
        chain.append(name := reads[name])
    assert chain == ["0/after", *(f"0/{op}" for op in follows[::-1]), "0/link0", "0/before"]


def test_many_probes_are_branches_of_one_model() -> None:
    probes = [replace(p, batch=2, epilogue=("Add", "Relu")) for p in PROBES.values()]
    model = ran(probes)
    assert {n.name.partition("/")[0] for n in model.graph.node} == {str(i) for i in range(len(probes))}
    ends = set()
    for p in probes:
        size = p.size
        for link in p.links:
            size = link.output_size(size)
        ends |= {p.size, size}
    assert len(model.graph.input) == len(ends)
    assert len({n.name for n in model.graph.node}) == len(model.graph.node)


def test_activations_keep_their_size_along_a_chain() -> None:
    for link, size in (
        (conv(32, 32, 3, 3), (12, 12)),
        (conv(32, 32, 3, 3, groups=32), (12, 12)),
        (Geometry(64, 64), ()),
    ):
        (output,) = outputs(checked(probe_model([Probe((link,) * 8, size, 8, epilogue=("Relu",))])))
        assert 0.01 < output.std() < 100


def test_a_bare_model_has_neither_links_nor_what_follows_them() -> None:
    probes = [replace(p, batch=1, epilogue=("Add", "Relu")) for p in PROBES.values()]
    parts = {n.name.split("/")[1] for n in ran(probes, Parts.BARE).graph.node}
    assert parts <= {"before", "other", "after", "pool", "pool2"}


def test_what_is_taken_off_a_session_timed_as_a_whole_is_all_of_it_but_the_links() -> None:
    for follows in ((), ("Relu",), ("Add", "Relu")):
        probe = replace(PLAIN, epilogue=follows)
        whole, bare = (ran([probe], p).graph for p in (Parts.SPARE, Parts.BARE))
        own = {f"0/link{i}" for i in range(len(probe.links))} | {f"0/{op}" for op in follows}
        left = {n.name for n in whole.node} - own
        assert left == {n.name for n in bare.node} - ({"0/pool2"} if "Add" in follows else set())


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float16", TensorProto.FLOAT16), ("float64", TensorProto.DOUBLE), ("bfloat16", TensorProto.FLOAT)],
)
def test_a_probe_has_its_element_type_but_bfloat16_which_runs_as_float32(dtype: str, expected: int) -> None:
    probe = replace(PLAIN, dtype=dtype, epilogue=("Add", "Clip"))
    graph = checked(probe_model([probe])).graph
    types = [v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)]
    assert {*types, *(t.data_type for t in graph.initializer)} == {expected}
    if dtype != "float64":  # for which onnxruntime has no Conv
        ran([probe])


def test_macs_are_those_of_all_links_on_all_images() -> None:
    probe = Probe((conv(8, 4, 3, 3, stride=2), conv(4, 16, 1, 1)), (9, 8), 3)
    assert probe.macs == 3 * (4 * 8 * 9 + 16 * 4) * (5 * 4)
    assert Probe((conv(8, 8, 3, groups=8),), (7,), 1).macs == 8 * 3 * 7
    assert Probe((Geometry(24, 3), Geometry(3, 10)), (), 2).macs == 2 * (24 * 3 + 3 * 10)


def test_a_resnets_sums_are_charged_to_the_last_conv_of_each_branch() -> None:
    model = normalise(resnet((2, 1), (4, 8), size=8))
    shapes = infer_shapes(model, batch_one(model))
    found = {n.name: epilogue(model.graph, n, shapes) for n in model.graph.nodes if n.op in ("Conv", "Gemm")}
    blocks = ("layer1.0", "layer1.1", "layer2.0")
    assert found == {
        "/conv1/Conv": ("Relu",),
        **{f"/{block}.conv1/Conv": ("Relu",) for block in blocks},
        **{f"/{block}.conv2/Conv": ("Add", "Relu") for block in blocks},
        "linear/Gemm": (),
    }


def test_a_sum_of_two_convs_is_charged_to_the_later_one() -> None:
    model = normalise(resnet((1, 1), (4, 8), shortcut="B", size=8))
    shapes = infer_shapes(model, batch_one(model))
    order = [n.name for n in model.graph.nodes if n.op == "Conv"]
    two = [n for n in order if n in ("/layer2.0.conv2/Conv", "/layer2.0.downsample/Conv")]
    found = {n.name: epilogue(model.graph, n, shapes) for n in model.graph.nodes if n.name in two}
    assert found == {two[0]: (), two[1]: ("Add", "Relu")}


def test_what_is_an_output_is_not_fused_with_what_follows() -> None:
    b = Builder()
    x = b.conv("input", 3, 4)
    model = Model(b.model({x: ("N", 4, 8, 8), b.node("Relu", x): ("N", 4, 8, 8)}))
    assert epilogue(model.graph, model.graph.nodes[0], infer_shapes(model, batch_one(model))) == ()


def twice(b: Builder, x: str) -> str:
    return b.node("Mul", b.node("Relu", x), b.node("Sigmoid", x))


FOLLOWING: dict[str, tuple[Callable[[Builder, str, str], str], tuple[str, ...]]] = {
    "an activation": (lambda b, x, _: b.node("HardSwish", x), ("HardSwish",)),
    "one activation of two": (lambda b, x, _: b.node("Sigmoid", b.node("Relu", x)), ("Relu",)),
    "an activation, then a sum": (lambda b, x, s: b.node("Add", b.node("Relu", x), s), ("Relu",)),
    "a sum": (lambda b, x, s: b.node("Add", s, x), ("Add",)),
    "a sum, an activation": (lambda b, x, s: b.node("Tanh", b.node("Add", x, s)), ("Add", "Tanh")),
    "a second sum": (lambda b, x, s: b.node("Add", b.node("Add", x, s), s), ("Add",)),
    "two readers": (lambda b, x, _: twice(b, x), ()),
    "a sum that two read": (lambda b, x, s: twice(b, b.node("Add", x, s)), ("Add",)),
    "a pool": (lambda b, x, _: b.node("MaxPool", x, kernel_shape=[2, 2]), ()),
    "a constant": (lambda b, x, _: b.node("Add", x, b.const(np.ones((1, 4, 8, 8), np.float32))), ()),
    "a sum that spreads": (lambda b, x, s: b.node("Add", x, b.node("GlobalAveragePool", s)), ()),
    "the model's input": (lambda b, x, _: b.node("Add", x, "input"), ()),
    "itself": (lambda b, x, _: b.node("Add", x, x), ()),
}


@pytest.mark.parametrize("name", FOLLOWING)
def test_only_what_a_runtime_may_fuse_is_charged_to_a_layer(name: str) -> None:
    follow, expected = FOLLOWING[name]
    b = Builder()
    shortcut = b.node("Relu", b.conv("input", 4, 4, at="first"))
    x = follow(b, b.conv(shortcut, 4, 4, at="last"), shortcut)
    model = Model(b.model(b.node("Flatten", x, axis=1), ("N", 4, 8, 8)))
    node = next(n for n in model.graph.nodes if n.name == "last/Conv")
    assert epilogue(model.graph, node, infer_shapes(model, batch_one(model))) == expected


def test_clipping_to_constants_is_an_activation() -> None:
    b = Builder()
    x = b.node("Clip", b.conv("input", 3, 4), b.const(np.float32(0)), b.const(np.float32(6)))
    model = Model(b.model(x))
    assert epilogue(model.graph, model.graph.nodes[0], infer_shapes(model, batch_one(model))) == ("Clip",)
