"""Pruning as a pass: the network without some channels is that with their weights at zero."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import PostconditionError, PreconditionError
from zoo import assert_same, images, resnet, run

from passes.channels import trace
from passes.channels.prune import PruneChannels
from passes.graph.model import Model

GROUP = "/layer1.0.conv1/Conv"


def test_channels_that_do_not_matter_go_and_nothing_changes() -> None:
    proto = resnet((1, 1), (4, 8))
    (group,) = (g for g in trace(Model(proto)).groups if g.name == GROUP)
    silent = Model(proto)
    for slot, classes in group.members("produces") + group.members("follows"):
        values = np.array(slot.node.inputs[slot.index].values)
        np.moveaxis(values, slot.axis, 0)[np.isin(classes, [1, 3])] = 0
        next(n for n in silent.graph.nodes if n.name == slot.node.name).inputs[slot.index].values = values
    before = silent.finished()
    result = PruneChannels({GROUP: [1, 3, 3]})(ir.from_proto(before))
    assert result.modified
    after = ir.to_proto(result.model)
    assert_same(run(after, images()), run(before, images()))
    shapes = {t.name: tuple(t.dims) for t in after.graph.initializer}
    assert shapes["layer1.0.conv1.weight"] == (2, 4, 3, 3)
    assert shapes["layer1.0.conv2.weight"] == (4, 2, 3, 3)


def test_each_class_removed_is_a_change() -> None:
    assert PruneChannels({GROUP: [1, 3, 3]}).rewrite(Model(resnet((1, 1), (4, 8)))) == 2
    assert PruneChannels({GROUP: []}).rewrite(Model(resnet((1, 1), (4, 8)))) == 0


def test_sizes_that_the_model_leaves_open_are_given() -> None:
    proto = resnet((1, 1), (4, 8))
    for dim in proto.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = "size"
    with pytest.raises(PreconditionError, match="unknown dimensions"):
        PruneChannels({GROUP: [1]})(ir.from_proto(proto))
    assert PruneChannels({GROUP: [1]}, sizes={"input": (1, 3, 16, 16)})(ir.from_proto(proto)).modified


@pytest.mark.parametrize(
    ("removed", "said"),
    [
        ({"nothing": [0]}, "there is no channel group 'nothing'"),
        ({GROUP: [4]}, "has no class 4: it has 4"),
        ({GROUP: range(4)}, "without channels: remove fewer"),
        ({GROUP: [1.5]}, r"\[1\.5\] is no list of whole numbers"),
        ({GROUP: [True, False]}, r"\[True, False\] is no list of whole numbers"),
        ({GROUP: np.zeros(4, bool)}, "is no list of whole numbers"),
        ({GROUP: [[0, 1]]}, r"\[\[0, 1\]\] is no list of whole numbers"),
        ({GROUP: [[0], [1, 2]]}, "is no list of whole numbers"),
        ({GROUP: 3}, "3 is no list of whole numbers"),
        ([GROUP], "`removed` .* is of type list: give the classes of each group by its name"),
    ],
)
def test_what_cannot_be_removed_is_refused(removed: dict, said: str) -> None:
    with pytest.raises(PreconditionError, match=said):
        PruneChannels(removed)(ir.from_proto(resnet((1, 1), (4, 8))))


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"image": (1, 3, 8, 8)}, "`sizes` has 'image', which is no input: the model's are input"),
        ({"input": (1, 3)}, r"`sizes` has \(1, 3\) for 'input': give a number for each of its axes"),
        ({"input": "a"}, "`sizes` has 'a' for 'input'"),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes: dict, said: str) -> None:
    with pytest.raises(PreconditionError, match=said):
        PruneChannels({GROUP: [1]}, sizes)(ir.from_proto(resnet((1, 1), (4, 8))))


def test_weights_that_do_not_fit_each_other_are_found_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    def half(self: PruneChannels, model: Model) -> int:
        """Take channels off one weight alone."""
        node = next(n for n in model.graph.nodes if n.name == GROUP)
        for i in (1, 2):
            node.inputs[i].values = np.array(node.inputs[i].values)[:2]
        return 2

    monkeypatch.setattr(PruneChannels, "rewrite", half)
    said = "node '/layer1.0.conv2/Conv' reads 2 channels, and has weights for 4"
    with pytest.raises(PostconditionError, match=re.escape(said)):
        PruneChannels({GROUP: [2, 3]})(ir.from_proto(resnet((1, 1), (4, 8))))
