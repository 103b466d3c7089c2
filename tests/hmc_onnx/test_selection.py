"""Layers that the user leaves alone, by the names that `keep` and `only` match."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from zoo import Builder, images, resnet

from hmc_onnx.analysis.find_compressible import find_compressible
from hmc_onnx.records.selection import LayerSelection
from hmc_onnx.records.settings import Settings
from hmc_onnx.run import Run
from passes.core.declined import sentences
from passes.core.errors import SettingsError
from passes.graph.model import Model
from passes.normal_form.normalise import normalise

NAMES = ["stem/Conv", "layer1/a/Conv", "layer1/b/Conv", "layer2/a/Conv", "fc/Gemm"]
INPUTS = {"input": (1, 3, 8, 8)}


@pytest.mark.parametrize(
    ("keep", "only", "alone"),
    [
        (("stem/*",), (), {"stem/Conv"}),
        (("*/a/*", "fc/Gem?"), (), {"layer1/a/Conv", "layer2/a/Conv", "fc/Gemm"}),
        ((), ("layer[12]/*",), {"stem/Conv", "fc/Gemm"}),
        (("*/b/Conv",), ("layer1/*",), set(NAMES) - {"layer1/a/Conv"}),
    ],
)
def test_layers_that_match_are_left_alone(keep: tuple[str, ...], only: tuple[str, ...], alone: set[str]) -> None:
    assert set(LayerSelection(keep, only).left_alone(NAMES)) == alone


def test_the_reason_is_the_pattern() -> None:
    found = LayerSelection(("stem/*",), ("layer1/*", "stem/*")).left_alone(NAMES)
    assert found["stem/Conv"].reason == "kept, as it matches the pattern stem/*"
    assert found["fc/Gemm"].reason == "left alone, as it matches no pattern of layer1/* stem/*"


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (LayerSelection(keep=("layer1/a/Cnov",)), "`keep` 'layer1/a/Cnov' matches no layer: near names are lay"),
        (LayerSelection(only=("FC*",)), "`only` 'FC\\*' matches no layer: "),
        (LayerSelection(only=("zzz",)), "`only` 'zzz' .*: its layers are stem/Conv, "),
        (LayerSelection(keep=("*",)), "no layer is left to compress"),
    ],
)
def test_a_selection_that_cannot_be_meant_is_refused(selection: LayerSelection, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        selection.left_alone(NAMES)


def chain() -> Model:
    """Three Convs and a depthwise one in a row, and a Gemm."""
    b = Builder()
    x = b.node("Relu", b.conv("input", 3, 8, at="a"))
    x = b.node("Relu", b.conv(x, 8, 8, group=8, at="depthwise"))
    x = b.node("Relu", b.conv(x, 8, 6, at="b"))
    x = b.node("Relu", b.conv(x, 6, 4, at="c"))
    x = b.node("Flatten", b.node("GlobalAveragePool", x))
    return normalise(b.model(b.gemm(x, 4, 2)))


@pytest.mark.parametrize(
    ("kept", "groups"),
    [
        ("a", {"b/Conv", "c/Conv"}),
        ("depthwise", {"b/Conv", "c/Conv"}),
        ("b", {"c/Conv"}),
        ("fc", {"a/Conv", "b/Conv"}),
    ],
)
def test_channel_groups_at_both_ends_of_a_kept_layer_stay(kept: str, groups: set[str]) -> None:
    found = find_compressible(chain(), INPUTS, LayerSelection(keep=(f"{kept}/*",)))
    assert set(found.groups) == groups
    assert not any(name.startswith(f"{kept}/") for name in found.layers)
    closed = {k: v for k, v in sentences(found.declined).items() if k.startswith("channels of ")}
    assert {v for k, v in closed.items() if "input" not in k} & {
        f"'{n}' takes part, which is kept, as it matches the pattern {kept}/*" for n in (f"{kept}/Conv", f"{kept}/Gemm")
    }


def bottleneck() -> Model:
    """A block of three Convs on the residual stream."""
    b = Builder()
    x = b.node("Relu", b.conv("input", 3, 8, at="stem"))
    y = b.node("Relu", b.conv(x, 8, 4, 1, at="first"))
    y = b.node("Relu", b.conv(y, 4, 4, at="second"))
    x = b.node("Relu", b.node("Add", b.conv(y, 4, 8, 1, at="third"), x))
    x = b.node("Flatten", b.node("GlobalAveragePool", x))
    return normalise(b.model(b.gemm(x, 8, 3)))


def test_a_residual_branch_is_removable_unless_a_layer_in_it_is_kept() -> None:
    model = bottleneck()
    assert find_compressible(model, INPUTS, LayerSelection(keep=("stem/*",))).removable == {"first/Conv", "second/Conv"}
    for name in ("first", "second", "third"):
        assert find_compressible(model, INPUTS, LayerSelection(keep=(f"{name}/*",))).removable == set()


def weights(proto: onnx.ModelProto) -> dict[str, list[np.ndarray]]:
    """The weight and bias of each layer, by name."""
    values = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    layers = [n for n in proto.graph.node if n.op_type in ("Conv", "Gemm")]
    return {n.name: [values[t] for t in n.input[1:]] for n in layers}


@pytest.mark.usefixtures("few_candidates")
def test_kept_layers_have_the_weights_of_the_normal_form_and_others_not() -> None:
    proto = resnet((1, 1), (4, 8), size=8, classes=5)
    own = weights(normalise(proto).finished())
    names = list(own)
    kept = {names[2], names[-1]}
    settings = Settings(align=1, samples=16, kl_samples=8, keep=tuple(sorted(kept)))
    run = Run(proto, {"input": images(16, 8)}, settings)
    plan = run.plan("macs=0.6")
    assert sentences(plan.declined).items() >= {n: f"kept, as it matches the pattern {n}" for n in kept}.items()
    assert not kept & set(plan.layers)
    made = weights(run.apply(plan))
    for name in kept:
        for now, before in zip(made[name], own[name], strict=True):
            np.testing.assert_array_equal(now, before, strict=True)
    assert any(name not in made or not np.array_equal(made[name][0], own[name][0]) for name in set(names) - kept)


@pytest.mark.usefixtures("few_candidates")
def test_only_what_matches_is_measured() -> None:
    proto = resnet((1, 1), (4, 8), size=8, classes=5)
    name = next(n.name for n in proto.graph.node if n.op_type == "Gemm")
    settings = Settings(align=1, samples=16, kl_samples=8, only=(name,))
    assert [layer.name for layer in Run(proto, {"input": images(16, 8)}, settings).profile().layers] == [name]


def test_settings_that_select_nothing_are_written_as_before() -> None:
    written = Settings().model_dump_json()
    assert '"keep"' not in written
    assert '"only"' not in written
    assert Settings.model_validate_json(Settings(keep=("a*",)).model_dump_json()).keep == ("a*",)
