"""The layer that a chain is to stand for: what the layers with some of its outputs share with it."""

from __future__ import annotations

import numpy as np
import pytest

from passes.decompose import Problem
from passes.graph.layers import Geometry

GEOMETRIES = (
    Geometry(4, 6, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    Geometry(12, 5),
    Geometry(4, 6, (4, 4), (2, 2), (1, 1, 1, 1), (1, 1), transposed=True),
)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_problem_of_some_outputs_is_that_of_a_layer_with_those_alone(geometry: Geometry) -> None:
    rng = np.random.default_rng(0)
    whole = Problem.of(
        geometry, rng.normal(size=geometry.weight_shape), np.cov(rng.normal(size=(geometry.features, 99)))
    )
    kept = np.arange(geometry.outputs) != 1
    some = whole.of_outputs(kept)
    alone = Problem.of(geometry.resized(geometry.inputs, geometry.outputs - 1), whole.weight[kept], whole.moment)
    assert some.geometry == alone.geometry
    np.testing.assert_allclose(some.matrix, alone.matrix)
    np.testing.assert_allclose(some.answers, alone.answers)
    assert some.response == pytest.approx(alone.response) and some.response < whole.response
    assert whole.of_outputs(np.ones(geometry.outputs, bool)) is whole
