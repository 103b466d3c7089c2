"""Sensitivities against what they replace: a whole model built and run for every candidate."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import pytest
from scipy.special import softmax
from zoo import Builder, images, resnet, run

from calib.measure.sensitivity import BROKEN, Change, Gauge, sensitivities
from calib.measure.walk import Walk
from passes.graph.model import Model
from passes.normal_form.normalise import normalise

Values = dict[str, np.ndarray]


def divergence(a: np.ndarray, b: np.ndarray) -> float:
    p, q = softmax(a.astype(np.float64), 1), softmax(b.astype(np.float64), 1)
    return float(np.mean(np.sum(p * np.log(p / q), 1)))


def rebuilt(model: Model, values: Values) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    proto.CopyFrom(model.to_proto())
    for tensor in proto.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(onnx.numpy_helper.from_array(values[tensor.name], tensor.name))
    return proto


@pytest.fixture(scope="module", params=["A", "B"])
def measured(request: pytest.FixtureRequest) -> tuple[dict, dict]:
    """Sensitivities found, and those of whole models: each layer alone, and layers that change together."""
    model = normalise(resnet((1, 1), (4, 8), shortcut=request.param, size=8))
    x = images(20, 8)
    rng = np.random.default_rng(0)
    layers = [(i, n) for i, n in enumerate(model.graph.nodes) if n.op in ("Conv", "Gemm")]
    together = [layers[1:3], layers[-3:]]
    changes, expected = [], {}
    reference = run(model.to_proto(), x)[0]
    for members in [*([layer] for layer in layers), *together]:
        names = [t.name for _, n in members for t in n.inputs[1:]]
        options = {}
        for scale in (0.03, 0.3):
            key = (*names, scale)
            values = {
                t.name: (t.values + scale * rng.normal(size=t.shape)).astype(np.float32)
                for _, n in members
                for t in n.inputs[1:]
            }
            options[key] = partial(dict, values)
            expected[key] = divergence(reference, run(rebuilt(model, values), x)[0])
        changes.append(Change(members[0][1].inputs[0].name, members[0][0], tuple(names), options))
    order = rng.permutation(len(changes))
    walk = Walk(model, [{"input": x[:13]}, {"input": x[13:]}])
    return sensitivities(walk, [changes[i] for i in order]), expected


def test_each_is_that_of_a_whole_model_of_its_own(measured: tuple[dict, dict]) -> None:
    found, expected = measured
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-3, abs=1e-7), key


def test_larger_changes_are_felt_more(measured: tuple[dict, dict]) -> None:
    found, _ = measured
    for key, value in found.items():
        if key[-1] == 0.3:
            assert value > found[(*key[:-1], 0.03)] > 0


def test_progress_ends_at_the_number_of_options_and_no_options_take_no_session() -> None:
    model = normalise(resnet((1,), (4,), size=8))
    node = next(n for n in model.graph.nodes if n.op == "Conv")
    name = node.inputs[1].name
    same = Change("input", 0, (name,), {i: lambda: {name: node.inputs[1].values} for i in range(3)})
    seen: list[tuple[str, int, int]] = []
    walk = Walk(model, [{"input": images(2, 8)}])
    found = sensitivities(walk, [same, Change("no such tensor", 9, (), {})], lambda *step: seen.append(step))
    assert found == pytest.approx({0: 0.0, 1: 0.0, 2: 0.0}, abs=1e-12)
    assert seen == [("sensitivity", i, 3) for i in range(4)]


def test_a_change_behind_which_the_output_is_not_finite_counts_as_much_as_can_be() -> None:
    """As where a network ends in a log-sum-exp: the Exp of a large error is infinite."""
    b = Builder()
    x = b.node("Flatten", b.node("GlobalAveragePool", b.conv("input", 3, 4, at="conv")))
    sums = b.node("MatMul", b.node("Exp", x), b.const(np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32)))
    model = normalise(b.model({b.node("Log", sums): ("N", 2)}))
    position, node = next((i, n) for i, n in enumerate(model.graph.nodes) if n.op == "Conv")
    name, weight = node.inputs[1].name, node.inputs[1].values
    options = {factor: partial(dict, {name: weight * np.float32(factor)}) for factor in (1, 1e8)}
    walk = Walk(model, [{"input": images(4, 8)}])
    found = sensitivities(walk, [Change(node.inputs[0].name, position, (name,), options)])
    assert found[1] == pytest.approx(0, abs=1e-9)
    assert found[1e8] == BROKEN


@pytest.mark.parametrize(
    ("nats", "needed"),
    [
        ([1.0, 1.1] * 8, 8),  # known from half of the images
        ([0.1, 0.1, 0.1, 3.0] * 4, 16),  # a few images decide, so all are needed
        ([8.0, 8.1] * 8, 4),  # out, as another option costs no more and loses less
    ],
)
def test_an_option_runs_on_no_more_images_than_it_takes(
    monkeypatch: pytest.MonkeyPatch, nats: list[float], needed: int
) -> None:
    model = normalise(resnet((1,), (4,), size=8))
    position, node = next((i, n) for i, n in enumerate(model.graph.nodes) if n.op == "Conv")
    found = {"option": np.array(nats), "other": np.full(16, 2.0)}
    options = {key: partial(dict, {"of": key}) for key in found}  # type: ignore[call-overload]
    ran = dict.fromkeys(found, 0)

    def divergences(_: Gauge, tail: object, values: dict[str, str], chunks: slice) -> np.ndarray:
        own = found[values["of"]].reshape(4, 4)[chunks].ravel()
        ran[values["of"]] += len(own)
        return own

    monkeypatch.setattr(Gauge, "_divergences", divergences)
    walk = Walk(model, [{"input": chunk} for chunk in np.split(images(16, 8), 4)])
    change = Change("input", position, (node.inputs[1].name,), options, {"option": 0.5, "other": 0.5})
    assert sensitivities(walk, [change], confidence=0.95)["option"] == pytest.approx(np.mean(nats[:needed]))
    assert ran["option"] == needed
