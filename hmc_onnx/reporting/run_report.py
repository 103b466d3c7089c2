"""Makes the report of a run from its plan, profile and comparison."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType

from calib.measure.latency_table import this_machine
from calib.runtime.sessions import CPU, Runtime
from hmc_onnx.finetune.options import Epoch
from hmc_onnx.planning.hmc_groups import sensitivities
from hmc_onnx.records.comparison import Verification
from hmc_onnx.records.plan import LayerPlan, Plan
from hmc_onnx.records.profile import GroupProfile, LayerProfile, Profile
from hmc_onnx.records.report import (
    PRUNING,
    CurvePoint,
    LayerReport,
    LeftAlone,
    RunProvenance,
    RunReport,
    SensitivityCurve,
    TrainingEpoch,
)
from passes.core.declined import Declined, Why

__all__ = ["left_alone", "provenance", "run_report"]

PACKAGES = ("hmc-onnx", "onnxruntime", "onnxruntime-gpu", "onnx", "numpy", "torch")
RULES = "Export with operators of convolutional networks that docs/operators.md lists, in place of this one."
# What the owner of the model can do, by the kind of the reason.
ADVICE = {
    Why.OUTPUT: "Nothing to do: what reads the output needs all of its columns.",
    Why.NESTED: "Export the model without control flow: a fixed input size often removes it.",
    Why.UNKNOWN_SIZE: "Export with a fixed input height and width, so that shapes are known and not computed.",
    Why.COMPUTED_WEIGHTS: "Export with constant weights: fold weight normalisation and the like before the export.",
    Why.GROUPED: "Nothing to do: it costs little for its size, and only whole groups of it can be pruned.",
    Why.CUSTOM_DOMAIN: RULES,
    Why.NO_RULE: RULES,
    Why.UNREAD: "Nothing to do: no layer follows that could be made smaller by it.",
    Why.TIED: "It is tied to the layer that is named: what helps there helps here.",
    Why.NOT_FINITE: "Check the trained weights: this layer holds values that are not numbers.",
    Why.ELEMENT_TYPE: "Give the model in float32 or float16; a quantised model cannot be compressed.",
    Why.TOO_LARGE: "Nothing to do: what would have to be measured of it does not fit into memory.",
    Why.FORM: "Nothing to do, unless the exporter can write it in a simpler form.",
    Why.SHARED: "Export with a weight of its own for each layer that shares this one, if it may grow.",
    Why.CHOSEN: "Nothing to do: the options of the run leave it alone.",
}
NO_ADVICE = "Its channels are tied to what needs all of them; docs/operators.md says what is followed of each operator."


def run_report(
    checked: Verification,
    plan: Plan | None = None,
    profile: Profile | None = None,
    epochs: Sequence[Epoch] = (),
    made_by: RunProvenance | None = None,
    seconds: Mapping[str, tuple[float, float]] = MappingProxyType({}),
) -> RunReport:
    """The report of a run.

    Args:
        checked: the comparison.
        plan: what was done; None where only two models were compared.
        profile: what the plan was made from; None where nothing had to be measured.
        epochs: of fine-tuning.
        made_by: how to repeat the run.
        seconds: of layers before and after, by name, where the plan does not say them.
    """
    fields = {name: getattr(checked, name) for name in Verification.model_fields}
    return RunReport(
        **fields,
        plan=plan,
        layers=[] if plan is None or profile is None else _layers(plan, profile, seconds),
        left_alone=[] if plan is None else left_alone(plan.declined),
        epochs=[_epoch(epoch) for epoch in epochs],
        provenance=made_by,
    )


def provenance(command: str = "", original: str = "", compressed: str = "", runtime: Runtime = CPU) -> RunProvenance:
    """How a run on this machine can be repeated; arguments are as in `RunProvenance`."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return RunProvenance(
        command=command,
        original=original,
        compressed=compressed,
        machine=str(this_machine(runtime)),
        versions=versions | {"Python": platform.python_version()},
    )


def _epoch(epoch: Epoch) -> TrainingEpoch:
    fields = epoch.model_dump()
    return TrainingEpoch(**fields | {"loss": None if math.isnan(epoch.loss) else epoch.loss})


