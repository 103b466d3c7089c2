"""What two models compared side by side have come to. Typed, versioned, JSON."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from calib.measure.latency import UNSURE
from hmc_onnx.records.changes import Changes
from passes.core.records import Explained, Frozen

__all__ = [
    "BUSY",
    "BatchComparison",
    "Interval",
    "Intervals",
    "OutputComparison",
    "Side",
    "Timing",
    "Unchanged",
    "Verification",
    "Visited",
]

BUSY = "The machine was busy while these were timed: a share of the time with more than ± 0.1 is not known."
FITTED = (
    "The weights were fitted to these images, so nothing is known of new ones: give more images, of which a fifth is "
    "then held back, or others to compare on."
)
HELD_BACK = (
    "Nothing was fitted to these images. If the model was trained on them, new ones fare somewhat worse: compare on "
    "others, too."
)


class Side(Frozen):
    """One model: MACs of an image, parameters, bytes of the file, and top-1 where there are labels."""

    macs: int
    parameters: int
    bytes: int
    top1: float | None


class Timing(Frozen):
    """Milliseconds of a run at a batch size, the two models taking turns, and the ratio b / a.

    See `calib.measure.latency`. `uncertainty` is the half-width of a 95 % interval of the ratio.
    """

    batch: int
    a: float
    b: float
    ratio: float
    uncertainty: float

    @property
    def sure(self) -> bool:
        """Whether the ratio is known to a tenth of the original's time; it is not where the machine was busy."""
        return self.uncertainty <= UNSURE


class Unchanged(Frozen):
    """The original in the precision that is served, with nothing else done to it: what a quantiser alone gives.

    Attributes:
        precision: see `Settings.precision`.
        bytes: of the file.
        top1: where there are labels.
        agreement: share of images for which it chooses the original's class; None where none is chosen.
        timings: of the original in float against it, as `b`.
    """

    precision: str
    bytes: int
    top1: float | None
    agreement: float | None
    timings: list[Timing]


class Visited(Frozen):
    """A network that was tried in a search for the fastest within a bound on the loss.

    Attributes:
        target: share of the original's time that was asked for.
        latency: share that the network takes.
        drop: loss of top-1 (without labels: share of images whose class changes) on the images to search with, and
        confirmed: on others.
        uncertainty: half-width of the 95 % interval of `confirmed`.
        chosen: whether it is the one that was taken.
    """

    target: float
    latency: float
    drop: float
    confirmed: float
    uncertainty: float
    chosen: bool


class OutputComparison(Frozen):
    """One output of two models: what it is (`passes.graph.outputs`), and how far the two are apart.

    Attributes:
        name: of the output.
        kind: one of `passes.graph.outputs.KINDS`, and
        what: the same in words.
        judged_by: by what the two are compared, in words.
        kl: nats; half the squared error as a share of the variance where no class is chosen. None: not compared.
        agreement: share of images (of places, of a map of classes) for which both choose the same class.
        cosine: of embeddings, the mean over images.
        error: of what chooses no class, the root of the mean squared error, in standard deviations of the original.
    """

    name: str
    kind: str
    what: str
    judged_by: str
    kl: float | None = None
    agreement: float | None = None
    cosine: float | None = None
    error: float | None = None


class BatchComparison(Frozen):
    """The divergence, in nats, of all outputs of two models at another batch size, over the images of one run.

    `same` is that of the same images in runs of the usual size; None in reports of earlier versions.
    """

    batch: int
    kl: float
    same: float | None = None


class Interval(Frozen):
    """A 95 % interval."""

    low: float
    high: float


class Intervals(Frozen):
    """Between which values a few numbers lie for all images of the kind, as far as the images that were used tell.

    Attributes:
        kl: of the divergence, in nats.
        agreement: of the share of images for which the class stays; None where none is chosen.
        top1: of the accuracy of model b, and
        change: of the change of accuracy from model a to b; None where there are no labels.
    """

    kl: Interval
    agreement: Interval | None = None
    top1: Interval | None = None
    change: Interval | None = None


