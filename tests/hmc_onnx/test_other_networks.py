"""What is not a ResNet is compressed where the rules allow, and never broken: the networks of the onnx package.

They are of full size, so few candidates are offered, and layers with very many inputs are left alone.
"""

from __future__ import annotations

import contextlib
import io
import re

import numpy as np
import onnx
import pytest
from exported import light, light_names
from rich.console import Console
from zoo import run

import hmc_onnx
from hmc_onnx.analysis.inspection import inspect
from hmc_onnx.analysis.model_inputs import signature
from hmc_onnx.execution.executor import _BACKENDS
from passes.decompose import DECOMPOSITIONS
from passes.graph.signature import same_signature

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


def test_the_table_has_every_network() -> None:
    assert sorted(TABLE) == light_names()


@pytest.mark.parametrize("name", TABLE)
def test_a_network_is_compressed_as_far_as_it_goes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_BACKENDS, "processes", contextlib.nullcontext)
    for constant in ("cells.SHARES", "candidates.RATIOS", "candidates.RATIOS_WHEN_PRUNED"):
        monkeypatch.setattr(f"hmc_onnx.{constant}", (0.5,))
    for method in set(DECOMPOSITIONS) - {"svd"}:
        monkeypatch.delitem(DECOMPOSITIONS, method)
    monkeypatch.setattr("hmc_onnx.run.BATCHES", (1,))  # at 64 one run takes longer than all the rest
    share, features, groups = TABLE[name]
    monkeypatch.setattr("hmc_onnx.analysis.subjects.MOST_FEATURES", features)
    original = light(name)
    ((image, (dtype, shape)),) = signature(original).items()
    images = np.random.default_rng(0).normal(size=(SETTINGS.samples, *shape[1:])).astype(dtype)
    result = hmc_onnx.compress(original, {image: images}, f"macs={share}", settings=SETTINGS)
    assert len(result.profile.groups) == groups
    assert 0 < result.report.b.macs <= share * result.report.a.macs
    onnx.checker.check_model(result.model, full_check=True)
    same_signature(original, result.model)
    assert result.report.kl < 1  # of another network it would be the logarithm of a thousand classes, and more
    (ours,), (theirs,) = (run(model, {image: images[:1]}) for model in (result.model, original))
    assert ours.shape == theirs.shape
    assert np.isfinite(ours).all()


@pytest.mark.parametrize("name", TABLE)
def test_a_network_is_inspected(name: str) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(inspect(light(name)))
    said = console.export_text()
    layers = sum(node.op_type in ("Conv", "Gemm") for node in light(name).graph.node)
    assert len(re.findall(r"│ (?:Conv|Gemm) +│", said)) == layers
    assert re.search(r"In all: [\d,]+ MACs an image", said)