def left_alone(declined: Mapping[str, Declined]) -> list[LeftAlone]:
    """What a plan left alone, by reason, with what the owner of the model can do."""
    names: dict[tuple[str, Why], list[str]] = {}
    for name, own in declined.items():
        names.setdefault((own.reason, own.code), []).append(name)
    return [
        LeftAlone(reason=reason, advice=ADVICE.get(code, NO_ADVICE), names=own) for (reason, code), own in names.items()
    ]


def _layers(plan: Plan, profile: Profile, seconds: Mapping[str, tuple[float, float]]) -> list[LayerReport]:
    groups = {g.name: g for g in profile.groups}
    kept = {name: g.size - len(g.removed) for name, g in plan.groups.items()}
    found = sensitivities(profile)
    return [
        _layer(layer, plan.layers[layer.name], groups, kept, found[layer.name], _milliseconds(layer, plan, seconds))
        for layer in profile.layers
        if layer.name in plan.layers
    ]


def _layer(
    layer: LayerProfile,
    done: LayerPlan,
    groups: dict[str, GroupProfile],
    kept: dict[str, int],
    sensitivity: tuple[float | None, float | None],
    milliseconds: tuple[float, float] | None,
) -> LayerReport:
    sizes = [
        None if name is None or name not in groups else (groups[name].size, kept.get(name, groups[name].size))
        for name in (layer.input_group, layer.output_group)
    ]
    return LayerReport(
        name=layer.name,
        macs=(layer.macs, done.macs),
        parameters=(layer.parameters, done.parameters),
        milliseconds=milliseconds,
        inputs=sizes[0],
        outputs=sizes[1],
        method=done.method,
        rank=done.rank,
        in_float=done.in_float,
        bears=done.bears,
        difference=done.difference,
        pruning=sensitivity[0],
        lowrank=sensitivity[1],
        reason=done.reason,
        curves=[*_pruning(layer, groups, kept), *_decompositions(layer, done)],
    )


def _milliseconds(
    layer: LayerProfile, plan: Plan, seconds: Mapping[str, tuple[float, float]]
) -> tuple[float, float] | None:
    """Before and after: as the plan has them, else as they were timed for the report."""
    before, after = layer.seconds, plan.layers[layer.name].seconds
    if before is None or after is None:
        before, after = seconds.get(layer.name, (None, None))
    return None if before is None or after is None else (1e3 * before, 1e3 * after)


def _pruning(layer: LayerProfile, groups: dict[str, GroupProfile], kept: dict[str, int]) -> list[SensitivityCurve]:
    """The curves of the groups that a layer reads and writes; one that it both reads and writes is shown once."""
    found: list[SensitivityCurve] = []
    for kind, name in zip(PRUNING, (layer.input_group, layer.output_group), strict=True):
        if name not in groups or name in [curve.group for curve in found]:
            continue
        group = groups[name]
        points = [
            CurvePoint(
                share=c.keep / group.size,
                size=c.keep,
                sensitivity=c.sensitivity,
                chosen=c.keep == kept.get(name, group.size),
            )
            for c in sorted(group.choices, key=lambda c: c.keep)
        ]
        if len(points) > 1:
            found.append(SensitivityCurve(kind=kind, group=name, points=points))
    return found


def _decompositions(layer: LayerProfile, done: LayerPlan) -> list[SensitivityCurve]:
    """The curve of each decomposition of the layer with all of its channels.

    A decomposition that was chosen together with pruning is not among these candidates: it is added to its curve.
    """
    points: dict[str, list[CurvePoint]] = {}
    for c in layer.choices:
        if not c.rank or (c.inputs, c.outputs) != (0, 0):
            continue
        share = c.macs / max(layer.macs, 1)
        chosen = (c.method, c.rank, c.macs) == (done.method, done.rank, done.macs)
        point = CurvePoint(share=share, size=c.rank, sensitivity=c.sensitivity, chosen=chosen)
        points.setdefault(c.method, []).append(point)
    if done.rank and not any(p.chosen for p in points.get(done.method, [])):
        share = done.macs / max(layer.macs, 1)
        point = CurvePoint(share=share, size=done.rank, sensitivity=done.sensitivity, chosen=True)
        points.setdefault(done.method, []).append(point)
    return [
        SensitivityCurve(kind=method, points=sorted(own, key=lambda p: (p.share, p.size)))
        for method, own in points.items()
    ]
