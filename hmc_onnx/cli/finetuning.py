"""The command `finetune`, and what `compress --finetune` shares with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hmc_onnx.cli.console import progress_bar, show
from hmc_onnx.cli.groups import Config, Data, Images, Labels, OutputFile, Teacher
from hmc_onnx.cli.help import COMMANDS
from hmc_onnx.cli.options import Given, Group, command
from hmc_onnx.cli.reading import inputs_of
from hmc_onnx.finetune.options import FineTuning
from hmc_onnx.records.output import check_output
from hmc_onnx.records.work import Work

if TYPE_CHECKING:
    import onnx

    from hmc_onnx.finetune.result import FineTuned

__all__ = ["app", "check_training", "trained", "training_of"]

app = typer.Typer()


@command(
    app,
    "finetune",
    COMMANDS["finetune"],
    Teacher,
    OutputFile,
    Config,
    Data,
    Images,
    Labels,
    FineTuning,
    Group(Work, only=("work_dir",)),
)
def finetune(
    model: Annotated[
        Path,
        typer.Argument(metavar="COMPRESSED", help="The model to train, as `compress` wrote it.", show_default=False),
    ],
    given: Given,
) -> None:
    """Train a compressed model against the original."""
    from hmc_onnx.reporting.tables import epochs_table
    from passes.graph.files import load

    output, teacher = given.of(OutputFile).output, given.of(Teacher).teacher
    check_output(output, *inputs_of(given, model))
    folder = given.of(Work).work_dir
    tuned = trained(load(model), load(teacher), given, training_of(given), folder)
    if not tuned.first:
        return
    tuned.save(output)
    show(epochs_table(tuned.history), f"Written: {output}")
    if tuned.stopped is not None:
        raise tuned.stopped


def training_of(given: Given) -> FineTuning:
    """How to train; raises SettingsError."""
    # the command line's `labels` says whether they are used at all, and the record's how much they weigh
    return given.of(FineTuning, labels=None if given.of(Labels).labels else 0.0)


def check_training(original: onnx.ModelProto, given: Given) -> FineTuning:
    """How to train, after a look at whether it can be done; raises before any work as fine-tuning would."""
    from hmc_onnx.finetune import with_torch

    training = training_of(given)
    with_torch().check_trainable(original, given.need("data"), given.of(Images), training)
    return training


def trained(
    compressed: onnx.ModelProto, original: onnx.ModelProto, given: Given, options: FineTuning, folder: Path | None
) -> FineTuned:
    """A model after training on the data of a run.

    Args:
        compressed: the model.
        original: what it was made from.
        given: where the images are, and how they become the model's input.
        options: how to train.
        folder: where checkpoints are kept; None keeps none.
    """
    from hmc_onnx.finetune import finetune as train

    with progress_bar() as progress:
        return train(
            compressed,
            original,
            given.need("data"),
            preprocess=given.of(Images),
            options=options,
            work=Work(work_dir=folder, progress=progress),
        )
