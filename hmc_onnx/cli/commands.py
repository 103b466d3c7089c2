"""The commands. Everything heavy is imported inside them, so that `--help` is instant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from hmc_onnx.cli.console import progress_bar, show
from hmc_onnx.cli.options import Choices, merged
from hmc_onnx.cli.reading import (
    calibration_data,
    comparison_data,
    finetuning_of,
    goal_of,
    images_of,
    inputs_of,
    labelled,
    opened,
    options_of,
    preprocess_of,
    read_images,
    settings_of,
    strategy_of,
    supported,
    work_of,
)

__all__ = ["app"]

app = typer.Typer(
    name="hmc-onnx",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Make a trained ONNX ResNet smaller and faster: prune and decompose each layer as it bears it best.",
)


@app.command()
def compress(
    model: Choices.Model,
    output: Choices.Output,
    data: Choices.Data = None,
    target: Choices.Target = None,
    max_drop: Choices.MaxDrop = None,
    strategy: Choices.Strategy = None,
    preset: Choices.Preset = None,
    mean: Choices.Mean = None,
    std: Choices.Std = None,
    size: Choices.Size = None,
    layout: Choices.Layout = None,
    samples: Choices.Samples = None,
    seed: Choices.Seed = None,
    align: Choices.Align = None,
    provider: Choices.Provider = None,
    threads: Choices.Threads = None,
    batch: Choices.Batch = None,
    latency_table: Choices.LatencyTable = None,
    quick: Choices.Quick = None,
    exhaustive: Choices.Exhaustive = None,
    work_dir: Choices.WorkDir = None,
    memory: Choices.Memory = None,
    backend: Choices.Backend = None,
    address: Choices.Address = None,
    test_data: Choices.TestData = None,
    labels: Choices.Labels = None,
    report: Choices.Report = None,
    finetune: Choices.Finetune = None,
    epochs: Choices.Epochs = None,
    minutes: Choices.Minutes = None,
    device: Choices.Device = None,
    precision: Choices.Precision = None,
    config: Choices.Config = None,
) -> None:
    """Compress a model with calibration images: profile, plan, apply, verify; fine-tune it if asked to."""
    given = merged(config, **options_of(locals()))
    from hmc_onnx.comparison.judging import check_labels
    from hmc_onnx.records.output import check_output
    from hmc_onnx.reporting.tables import comparison, epochs_table, plan_tables
    from hmc_onnx.run import Run
    from passes.core.errors import SettingsError
    from passes.core.records import write_json
    from passes.graph.external import brought_in
    from passes.graph.files import save

    inputs = inputs_of(model, config, given)
    check_output(output, *inputs)
    if report is not None:
        check_output(report, output, *inputs)
    goal = goal_of(given)
    settings = settings_of(given)
    if goal.by_latency:
        settings = settings.model_copy(update={"latency": True})
    training, stopped = finetuning_of(given) if given.finetune else None, None
    if training is None and (given.epochs, given.minutes) != (None, None):
        raise SettingsError("--epochs and --minutes only apply with --finetune")
    proto = supported(model)
    if training is not None:
        from hmc_onnx.finetune import with_torch

        with_torch().check_trainable(proto, Path(given.need("data")), preprocess_of(given), training)
    images, test = images_of(proto, given, settings)
    shown: list[Any] = []
    with progress_bar() as progress:
        run = Run(proto, images, settings, work_of(given, progress), searching=goal.max_drop is not None)
        compared = run.data if test is None else test
        check_labels(proto, compared, settings.runtime, settings.outputs)
        found = run.reach(goal)
        shown.append(plan_tables(found.plan))
        result = brought_in(found.model)
        if training is not None:
            from hmc_onnx.cli.finetuning import trained

            folder = None if run.work.work_dir is None else run.work.work_dir / "finetuning"
            tuned = trained(result, proto, given, training, folder)
            shown.append(epochs_table(tuned.history))
            result, stopped = tuned.model, tuned.stopped
        checked = run.verify(result, compared).model_copy(update={"curve": found.curve})
    save(result, output)
    if report is not None:
        write_json(checked, report)
    show(*shown, comparison(checked), f"Written: {output}")
    if stopped is not None:
        raise stopped


@app.command()
def inspect(
    model: Choices.Model,
    size: Choices.Size = None,
    layout: Choices.Layout = None,
) -> None:
    """Show a model's layers, costs and channel groups, and what can be done to each Conv."""
    from hmc_onnx.analysis.inspection import inspect as inspect_model
    from hmc_onnx.analysis.model_inputs import preprocessing

    preprocessing(None, size=size)  # says what is wrong with it
    show(inspect_model(supported(model), size, layout.value if layout else "NCHW"))


