"""Every layer of a pruned group keeps a multiple of the alignment, also where shortcuts pad with zeros."""

from __future__ import annotations

import numpy as np
import pytest
from zoo import Builder, resnet

from calib.measure.moments import Moments
from hmc_onnx.analysis.find_compressible import find_compressible
from hmc_onnx.search_space.pruning_steps import steps
from hmc_onnx.search_space.variants import removal
from passes.channels import ChannelGroup
from passes.core.shelf import Shelf
from passes.graph.shapes import batch_one
from passes.normal_form.normalise import normalise


def stage_wide(shortcut: str) -> tuple[ChannelGroup, dict]:
    model = normalise(resnet((1, 1, 1), (16, 32, 64), shortcut=shortcut, size=8))
    compressible = find_compressible(model, batch_one(model))
    return max(compressible.groups.values(), key=lambda g: len(g.slots)), compressible.layers


def test_what_the_same_layers_carry_is_a_cell() -> None:
    group, _ = stage_wide("A")
    found = steps(group, 8)
    assert sorted(map(len, found.cells)) == [16, 16, 32]
    assert sorted(np.concatenate(found.cells)) == list(range(64))
    assert found.counts == sorted(found.counts)
    assert all(keep % 8 == 0 and keep > 0 for keeps in found.keeps for keep in keeps)


def test_of_one_cell_shares_are_kept_as_ever() -> None:
    group, _ = stage_wide("B")
    assert len(steps(group, 4).cells) == 1
    assert steps(group, 4).keeps == [
        (k,)
        for k in sorted({int(group.size * s) // 4 * 4 for s in (0.875, 0.75, 0.625, 0.5, 0.375, 0.25)}, reverse=True)
    ]
    assert len(steps(group, 4, fine=False).keeps) == 3


def test_cells_smaller_than_the_alignment_are_not_told_apart() -> None:
    group, _ = stage_wide("A")
    assert len(steps(group, 32).cells) == 1


@pytest.mark.parametrize("align", [4, 8])
def test_an_elimination_leaves_every_layer_an_aligned_number(align: int) -> None:
    group, layers = stage_wide("A")
    rng = np.random.default_rng(0)
    for subject in layers.values():
        moments = Moments()
        moments.update(rng.normal(size=(1000, subject.layer.geometry.features)))
        subject.moments = moments.centred(Shelf())
    eliminate, *arguments = removal(group, layers, align)
    found = eliminate(*arguments)
    assert len(found.weights) == len(steps(group, align).counts) > 1
    for count in found.weights:
        gone = found.order[:count]
        for slot, classes in zip(group.slots, group.classes, strict=True):
            left = int((~np.isin(classes, gone) & (classes >= 0)).sum())
            assert left % align == 0 and left > 0, str(slot)


def test_any_classes_stand_for_those_that_go() -> None:
    group, _ = stage_wide("A")
    found = steps(group, 8)
    for step, count in enumerate(found.counts):
        gone = found.any(step)
        assert len(gone) == len(set(gone)) == count
        for cell, keep in zip(found.cells, found.keeps[step], strict=True):
            assert len(set(cell.tolist()) - set(gone)) == keep


@pytest.mark.parametrize("written", ["operator", "reshape"])
def test_the_alignment_counts_channels_and_not_groups_of_a_group_norm(written: str) -> None:
    """Four groups of eight channels: three, two or one of them make a multiple of 8, and so does each on offer."""
    b = Builder(opset=21 if written == "operator" else 17)
    x = b.conv("input", 3, 32, at="a")
    if written == "operator":
        scale, shift = (b.const(b.normal(32)) for _ in range(2))
        x = b.node("GroupNormalization", x, scale, shift, num_groups=4)
    else:
        flat = b.node("Reshape", x, b.const([0, 4, -1]))
        ones, zeros = (b.const(np.full(4, v, np.float32)) for v in (1, 0))
        flat = b.node("InstanceNormalization", flat, ones, zeros)
        x = b.node("Mul", b.node("Reshape", flat, b.const([0, 32, 8, 8])), b.const(b.normal(32, 1, 1)))
    model = normalise(b.model({b.conv(x, 32, 4, at="b"): ["N", 4, 8, 8]}))
    compressible = find_compressible(model, batch_one(model))
    group = compressible.groups["a/Conv"]
    assert group.size == 4
    assert steps(group, 8).keeps == [(3,), (2,), (1,)]
    assert steps(group, 16).keeps == [(2,)]
    for subject in compressible.layers.values():
        moments = Moments()
        moments.update(np.random.default_rng(0).normal(size=(2000, subject.layer.geometry.features)))
        subject.moments = moments.centred(Shelf())
    function, *arguments = removal(group, compressible.layers, 8)
    assert len(function(*arguments).order) == 3
