"""The zoo: every ResNet as every exporter writes it.

The exports are torch's own (tests/data/exports); tests/forms.py writes them as tf2onnx and Paddle would. Of each the
graph is rewritten as far as it can be: its normal form is the same function, all channel groups lose channels that no
layer looks at, and layers become chains of full rank, neither of which changes what it computes. The whole
pipeline halves each kind of network once, and each exporter and form. Where a network differs from a smaller one by the
number or the width of its blocks, or puts together what two others have, it is halved in the long run only, and
rewritten as one exporter writes it; the long run rewrites and halves all. Few candidates are offered, as the table is
of graphs: the choice among many is tested elsewhere.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from exported import exported, names
from forms import FORMS
from rewritten import check_rewritten, check_sound, images_of
from zoo import assert_same, run

import hmc_onnx
from calib.data.calibration import CalibrationData
from hmc_onnx.analysis.model_inputs import signature
from hmc_onnx.execution.context import Context
from hmc_onnx.planning.repaired_branches import without_branches
from hmc_onnx.profiling.possible_profile import possible_profile
from hmc_onnx.rewriting.applying import apply

SETTINGS = hmc_onnx.Settings(samples=16, kl_samples=4, positions=8, align=2, chunk=16, provider="cpu", threads=1)


@dataclass(frozen=True)
class Row:
    """A topology: its layers, its channel groups, and how many layers write into the largest of them.

    That one is a residual stream; with shortcuts of option A, which pad it with zeros, the stages share one.
    """

    layers: int
    groups: int
    writers: int


TABLE = {
    "resnet18": Row(21, 12, 3),
    "resnet34": Row(37, 20, 7),
    "resnet50": Row(54, 37, 7),
    "resnet50_v1": Row(54, 37, 7),
    "resnet101": Row(105, 71, 24),
    "resnet152": Row(156, 105, 37),
    "wide_resnet50_2": Row(54, 37, 7),
    "resnext50": Row(54, 21, 7),
    "preresnet18": Row(21, 12, 3),
    "preresnet50": Row(54, 37, 7),
    "seresnet18": Row(37, 20, 5),
    "seresnet50": Row(86, 53, 13),
    "resnet20a": Row(20, 10, 10),
    "resnet32a": Row(32, 16, 16),
    "resnet44a": Row(44, 22, 22),
    "resnet56a": Row(56, 28, 28),
    "resnet110a": Row(110, 55, 55),
    "resnet20b": Row(22, 12, 4),
    "resnet32b": Row(34, 18, 6),
    "resnet44b": Row(46, 24, 8),
    "resnet56b": Row(58, 30, 10),
    "resnet110b": Row(112, 57, 19),
    "resnet20c": Row(29, 19, 2),
    "resnet32c": Row(47, 31, 2),
    "resnet44c": Row(65, 43, 2),
    "resnet56c": Row(83, 55, 2),
    "resnet110c": Row(164, 109, 2),
}
EXPORTERS = ("torchscript-9", "torchscript-13", "torchscript-20", "dynamo-18", "dynamo-23")
# One of each kind: blocks of two Convs and of three, before and after the activation, in groups, with gates,
# and the three shortcuts of the small ones.
KINDS = {
    "resnet18", "resnet50", "resnet50_v1", "resnext50", "preresnet18", "seresnet18", "resnet20a", "resnet20b",
    "resnet20c",
}  # fmt: skip
# BatchNormalization is folded by the exporters, but for these
UNFOLDED = {f"{topology}-torchscript-17-bn" for topology in ("resnet20a", "resnet50", "preresnet18", "seresnet50")}
SKIPPED = {
    f"resnet{depth}a-torchscript-9": "torch refuses slices with a step before opset 10"
    for depth in (20, 32, 44, 56, 110)
}


def test_the_table_has_every_export_but_those_that_are_skipped() -> None:
    exports = {f"{topology}-{exporter}" for topology in TABLE for exporter in EXPORTERS}
    assert set(names()) == (exports | UNFOLDED) - set(SKIPPED)
    assert set(SKIPPED) < exports


def sources() -> list[str]:
    """The exports, and those that are written in another form, as topology-form."""
    return [*names(), *(f"{topology}-{form}" for topology in TABLE for form in FORMS)]


def built(name: str) -> onnx.ModelProto:
    topology, kind = name.split("-", 1)
    if kind not in FORMS:
        return exported(name)
    unfolded = f"{topology}-torchscript-17-bn"
    return FORMS[kind](exported(unfolded if unfolded in UNFOLDED else f"{topology}-torchscript-13"))


def covering() -> list[str]:
    """Each kind of network once, by the exporters and forms in turn."""
    kinds, found = itertools.cycle((*EXPORTERS, *FORMS)), []
    for topology in (name for name in TABLE if name in KINDS):
        kind = next(kinds)
        found.append(f"{topology}-{kind if f'{topology}-{kind}' not in SKIPPED else next(kinds)}")
    return found


def _marked(name: str) -> object:
    topology, kind = name.split("-", 1)
    long = topology not in KINDS and kind != "torchscript-13"
    return pytest.param(name, marks=pytest.mark.long) if long else name


@pytest.mark.parametrize("name", [_marked(name) for name in sources()])
def test_a_graph_is_rewritten_without_a_change_to_what_it_computes(name: str) -> None:
    original, row = built(name), TABLE[name.split("-")[0]]
    compressible, share = check_rewritten(original, images_of(original, 2))
    assert len(compressible.layers) == row.layers
    assert len(compressible.groups) == row.groups
    assert max(len(group.members("produces")) for group in compressible.groups.values()) == row.writers
    assert len(compressible.declined) == 1  # the classes, which are the model's output
    assert share < 0.75


@pytest.mark.parametrize("name", covering())
def test_each_branch_alone_can_be_removed(name: str) -> None:
    """By the plan that its sensitivity is measured with; then the network is the original without its last layer."""
    original = built(name)
    feeds = images_of(original, 2)
    settings = SETTINGS.model_copy(update={"branches": True})
    context = Context(original, CalibrationData(feeds, None, "noise"), settings)
    possible, compressible = possible_profile(context, settings.align or 1), context.compressible
    ends = {s.input_group: n for n, s in compressible.layers.items() if s.ends_branch}
    assert bool(ends) != name.startswith("seresnet")  # a gate lies between the last layer and the sum
    for group in possible.groups:
        if group.name in ends:
            found = apply(context, without_branches(context, possible, [group]), most=0)
            silent = context.normal.copy()
            (node,) = (n for n in silent.graph.nodes if n.name == ends[group.name])
            for tensor in node.inputs[1:]:
                tensor.values = np.zeros_like(tensor.values)
            assert_same(run(found, feeds), run(silent.finished(), feeds))


# The whole pipeline


def test_the_whole_pipeline_meets_each_kind_exporter_and_form() -> None:
    covered = [name.split("-", 1) for name in covering()]
    assert {topology for topology, _ in covered} == KINDS
    assert {kind for _, kind in covered} == {*EXPORTERS, *FORMS}
    assert set(covering()) <= set(sources())


def check_halved(name: str) -> None:
    original, row = built(name), TABLE[name.split("-")[0]]
    feeds = images_of(original, SETTINGS.samples)
    result = hmc_onnx.compress(original, feeds, "macs=0.5", settings=SETTINGS)
    groups = result.profile.groups
    assert len(result.profile.layers) == row.layers
    assert len(groups) == row.groups
    assert all(len(group.choices) > 1 for group in groups if group.size > SETTINGS.align)
    assert len(result.plan.declined) == 1  # the classes, which are the model's output
    assert 0 < result.report.b.macs <= result.report.a.macs / 2

    check_sound(original, result.model)
    ours, theirs = (run(model, feeds)[0] for model in (result.model, original))
    assert ours.shape == theirs.shape
    (one,) = run(result.model, {key: values[:1] for key, values in feeds.items()})
    np.testing.assert_allclose(one, ours[:1], rtol=0, atol=1e-3 * np.abs(ours).max())
    common = theirs.mean(0)  # what tells one image from another is left
    assert np.corrcoef((ours - common).ravel(), (theirs - common).ravel())[0, 1] > 0.9


@pytest.mark.usefixtures("few_candidates")
@pytest.mark.parametrize("name", covering())
def test_a_network_is_halved(name: str) -> None:
    check_halved(name)


@pytest.mark.long
@pytest.mark.usefixtures("few_candidates")
@pytest.mark.parametrize("name", sorted(set(sources()) - set(covering())))
def test_all_others_are_halved(name: str) -> None:
    check_halved(name)


@pytest.mark.usefixtures("few_candidates")
@pytest.mark.parametrize(
    ("name", "form"), list(zip(("preresnet18-torchscript-17-bn", "resnet18-torchscript-13"), FORMS, strict=True))
)
def test_the_form_makes_no_difference_to_what_comes_out(form: str, name: str) -> None:
    source = exported(name)
    images = np.random.default_rng(0).normal(size=(64, 3, 64, 64)).astype(np.float32)
    settings = SETTINGS.model_copy(update={"samples": 64})
    outputs = []
    for model, turned in ((source, images), (FORMS[form](source), images.transpose(0, 2, 3, 1))):
        ((image, (_, shape)),) = signature(model).items()
        feeds = {image: np.ascontiguousarray(turned) if shape[-1] == 3 else images}
        result = hmc_onnx.compress(
            model, feeds, hmc_onnx.Goal(target=hmc_onnx.Target(macs=0.5), strategy="prune"), settings=settings
        )
        outputs.append(run(result.model, feeds)[0])
    common = outputs[0].mean(0)
    assert np.corrcoef((outputs[0] - common).ravel(), (outputs[1] - common).ravel())[0, 1] > 0.95
