"""The command `finetune`, and what `compress --finetune` shares with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hmc_onnx.cli.commands import app
from hmc_onnx.cli.console import progress_bar, show
from hmc_onnx.cli.options import Choices, Run, merged
from hmc_onnx.cli.reading import finetuning_of, inputs_of, options_of, preprocess_of

if TYPE_CHECKING:
    import onnx

    from hmc_onnx.finetune import FineTuning
    from hmc_onnx.finetune.tuning import FineTuned

__all__ = ["trained"]


@app.command()
def finetune(
    model: Annotated[Path, typer.Argument(metavar="COMPRESSED", help="The model to train, as `compress` wrote it.")],
    teacher: Annotated[Path, typer.Option(help="The original, whose outputs are learnt.")],
    output: Choices.Output,
    data: Choices.Data = None,
    epochs: Choices.Epochs = None,
    minutes: Choices.Minutes = None,
    preset: Choices.Preset = None,
    mean: Choices.Mean = None,
    std: Choices.Std = None,
    size: Choices.Size = None,
    layout: Choices.Layout = None,
    labels: Choices.Labels = None,
    device: Choices.Device = None,
    precision: Choices.Precision = None,
    batchnorm: Choices.Batchnorm = None,
    optimizer: Choices.Optimizer = None,
    rate: Choices.Rate = None,
    batch_size: Choices.BatchSize = None,
    augmentation: Choices.Augmentation = None,
    seed: Choices.Seed = None,
    work_dir: Choices.WorkDir = None,
    config: Choices.Config = None,
) -> None:
    """Train a compressed model against the original, in torch; only its weights' values change.

    Under `torchrun --nproc-per-node N -m hmc_onnx finetune …` it trains in N processes.
    """
    run = merged(config, **options_of(locals()))
    from hmc_onnx.analysis.model_inputs import load_supported
    from hmc_onnx.records.output import check_output
    from hmc_onnx.reporting.tables import epochs_table

    check_output(output, teacher, *inputs_of(model, config, run))
    folder = None if run.work_dir is None else Path(run.work_dir)
    tuned = trained(load_supported(model), load_supported(teacher), run, finetuning_of(run), folder)
    if not tuned.first:
        return
    tuned.save(output)
    show(epochs_table(tuned.history), f"Written: {output}")
    if tuned.stopped is not None:
        raise tuned.stopped


def trained(
    compressed: onnx.ModelProto, original: onnx.ModelProto, run: Run, options: FineTuning, folder: Path | None
) -> FineTuned:
    """A model after training on the data of a run."""
    from hmc_onnx.finetune import finetune as train
    from hmc_onnx.records.work import Work

    with progress_bar() as progress:
        return train(
            compressed,
            original,
            Path(run.need("data")),
            preprocess=preprocess_of(run),
            options=options,
            work=Work(work_dir=folder, progress=progress),
        )