@app.command()
def profile(
    model: Choices.Model,
    output: Choices.Output,
    data: Choices.Data = None,
    preset: Choices.Preset = None,
    mean: Choices.Mean = None,
    std: Choices.Std = None,
    size: Choices.Size = None,
    layout: Choices.Layout = None,
    samples: Choices.Samples = None,
    seed: Choices.Seed = None,
    align: Choices.Align = None,
    provider: Choices.Provider = None,
    threads: Choices.Threads = None,
    batch: Choices.Batch = None,
    latency_table: Choices.LatencyTable = None,
    latency: Choices.Latency = None,
    quick: Choices.Quick = None,
    exhaustive: Choices.Exhaustive = None,
    work_dir: Choices.WorkDir = None,
    memory: Choices.Memory = None,
    backend: Choices.Backend = None,
    address: Choices.Address = None,
    config: Choices.Config = None,
) -> None:
    """Measure how much a model bears each candidate; writes a profile (JSON)."""
    run = merged(config, **options_of(locals()))
    from hmc_onnx.records.output import check_output
    from hmc_onnx.run import Run
    from passes.core.records import write_json

    check_output(output, *inputs_of(model, config, run))
    settings = settings_of(run).model_copy(update={"latency": bool(run.latency)})
    proto = supported(model)
    images = calibration_data(proto, run, settings)
    with progress_bar() as progress:
        result = Run(proto, images, settings, work_of(run, progress)).profile()
    write_json(result, output)
    candidates = sum(c.measured for layer in result.layers for c in layer.choices)
    show(
        f"{len(result.layers)} layers, {len(result.groups)} channel groups, {candidates} decompositions measured",
        f"Written: {output}",
    )


@app.command()
def plan(
    profile: Annotated[Path, typer.Argument(metavar="PROFILE", help="The profile, as `hmc-onnx profile` wrote it.")],
    output: Choices.Output,
    target: Choices.Target = None,
    strategy: Choices.Strategy = None,
    config: Choices.Config = None,
) -> None:
    """Choose one candidate for each group and layer within a target; writes a plan (JSON)."""
    run = merged(config, **options_of(locals()))
    from hmc_onnx.planning.program import solve
    from hmc_onnx.records.goal import parse_target
    from hmc_onnx.records.output import check_output
    from hmc_onnx.records.profile import Profile
    from hmc_onnx.reporting.tables import plan_tables
    from passes.core.records import write_json

    check_output(output, *inputs_of(profile, config, run))
    result = solve(Profile.load(profile), parse_target(str(run.need("target"))), strategy_of(run))
    write_json(result, output)
    show(plan_tables(result), f"Written: {output}")


@app.command()
def apply(
    model: Choices.Model,
    plan: Annotated[Path, typer.Option(help="The plan, as `hmc-onnx plan` wrote it, or edited.")],
    output: Choices.Output,
    data: Choices.Data = None,
    preset: Choices.Preset = None,
    mean: Choices.Mean = None,
    std: Choices.Std = None,
    size: Choices.Size = None,
    layout: Choices.Layout = None,
    config: Choices.Config = None,
) -> None:
    """Carry a plan out and repair the layers; give the data that the profile was made with."""
    run = merged(config, **options_of(locals()))
    from hmc_onnx.records.output import check_output
    from hmc_onnx.records.plan import Plan
    from hmc_onnx.run import Run
    from passes.graph.external import brought_in
    from passes.graph.files import save

    check_output(output, plan, *inputs_of(model, config, run))
    chosen, proto = Plan.load(plan), supported(model)
    images = calibration_data(proto, run, chosen.settings)
    with progress_bar() as progress:
        compressed = Run(proto, images, chosen.settings, work_of(run, progress)).apply(chosen)
    save(brought_in(compressed), output)
    show(f"Written: {output}")


