"""The torch module of whole networks: the same function as onnxruntime's, and only weights are trained."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch
from exported import exported, names
from forms import FORMS
from onnx import numpy_helper
from zoo import parsed

from calib.runtime.sessions import Session
from hmc_onnx.analysis.model_inputs import signature
from hmc_onnx.finetune.module import GraphModule, updated

# Of the topologies of one family all but the depth is the same: one each, as each exporter writes it.
FAMILIES = (
    "resnet18", "resnet50", "resnet50_v1", "resnext50", "wide_resnet50_2", "preresnet18", "preresnet50",
    "seresnet18", "seresnet50", "resnet20a", "resnet20b", "resnet20c",
)  # fmt: skip
EXPORTS = [name for name in names() if name.split("-")[0] in FAMILIES]


def compare(proto: onnx.ModelProto) -> GraphModule:
    """Check that torch computes what onnxruntime does, and return the module."""
    ((name, (_, shape)),) = signature(proto).items()
    x = np.random.default_rng(0).standard_normal([d or 2 for d in shape]).astype(np.float32)
    expected = Session(proto).run({name: x})
    module = GraphModule(proto)
    with torch.no_grad():
        found = module(torch.from_numpy(x))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())
    return module


@pytest.mark.parametrize("name", EXPORTS)
def test_every_family_as_torch_exports_it(name: str) -> None:
    module = compare(exported(name))
    assert len(module.trained) >= 2 * 18


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_as_others_write_it(family: str, form: str) -> None:
    unfolded = f"{family}-torchscript-17-bn"
    compare(FORMS[form](exported(unfolded if unfolded in EXPORTS else f"{family}-torchscript-13")))


def test_every_family_is_in_the_table() -> None:
    assert {name.split("-")[0] for name in EXPORTS} == set(FAMILIES)


NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
network (float[N, 3, 4, 4] x) => (float[N, 2] y)
<float three = {3.0}>
{
    a = Conv (x, w, b)
    c = BatchNormalization (a, scale, shift, mean, var)
    d = Mul (c, factor)
    e = Add (d, three)
    f = ReduceMean <axes = [2, 3], keepdims = 0> (e)
    g = MatMul (f, matrix)
    y = Add (g, bias)
}
"""


def network() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"w": (4, 3, 1, 1), "factor": (1, 4, 1, 1), "matrix": (4, 2), "bias": (2,)}
    shapes |= dict.fromkeys(("b", "scale", "shift", "mean", "var"), (4,))
    return parsed(NETWORK, **{n: np.abs(rng.standard_normal(s)).astype(np.float32) for n, s in shapes.items()})


def test_weights_are_trained_and_constants_are_not() -> None:
    module = compare(network())
    assert module.trained == {"w", "b", "scale", "shift", "matrix", "bias"}
    assert set(module.values()) == module.trained | {"mean", "var"}


def test_batch_statistics_are_kept_as_torch_keeps_them() -> None:
    module = GraphModule(network())
    norm = torch.nn.BatchNorm2d(4)
    values = module.values()
    norm.running_mean.copy_(torch.from_numpy(values["mean"]))
    norm.running_var.copy_(torch.from_numpy(values["var"]))
    x = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    w, b = (torch.from_numpy(values[n]) for n in "wb")
    norm(torch.nn.functional.conv2d(x, w, b))
    module.mode.batch_statistics = True
    module(x)
    np.testing.assert_allclose(module.values()["mean"], norm.running_mean.numpy(), rtol=1e-6)
    np.testing.assert_allclose(module.values()["var"], norm.running_var.numpy(), rtol=1e-6)


def test_only_what_is_wanted_is_computed_and_trained() -> None:
    module = GraphModule(network(), ["c"])
    assert module.trained == {"w", "b", "scale", "shift"}
    (c,) = module(torch.zeros(1, 3, 4, 4))
    assert c.shape == (1, 4, 4, 4)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_values_written_back_are_all_that_differs(kind: type) -> None:
    proto = network()
    first = proto.graph.initializer[0]
    first.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(first).astype(kind), first.name))
    before = copy.deepcopy(proto)
    after = updated(proto, {"w": np.full((4, 3, 1, 1), 0.3, np.float32)})
    assert proto == before
    tensor = next(t for t in after.graph.initializer if t.name == "w")
    assert (numpy_helper.to_array(tensor) == np.full((4, 3, 1, 1), 0.3, np.float32).astype(kind)).all()
    tensor.CopyFrom(next(t for t in before.graph.initializer if t.name == "w"))
    assert after == before