class Verification(Explained):
    """Model b against model a over some images.

    Attributes:
        kl: mean over images of the divergence of b's outputs from a's, in nats: see `calib.measure.divergence`.
        agreement: share of images for which both choose the same class; None where none is chosen.
        cosine: of the first embedding, the mean over images; None where there is none.
        error: of the first regression, map or boxes, the root of the mean squared error, in standard deviations of the
            original; None where there is none.
        difference: largest absolute difference of an output.
        images: how many, and `source` which.
        threads: intra-op threads of onnxruntime with which both were run; None in reports of earlier versions.
        original: digest (`passes.graph.model.digest`) of model a; empty in reports of earlier versions.
        max_drop: the bound on the loss, where the fastest network within one was searched for, and
        curve: what was visited.
        outputs: what each output is, and how far the two are apart in it.
        batches: the divergence at other batch sizes; empty where the model declares one.
        unchanged: the original in another precision, where that is served.
        new_images: whether nothing was fitted to the images; None where that is not known.
        held_back: whether they were held back from the images to calibrate with.
        intervals: how much the images tell of others of their kind; None in reports of earlier versions.
        changes: accuracy class by class, and the images that are answered otherwise; None in reports of earlier
            versions.
        doubts: what speaks against serving model b, a sentence each.
    """

    version: Literal[1] = 1
    original: str = ""
    a: Side
    b: Side
    kl: float
    agreement: float | None
    cosine: float | None = None
    error: float | None = None
    difference: float
    images: int
    source: str
    timings: list[Timing]
    threads: int | None = None
    max_drop: float | None = Field(default=None, exclude_if=lambda value: value is None)
    curve: list[Visited] = Field(default_factory=list)
    outputs: list[OutputComparison] = Field(default_factory=list)
    batches: list[BatchComparison] = Field(default_factory=list)
    unchanged: Unchanged | None = None
    new_images: bool | None = None
    held_back: bool = Field(default=False, exclude_if=lambda value: not value)
    intervals: Intervals | None = None
    changes: Changes | None = Field(default=None, exclude_if=lambda value: value is None)
    doubts: list[str] = Field(default_factory=list, exclude_if=lambda value: not value)

    @property
    def caveat(self) -> str:
        """What the images do not tell, in a sentence; empty where there is nothing to say."""
        if self.new_images is False:
            return FITTED
        return HELD_BACK if self.held_back else ""

    def explain(self) -> str:
        """Accuracy, size and time before and after: a line each."""
        a, b = self.a, self.b
        lines = [f"on {self.images:,} images: divergence {self.kl:.4f} nats"]
        if a.top1 is not None and b.top1 is not None:
            lines.append(f"top-1: {a.top1:.2%} before, {b.top1:.2%} after")
        elif self.agreement is not None:
            lines.append(f"same class chosen: {self.agreement:.2%}")
        for what in ("macs", "parameters", "bytes"):
            before, after = getattr(a, what), getattr(b, what)
            name = what.replace("macs", "MACs")
            lines.append(f"{name}: {before:,} before, {after:,} after ({after / max(before, 1):.3f})")
        for t in self.timings:
            lines.append(
                f"batch {t.batch}: {t.a:.2f} ms before, {t.b:.2f} ms after ({t.ratio:.3f} ± {t.uncertainty:.3f})"
            )
        busy, caveat = [BUSY] if self.busy else [], [self.caveat] if self.caveat else []
        return "\n".join([*lines, *self.doubts, *busy, *caveat])

    @property
    def busy(self) -> bool:
        """Whether other work disturbed the timing so much that some share of the time is not known."""
        return not all(t.sure for t in (*self.timings, *(self.unchanged.timings if self.unchanged else ())))

    @property
    def shown_intervals(self) -> Intervals | None:
        """The intervals, unless the network was fitted to the images: they would be of other fitted images."""
        return None if self.new_images is False else self.intervals
