"""Fine-tuning: an ONNX graph becomes a torch module, is trained against the original, and gets the new weights."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import onnx
import torch

from calib.data.calibration import check_finite
from calib.data.folder import ImageFolder
from calib.data.preprocess import Preprocess
from calib.data.readers import Selection, open_source
from calib.data.sources import ReadyTensors, Source
from hmc_onnx.analysis.model_inputs import check_kind, fit, is_float, preprocessing, signature
from hmc_onnx.comparison.judging import matched
from hmc_onnx.execution.checkpoint import Checkpoint
from hmc_onnx.finetune.batchnorm import Inserted, folded, has_batchnorm, reinserted, restated
from hmc_onnx.finetune.images import Batch, TrainingImages
from hmc_onnx.finetune.loss import Loss, are_probabilities, relative_error
from hmc_onnx.finetune.module import GraphModule, updated
from hmc_onnx.finetune.options import FineTuning
from hmc_onnx.finetune.processes import TrainingProcesses, processes
from hmc_onnx.finetune.result import FineTuned
from hmc_onnx.finetune.trainer import Trainer, TrainingError
from hmc_onnx.records.images import Images
from hmc_onnx.records.provenance import Provenance, with_provenance
from hmc_onnx.records.work import HERE, Work
from passes.core.errors import DataError, HmcWarning, ModelError, SettingsError
from passes.core.progress import silent
from passes.graph.external import brought_in
from passes.graph.files import load
from passes.graph.model import Model, digest
from passes.graph.outputs import Output
from passes.graph.protos import check, first_line
from passes.graph.signature import same_signature
from passes.residual import is_sum

__all__ = ["check_trainable", "finetune_models"]

# Held-out images: share of all images, and upper bound.
SHARE_HELD, MOST_HELD = 0.05, 2500
# Lower bound on held-out images, limited to half of all. On 20 images, a network that had lost 4 points of accuracy
# looked better than the one that training began with.
LEAST_HELD = 200
LEAST = 20  # lower bound on images to train on
# With fewer images, a network near the original is not likely to gain (docs/experiments.md).
FEW = 10_000
# A residual sum of both networks is a hint if its squared error is below this share of the original's variance.
CLOSE = 0.5
# A network is near the original if the mean error of its hints is below this.
NEAR = 0.05
FLOAT_FIRST = "fine-tune the float model, and quantise after, as compress does with `finetune` and `precision` int8"
# Images from which the statistics of batch normalisation are estimated.
CALIBRATION = 1024


def finetune_models(
    model: onnx.ModelProto | str | os.PathLike[str],
    teacher: onnx.ModelProto | str | os.PathLike[str],
    data: Any,
    preprocess: Preprocess | Images | None,
    options: FineTuning,
    work: Work = HERE,
) -> FineTuned:
    """The implementation of `hmc_onnx.finetune`, which checks first that torch is installed."""
    model, teacher = (
        check_kind(brought_in(m) if isinstance(m, onnx.ModelProto) else load(m), FLOAT_FIRST) for m in (model, teacher)
    )
    how = preprocess or preprocessing(None)
    same_signature(teacher, model)
    source, preprocess = _source(model, data, how)
    with processes(options.device) as here:
        if options.batch_size % here.count:
            raise SettingsError(
                f"`batch_size` {options.batch_size} cannot be shared by {here.count} processes: give a multiple of it"
            )
        images, held = _split(source, preprocess, options, here)
        batch = next(held.plain(min(len(held), options.batch_size)))
        _check_batches((model, teacher), batch)
        _check_labels(teacher, held, batch)
        errors = _hints(model, teacher, batch)
        options = options.settled(near=bool(errors) and sum(errors.values()) / len(errors) < NEAR)
        hints = list(errors) if options.hints else []
        asked = Model(teacher).compared
        found = {o.name: o.tensor for o in matched(asked, Model(model))}
        asked = [o for o in asked if o.name in found]
        answers, judged = [o.tensor for o in asked], [found[o.name] for o in asked]
        answering = GraphModule(teacher, [*answers, *hints])
        graph, inserted = _trained_graph(model, images, options)
        student = GraphModule(graph, [*judged, *hints])
        if not student.trained:
            raise ModelError("the model has no weights to train: none of its initializers is a layer's weight")
        loss = _loss(answering, batch, options, asked)
        identity = {
            "version": version("hmc-onnx"),
            "model": digest(model),
            "teacher": digest(teacher),
            "data": f"{source.digest()} {how}",
            "settings": options.model_dump_json(),
        }
        checkpoint = Checkpoint(work.work_dir, identity)
        trainer = Trainer(
            student, answering, images, held, loss, options, here, checkpoint, silent if here.rank else work.progress
        )
        stopped = None
        try:
            trainer.run()
        except TrainingError as e:
            stopped = e
    result = updated(model, folded(student.values(), inserted) if trainer.improved else {})
    check(result)
    recorded = Provenance.read(model)
    if recorded is not None and trainer.improved:
        trained = {"finetuned": version("hmc-onnx"), "teacher": digest(teacher)}
        result = with_provenance(result, recorded.model_copy(update=trained))
    return FineTuned(result, trainer.history, stopped, here.rank == 0)


def check_trainable(model: onnx.ModelProto, data: Any, preprocess: Preprocess | Images, options: FineTuning) -> None:
    """Check the model, the data and the device before any work; raises the errors that `finetune_models` would."""
    with processes(options.device) as here:
        _, held = _split(*_source(model, data, preprocess), options, here)
        _check_batches((model,), next(held.plain(2)))


def _source(model: onnx.ModelProto, data: Any, preprocess: Preprocess | Images) -> tuple[Source, Preprocess]:
    """The training images, and how they become the input: of a path, read when needed; or of Python objects."""
    options = preprocess if isinstance(preprocess, Images) else Images()
    how = preprocess.preprocess() if isinstance(preprocess, Images) else preprocess
    inputs = signature(model)
    if len(inputs) != 1:
        raise ModelError(f"the model has {len(inputs)} inputs, and fine-tuning feeds one")
    ((name, (dtype, shape)),) = inputs.items()
    if not is_float(dtype):
        raise ModelError(f"the model's input '{name}' is {dtype}: only models that are fed floats are fine-tuned")
    if isinstance(data, str | os.PathLike):
        selection = Selection(skip_unreadable=options.skip_unreadable)
        opened = open_source(
            data,
            input_name=name,
            input_shape=shape,
            preprocess=how,
            selection=selection,
            labelling=options.labelling(),
        )
        if isinstance(opened, ImageFolder) and options.skip_unreadable:
            opened = opened.only_readable(how)
        if isinstance(opened, ReadyTensors):
            check_finite(name, opened.tensors, str(data))
        return opened, how
    found = fit(model, data)
    return ReadyTensors(found.feeds[name], found.labels), how


def _split(
    source: Source, preprocess: Preprocess, options: FineTuning, here: TrainingProcesses
) -> tuple[TrainingImages, TrainingImages]:
    order = np.random.default_rng(options.seed).permutation(len(source))
    count = min(max(int(SHARE_HELD * len(source)), min(LEAST_HELD, (len(source) + 1) // 2)), MOST_HELD)
    if len(source) - count < LEAST:
        raise DataError(f"too few images to train on ({len(source)}): give {2 * LEAST} or more")
    if len(source) < FEW:
        warnings.warn(
            f"there are {len(source):,} images to train on: a network at half its MACs gained nothing from 4,096, and "
            "0.2 points from 50,000, so give more if there are more",
            HmcWarning,
            stacklevel=2,
        )
    augmentation = options.augmentation
    if augmentation == "auto":
        augmentation = "none" if isinstance(source, ReadyTensors) else "resized" if preprocess.resize else "crop"
    own = (preprocess, augmentation, options.mixup, options.seed, here.device, options.labels != 0)
    images, held = (TrainingImages(source, np.sort(part), *own) for part in (order[count:], order[:count]))
    return images, held


def _trained_graph(
    model: onnx.ModelProto, images: TrainingImages, options: FineTuning
) -> tuple[onnx.ModelProto, list[Inserted]]:
    if options.batchnorm == "none":
        return model, []
    # augmented and mixed as in training, because batches in training do not have the statistics of plain images
    found = (batch.images for batch in images.sample(CALIBRATION).batches(options.batch_size, 0))
    if not has_batchnorm(model):
        return reinserted(model, found)
    return (model if options.batchnorm == "frozen" else restated(model, found)), []


@torch.no_grad()
def _hints(model: onnx.ModelProto, teacher: onnx.ModelProto, batch: Batch) -> dict[str, float]:
    """The relative error of each hint by name: the residual sums of equal shape in both networks that are close."""
    sums = [[n.outputs[0].name for n in Model(proto).graph.nodes if is_sum(n)] for proto in (model, teacher)]
    names = [name for name in sums[0] if name in set(sums[1])]
    ours, theirs = (
        GraphModule(m, names).to(batch.images.device)(batch.images) if names else () for m in (model, teacher)
    )
    pairs = zip(names, ours, theirs, strict=True)
    errors = {name: float(relative_error(a, b)) for name, a, b in pairs if a.shape == b.shape}
    return {name: error for name, error in errors.items() if error < CLOSE}


def _loss(teacher: GraphModule, batch: Batch, options: FineTuning, judged: Sequence[Output]) -> Loss:
    assert options.labels is not None and options.hints is not None
    with torch.no_grad():
        scores = teacher.to(batch.images.device)(batch.images)[0]
    kind = judged[0].kind
    probabilities = kind == "probability" or are_probabilities(scores)
    classes = judged[0].classes and (kind != "probability" or scores[0].numel() == 1)
    return Loss(options.temperature, options.labels, probabilities, len(judged), options.hints, classes)


@torch.no_grad()
def _check_batches(models: Iterable[onnx.ModelProto], batch: Batch) -> None:
    """Check that the models run on two images: a batch size may be hidden in the graph. Raises ModelError."""
    images = batch.images[:2]
    for model in models:
        module = GraphModule(model, Model(model).judged).to(images.device)
        try:
            shape = tuple(module(images)[0].shape)
            said = f"its scores have shape {shape}"
        except (RuntimeError, ValueError, IndexError) as e:
            shape, said = (), first_line(e)
        if shape[:1] != (len(images),):
            raise ModelError(
                f"the model cannot be run on {len(images)} images at once ({said}): "
                "export it with an open batch size, or set `size`, `layout` or `preset` to match"
            )


def _check_labels(model: onnx.ModelProto, images: TrainingImages, batch: Batch) -> None:
    labels = images.source.labels
    if batch.labels is None or labels is None:
        return
    first = Model(model).compared[0]
    if not first.classes:
        return
    with torch.no_grad():
        columns = GraphModule(model, [first.tensor]).to(batch.images.device)(batch.images)[0][0].numel()
    classes = max(columns, 2)
    if not 0 <= labels.min() <= labels.max() < classes:
        raise DataError(
            f"labels go from {labels.min()} to {labels.max()} and the model has {classes} classes: "
            "give labels that count its classes from 0, or leave them out (`labels=None`)"
        )
