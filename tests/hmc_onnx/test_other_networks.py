"""What is not a ResNet is compressed where the rules allow, and never broken: the networks of the onnx package.

They are of full size, so few candidates are offered, and layers with very many inputs are left alone; but for one the
whole pipeline is part of the long run.
"""

from __future__ import annotations

import io
import re

import numpy as np
import onnx
import pytest
from exported import light, light_names
from rewritten import check_rewritten, check_sound, images_of
from rich.console import Console
from zoo import run

import hmc_onnx
from hmc_onnx.analysis.inspection import inspect

SETTINGS = hmc_onnx.Settings(samples=2, kl_samples=2, positions=16, align=4, chunk=2, provider="cpu")
# The share of the MACs to keep; the inputs of a layer above which it is left alone; and of the channel groups how many
# can be pruned: groups that a layer reads side by side count as one, and grouped Convs with shuffled channels have
# no whole group to spare.
TABLE = {
    "light_bvlc_alexnet": (0.85, 2500, 0),
    "light_densenet121": (0.5, 1200, 62),
    "light_inception_v1": (0.5, 2500, 28),
    "light_inception_v2": (0.5, 2500, 41),
    "light_resnet50": (0.6, 2500, 31),
    "light_shufflenet": (0.96, 2500, 1),
    "light_squeezenet": (0.5, 2500, 17),
    "light_vgg19": (0.8, 1200, 4),
    "light_zfnet512": (0.8, 2500, 0),
}
QUICKEST = "light_squeezenet"
HEAVY = {"light_bvlc_alexnet", "light_vgg19", "light_zfnet512"}  # hundreds of megabytes, most of them in one layer
# Their Concats are those of Inception v1; and ResNets are asked the same in test_resnets.
ALIKE = {"light_densenet121", "light_inception_v2", "light_resnet50"}


def without_softmax(model: onnx.ModelProto) -> onnx.ModelProto:
    """A network that ends in its scores; with weights by chance one class has all of the probability, for any image."""
    for node in model.graph.node:
        if node.op_type == "Softmax":
            node.op_type = "Identity"
            del node.attribute[:]
    return model


def test_the_table_has_every_network() -> None:
    assert sorted(TABLE) == light_names()


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.long) if n in HEAVY | ALIKE else n for n in TABLE])
def test_a_network_is_inspected_and_rewritten_without_a_change_to_what_it_computes(name: str) -> None:
    original = without_softmax(light(name))
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(inspect(original))
    said = console.export_text()
    layers = sum(node.op_type in ("Conv", "Gemm") for node in original.graph.node)
    assert len(re.findall(r"│ (?:Conv|Gemm) +│", said)) == layers
    assert re.search(r"In all: [\d,]+ MACs an image", said)

    groups = TABLE[name][2]
    compressible, share = check_rewritten(original, images_of(original, 1))
    assert len(compressible.groups) >= groups  # in the pipeline some layers are left alone
    assert (share < 1) == any(group.size > 1 for group in compressible.groups.values())


@pytest.mark.usefixtures("few_candidates")
@pytest.mark.parametrize("name", [n if n == QUICKEST else pytest.param(n, marks=pytest.mark.long) for n in TABLE])
def test_a_network_is_compressed_as_far_as_it_goes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hmc_onnx.run.BATCHES", (1,))  # at 64 one run takes longer than all the rest
    share, features, groups = TABLE[name]
    monkeypatch.setattr("hmc_onnx.analysis.find_compressible.MOST_FEATURES", features)
    original = without_softmax(light(name))
    feeds = images_of(original, SETTINGS.samples)
    result = hmc_onnx.compress(original, feeds, f"macs={share}", settings=SETTINGS)
    assert len(result.profile.groups) == groups
    assert 0 < result.report.b.macs <= share * result.report.a.macs
    check_sound(original, result.model)
    assert result.report.kl < 1  # of another network it would be the logarithm of a thousand classes, and more
    first = {key: values[:1] for key, values in feeds.items()}
    (ours,), (theirs,) = (run(model, first) for model in (result.model, original))
    assert ours.shape == theirs.shape
    assert np.isfinite(ours).all()
