"""Small plans, profiles and comparisons written by hand, for the tests of the report."""

from __future__ import annotations

from hmc_onnx.records.changes import ChangedImage, Changes, ClassAccuracy
from hmc_onnx.records.comparison import Side, Timing, Unchanged, Verification, Visited
from hmc_onnx.records.goal import Target
from hmc_onnx.records.plan import GroupPlan, LayerPlan, Plan
from hmc_onnx.records.profile import GroupChoice, GroupProfile, LayerChoice, LayerProfile, Profile
from hmc_onnx.records.report import RunReport
from hmc_onnx.records.settings import Settings
from hmc_onnx.reporting.run_report import provenance, run_report
from passes.core.declined import Declined, Why

PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


def timing(batch: int, ratio: float) -> Timing:
    return Timing(batch=batch, a=10.0 * batch, b=10.0 * batch * ratio, ratio=ratio, uncertainty=0.01)


def comparison(**changed: object) -> Verification:
    """Labels, three classes, times at two batches, the quantiser alone and two visited networks."""
    own = {
        "a": Side(macs=1000, parameters=200, bytes=800, top1=0.91),
        "b": Side(macs=500, parameters=100, bytes=400, top1=0.9),
        "kl": 0.03,
        "agreement": 0.97,
        "difference": 1.0,
        "images": 100,
        "source": "100 images of 'a<b>&c'",
        "timings": [timing(1, 0.7), timing(8, 0.6)],
        "curve": [
            Visited(target=0.7, latency=0.69, drop=0.001, confirmed=0.002, uncertainty=0.003, chosen=False),
            Visited(target=0.6, latency=0.59, drop=0.009, confirmed=0.012, uncertainty=0.004, chosen=True),
        ],
        "unchanged": Unchanged(
            precision="int8", bytes=250, top1=0.905, agreement=0.98, timings=[timing(1, 0.9), timing(8, 0.8)]
        ),
        "changes": Changes(
            classes=[
                ClassAccuracy(label=0, images=50, before=0.9, after=0.92),
                ClassAccuracy(label=1, images=50, before=0.92, after=0.88),
            ],
            names={0: "cat <&>", 1: "dog"},
            changed=3,
            images=[
                ChangedImage(place=7, label=0, before=1, after=0, divergence=0.5, thumbnail=PIXEL),
                ChangedImage(place=9, label=1, before=1, after=0, divergence=0.4),
            ],
        ),
    }
    return Verification.model_validate(own | changed)


def profile_and_plan(count: int = 3, prefix: str = "layer") -> tuple[Profile, Plan]:
    """A chain of layers, each pair tied by a channel group of 8: the plan keeps, prunes and decomposes in turn."""
    names = [f"{prefix}{i}" for i in range(count)]
    groups = [
        GroupProfile(
            name=names[i],
            size=8,
            producers=[names[i]],
            consumers=[names[i + 1]],
            choices=[
                GroupChoice(keep=keep, removed=list(range(keep, 8)), sensitivity=0.01 * (8 - keep))
                for keep in (8, 6, 4)
            ],
        )
        for i in range(count - 1)
    ]
    layers = []
    for i, name in enumerate(names):
        whole = {"inputs": 0, "outputs": 0, "parameters": 50, "error": 0.0, "measured": True}
        choices = [LayerChoice(**whole, method="keep", rank=0, macs=100, sensitivity=0.0)]
        choices += [
            LayerChoice(**whole, method=method, rank=rank, macs=10 * rank, sensitivity=loss / rank)
            for method, loss in (("svd", 0.02), ("cp", 0.01))
            for rank in (6, 4, 2)
        ]
        layers.append(
            LayerProfile(
                name=name,
                input_group=names[i - 1] if i else None,
                output_group=name if i + 1 < count else None,
                macs=100,
                parameters=50,
                seconds=0.001,
                choices=choices,
            )
        )
    own = {"model": "m" * 64, "data": "d" * 64, "settings": Settings(batch=8), "macs": 100 * count, "parameters": 50}
    profile = Profile(**own, align=2, groups=groups, layers=layers, declined={})
    done = {}
    for i, name in enumerate(names):
        method, rank, macs = [("keep", 0, 100), ("keep", 0, 50), ("svd", 4, 40)][i % 3]
        bears = ("both", "prune", "lowrank")[i % 3]
        done[name] = LayerPlan(
            method=method, rank=rank, bears=bears, difference=0.1, macs=macs, parameters=25, seconds=0.0005,
            reason=f"because of {name}",
        )  # fmt: skip
    planned = {names[1]: GroupPlan(size=8, removed=[4, 5, 6, 7], sensitivity=0.04)} if count > 2 else {}
    said = Declined("y", Why.OUTPUT, "it is the model's output 'y'")
    declined = {"channels of fc": said, "channels of head": said}
    plan = Plan(
        **own, strategy="hmc", target=Target(latency=0.6), groups=planned, layers=done, declined=declined,
        sensitivity=0.1,
    )  # fmt: skip
    return profile, plan


def report(count: int = 3, prefix: str = "layer", **changed: object) -> RunReport:
    profile, plan = profile_and_plan(count, prefix)
    made = provenance("hmc-onnx compress 'a b.onnx'", "a b.onnx", "<out>.onnx")
    return run_report(comparison(**changed), plan, profile, (), made)
