"""The residual sum that a layer's output enters: which term is the other, and how its axes lie."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from zoo import Builder, images, run

from passes.graph.model import Model
from passes.residual import ResidualSum, is_sum, residual_sum


def last_sum(b: Builder, outputs: str | list[str]) -> tuple[Model, ResidualSum | None]:
    model = Model(b.model(outputs))
    layer = next(n for n in model.graph.nodes if n.name == "last/Conv")
    return model, residual_sum(model.graph, layer, model.shapes)


def test_both_terms_are_told_apart() -> None:
    b = Builder()
    x = b.node("Relu", b.conv("input", 3, 3, at="first"))
    y = b.conv(x, 3, 3, at="last")
    _, found = last_sum(b, b.node("Relu", b.node("Add", y, x)))
    assert found is not None
    assert (found.add.op, found.entry.name, found.other.name) == ("Add", y, x)
    assert found.order == (0, 1, 2, 3) and found.direct and found.removable


@pytest.mark.parametrize("perm", list(permutations(range(1, 4))))
def test_the_order_brings_the_other_term_to_the_layers_axes(perm: tuple[int, ...]) -> None:
    """The layer's output is the sum less the other term, if both are brought into its order."""
    b = Builder()
    x = b.node("Relu", b.conv("input", 3, 3, at="first"))
    y = b.conv(x, 3, 3, at="last")
    first = (0, *perm)
    entry = b.node("Transpose", b.node("Transpose", y, perm=first), perm=[0, 2, 3, 1])
    other = b.node("Transpose", b.node("Transpose", x, perm=first), perm=[0, 2, 3, 1])
    total = b.node("Add", other, entry)
    _, found = last_sum(b, b.node("Relu", total))
    assert found is not None and not found.direct and not found.removable
    assert (found.entry.name, found.other.name) == (entry, other)
    values = dict(zip((y, other, total), run(b.model([y, other, total]), images(2, 8)), strict=True))
    back = [np.transpose(values[name], found.order) for name in (total, other)]
    np.testing.assert_allclose(back[0] - back[1], values[y], atol=1e-5)


def test_a_transpose_without_perm_turns_all_axes() -> None:
    b = Builder()
    x = b.node("Relu", b.conv("input", 3, 3, at="first"))
    y = b.conv(x, 3, 3, at="last")
    _, found = last_sum(b, b.node("Relu", b.node("Add", b.node("Transpose", y), b.node("Transpose", x))))
    assert found is not None and found.order == (3, 2, 1, 0)


def test_a_bias_makes_no_sum() -> None:
    b = Builder()
    y = b.node("Add", b.conv("input", 3, 3, at="last"), b.const(b.normal(1, 3, 8, 8)))
    model, found = last_sum(b, b.node("Relu", y))
    assert found is None
    assert not any(is_sum(n) for n in model.graph.nodes)