@app.command()
def verify(
    a: Annotated[Path, typer.Argument(metavar="A", help="The original model.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The compressed model.")],
    data: Choices.Data = None,
    preset: Choices.Preset = None,
    mean: Choices.Mean = None,
    std: Choices.Std = None,
    size: Choices.Size = None,
    layout: Choices.Layout = None,
    samples: Choices.Samples = None,
    seed: Choices.Seed = None,
    provider: Choices.Provider = None,
    threads: Choices.Threads = None,
    labels: Choices.Labels = None,
    report: Choices.Report = None,
    config: Choices.Config = None,
) -> None:
    """Compare two models: signature, cost, fidelity, accuracy, and latency side by side."""
    run = merged(config, **options_of(locals()))
    from hmc_onnx.comparison.verification import Network
    from hmc_onnx.comparison.verification import verify as verify_models
    from hmc_onnx.records.output import check_output
    from hmc_onnx.reporting.tables import comparison
    from passes.core.records import write_json

    if report is not None:
        check_output(report, b, *inputs_of(a, config, run))
    settings, first, second = settings_of(run), opened(a), opened(b)
    images = comparison_data(first, run, None, run.samples, settings.seed) or read_images(
        first, run, run.need("data"), run.samples, settings.seed, "train"
    )
    pair = Network(first, outputs=settings.outputs), Network(second)
    result = verify_models(*pair, labelled(images, run), settings.runtime)
    if report is not None:
        write_json(result, report)
    show(comparison(result))


latency = typer.Typer(no_args_is_help=True, help="The latency tables: what parts of networks take on this machine.")
app.add_typer(latency, name="latency")


@latency.command("show")
def latency_show(
    table: Annotated[
        Optional[Path],  # noqa: UP045  typer reads annotations at run time
        typer.Argument(metavar="[TABLE]", help="A table's file. Default: all in the cache."),
    ] = None,
) -> None:
    """Show latency tables: the machine, and each part of a network with its time."""
    from calib.measure.latency_table import cached_tables, read_table
    from hmc_onnx.reporting.tables import latency_table

    paths = cached_tables() if table is None else [table]
    for path in paths:
        show(latency_table(read_table(path)), str(path))
    if not paths:
        show("No table is in the cache yet: a plan for a share of the time makes one.")


@latency.command("clear")
def latency_clear() -> None:
    """Forget what was timed on this machine, as where that was busy then: it is timed again when it is needed."""
    from calib.measure.latency_table import cached_tables

    paths = cached_tables()
    for path in paths:
        path.unlink(missing_ok=True)
    show(*([f"Removed: {path}" for path in paths] or ["No table is in the cache."]))


@latency.command("measure")
def latency_measure(
    model: Choices.Model,
    output: Choices.Output,
    size: Choices.Size = None,
    layout: Choices.Layout = None,
    align: Choices.Align = None,
    provider: Choices.Provider = None,
    threads: Choices.Threads = None,
    batch: Choices.Batch = None,
    quick: Choices.Quick = None,
) -> None:
    """Measure all that a model and its parts may become on this machine, to plan for it on another."""
    run = merged(None, **options_of(locals()))
    from hmc_onnx.analysis.inspection import closed_shapes
    from hmc_onnx.analysis.model_inputs import noise
    from hmc_onnx.execution.context import Context
    from hmc_onnx.profiling.candidate_times import measure_table
    from hmc_onnx.records.output import check_output

    check_output(output, model)
    settings, proto = settings_of(run).model_copy(update={"latency": True}), supported(model)
    images = noise(proto, closed_shapes(proto, size, layout.value if layout else "NCHW"))
    with progress_bar() as progress:
        found = measure_table(Context(proto, images, settings, work_of(run, progress)))
    found.write(output)
    show(f"{len(found.entries)} times on {found.machine}", f"Written: {output}")
