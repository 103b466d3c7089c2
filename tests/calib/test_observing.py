"""What is seen where inference ends: behind custom domains, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from zoo import Builder

from calib.runtime.observing import observe
from hmc_onnx.analysis.find_compressible import find_compressible
from passes.core.declined import Why
from passes.graph.cost import total
from passes.graph.model import Model
from passes.graph.shapes import infer_shapes
from passes.normal_form.normalise import normalise

ONE = {"input": (1, 3, 8, 8)}


def net(*domain: str, unknown: str = "Gelu") -> Model:
    """Conv, an operator of a domain, Conv, BatchNormalization apart from it, Relu."""
    b = Builder()
    x = b.node(unknown, b.conv("input", 3, 8, at="before"), **({"domain": domain[0]} if domain else {}))
    x = b.node("Relu", b.conv(x, 8, 8, at="behind"))
    return normalise(b.model({b.node("Relu", b.batchnorm(x, 8)): ("N", 8, 8, 8)}, check=not domain))


def test_what_lies_behind_an_operator_of_another_domain_is_known_and_counted() -> None:
    model = net("com.microsoft")
    assert find_compressible(model, ONE).declined["behind/Conv"].code is Why.UNKNOWN_SIZE
    assert observe(model, ONE) is model
    (seen,) = model.observed  # of what follows the shape is inferred
    assert seen.startswith("/Gelu")
    assert infer_shapes(model, ONE)[model.graph.outputs[0].name] == (1, 8, 8, 8)
    assert total(model, ONE) == total(net(unknown="Relu"), ONE)
    assert "behind/Conv" in find_compressible(model, ONE).layers


def test_where_all_is_known_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calib.runtime.observing.Session", None)
    assert observe(net(unknown="Relu"), ONE).observed == {}


def test_what_cannot_be_run_stays_unknown() -> None:
    model = net("no.such.domain")
    assert observe(model, ONE).observed == {}
    assert None in infer_shapes(model, ONE).get(model.graph.outputs[0].name, (None,))


def test_a_sequence_is_not_a_shape_but_what_is_taken_from_it_is() -> None:
    b = Builder()
    x = b.node("SequenceAt", b.node("SequenceConstruct", "input", "input"), b.const(np.array(1)))
    model = observe(normalise(b.model({b.conv(x, 3, 8): ("N", 8, 8, 8)}, check=False)), ONE)
    assert infer_shapes(model, ONE)[model.graph.outputs[0].name] == (1, 8, 8, 8)
