"""The commands. Everything heavy is imported inside them, so that `--help` is instant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from hmc_onnx.cli.console import progress_bar, show
from hmc_onnx.cli.options import BackendName, Choices, Run, StrategyName, merged

if TYPE_CHECKING:
    import onnx

    from calib.data import CalibrationData
    from calib.latency_table import LatencyTable
    from hmc_onnx.parallel import Work
    from hmc_onnx.settings import Settings

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
    config: Choices.Config = None,
) -> None:
    """Compress a model with calibration images: profile, plan, apply, verify."""
    run = merged(config, **_options(locals()))
    from hmc_onnx.inputs import load_supported
    from hmc_onnx.pipeline import check_output
    from hmc_onnx.pipeline import compress as compress_model
    from hmc_onnx.plans import write_json
    from hmc_onnx.report import comparison, plan_tables
    from hmc_onnx.settings import parse_target
    from passes.errors import SettingsError

    inputs = _inputs(model, config, run)
    check_output(output, *inputs)
    if report is not None:
        check_output(report, output, *inputs)
    if run.target is not None and run.max_drop is not None:
        raise SettingsError("--target and --max-drop were both given: give one")
    wanted = None if run.max_drop is not None else parse_target(str(run.need("target")))
    settings, table, work = _settings(run), _table(run), _work(run)
    proto = load_supported(model)
    images, test = _images(proto, run, settings)
    with progress_bar() as progress:
        result = compress_model(
            proto,
            images,
            wanted,
            max_drop=run.max_drop,
            strategy=_strategy(run),
            settings=settings,
            test=test,
            progress=progress,
            table=table,
            work=work,
        )
    result.save(output)
    if report is not None:
        write_json(result.report, report)
    show(plan_tables(result.plan), comparison(result.report), f"Written: {output}")


@app.command()
def inspect(
    model: Choices.Model,
    size: Choices.Size = None,
    layout: Choices.Layout = None,
) -> None:
    """Show a model's layers, costs and channel groups, and what can be done to each Conv."""
    from hmc_onnx.inputs import load_supported, preprocessing
    from hmc_onnx.inspection import inspect as inspect_model

    preprocessing(None, size=size)  # says what is wrong with it
    show(inspect_model(load_supported(model), size, layout.value if layout else "NCHW"))


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
    run = merged(config, **_options(locals()))
    from hmc_onnx.inputs import load_supported
    from hmc_onnx.pipeline import check_output
    from hmc_onnx.pipeline import profile as profile_model
    from hmc_onnx.plans import write_json

    check_output(output, *_inputs(model, config, run))
    settings = _settings(run).model_copy(update={"latency": bool(run.latency)})
    table, work, proto = _table(run), _work(run), load_supported(model)
    images = _calibration(proto, run, settings)
    with progress_bar() as progress:
        result = profile_model(proto, images, settings, progress, table, work)
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
    run = merged(config, **_options(locals()))
    from hmc_onnx.pipeline import check_output
    from hmc_onnx.plans import read_profile, write_json
    from hmc_onnx.report import plan_tables
    from hmc_onnx.settings import parse_target
    from hmc_onnx.solver import solve

    check_output(output, *_inputs(profile, config, run))
    result = solve(read_profile(profile), parse_target(str(run.need("target"))), _strategy(run))
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
    run = merged(config, **_options(locals()))
    from hmc_onnx.inputs import load_supported
    from hmc_onnx.pipeline import apply as apply_plan
    from hmc_onnx.pipeline import check_output
    from hmc_onnx.plans import read_plan
    from passes.model import save

    check_output(output, plan, *_inputs(model, config, run))
    chosen, proto = read_plan(plan), load_supported(model)
    images = _calibration(proto, run, chosen.settings)
    with progress_bar() as progress:
        compressed = apply_plan(proto, chosen, images, progress)
    save(compressed, output)
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
    run = merged(config, **_options(locals()))
    from hmc_onnx.pipeline import check_output
    from hmc_onnx.plans import write_json
    from hmc_onnx.report import comparison
    from hmc_onnx.verification import verify as verify_models
    from passes.model import load

    if report is not None:
        check_output(report, b, *_inputs(a, config, run))
    settings, first, second = _settings(run), load(a), load(b)
    images = _test(first, run, None, run.samples, settings.seed) or _read(
        first, run, run.need("data"), run.samples, settings.seed, "train"
    )
    result = verify_models(first, second, _labelled(images, run), runtime=settings.runtime)
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
    from calib.latency_table import cached_tables, read_table
    from hmc_onnx.report import latency_table

    paths = cached_tables() if table is None else [table]
    for path in paths:
        show(latency_table(read_table(path)), str(path))
    if not paths:
        show("No table is in the cache yet: a plan for a share of the time makes one.")


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
    run = merged(None, **_options(locals()))
    from hmc_onnx.inputs import load_supported
    from hmc_onnx.inspection import closed_shapes
    from hmc_onnx.latencies import measure_table
    from hmc_onnx.pipeline import check_output

    check_output(output, model)
    settings, proto = _settings(run), load_supported(model)
    with progress_bar() as progress:
        found = measure_table(proto, closed_shapes(proto, size, layout.value if layout else "NCHW"), settings, progress)
    found.write(output)
    show(f"{len(found.entries)} times on {found.machine}", f"Written: {output}")


def _options(given: dict[str, Any]) -> dict[str, Any]:
    """The options of a command that a YAML file may hold too."""
    return {k: v for k, v in given.items() if k in Run.NAMES}


def _inputs(first: Path, config: Path | None, run: Run) -> list[Path]:
    """The files that a command reads, which no output may replace."""
    return [Path(p) for p in (first, config, run.data, run.test_data) if p is not None]


def _settings(run: Run) -> Settings:
    from pydantic import ValidationError

    from hmc_onnx.settings import QUICK, Settings
    from passes.errors import SettingsError

    names = ("samples", "seed", "align", "provider", "threads", "batch", "exhaustive")
    given = {n: getattr(run, n) for n in names if getattr(run, n) is not None}
    try:
        return Settings(**(QUICK | given if run.quick else given))
    except ValidationError as e:
        problem = e.errors()[0]
        raise SettingsError(f"--{problem['loc'][0]} {problem['input']}: {problem['msg'].lower()}") from e


def _table(run: Run) -> LatencyTable | None:
    from calib.latency_table import read_table

    return None if run.latency_table is None else read_table(run.latency_table)


def _work(run: Run) -> Work:
    from hmc_onnx.parallel import Work
    from passes.errors import SettingsError

    backend: Any = run.backend or "processes"
    if backend not in BackendName.__members__:
        raise SettingsError(f"unknown backend '{backend}': use {', '.join(BackendName.__members__)}")
    if run.memory is not None and run.memory <= 0:
        raise SettingsError(f"--memory {run.memory:g}: give gigabytes, above 0")
    folder = None if run.work_dir is None else Path(run.work_dir)
    return Work(folder, backend, run.address, memory=2.0 if run.memory is None else float(run.memory))


def _strategy(run: Run) -> Any:
    from passes.errors import SettingsError

    name = run.strategy or "hmc"
    if name not in StrategyName.__members__:
        raise SettingsError(f"unknown strategy '{name}': use {', '.join(StrategyName.__members__)}")
    return name


def _read(proto: onnx.ModelProto, run: Run, path: Any, samples: int | None, seed: int, split: str) -> CalibrationData:
    from hmc_onnx.inputs import load_data, preprocessing

    def numbers(value: Any) -> Any:
        return None if value is None else tuple(value)

    preprocess = preprocessing(
        run.preset, mean=numbers(run.mean), std=numbers(run.std), size=numbers(run.size), layout=run.layout
    )
    return load_data(proto, Path(path), preprocess, samples=samples, seed=seed, split=split)


def _calibration(proto: onnx.ModelProto, run: Run, settings: Settings) -> CalibrationData:
    from hmc_onnx.inputs import check_varied

    samples = settings.samples if run.max_drop is None else 2 * settings.samples  # a half to search with
    data = _read(proto, run, run.need("data"), samples, settings.seed, "train")
    check_varied(data)
    return data


def _images(proto: onnx.ModelProto, run: Run, settings: Settings) -> tuple[CalibrationData, CalibrationData | None]:
    test = _test(proto, run, run.test_data)
    return _labelled(_calibration(proto, run, settings), run), None if test is None else _labelled(test, run)


def _labelled(data: CalibrationData, run: Run) -> CalibrationData:
    """Images to compare on, without their labels if the user wants no accuracy."""
    from dataclasses import replace

    return data if run.labels is not False else replace(data, labels=None)


def _test(
    proto: onnx.ModelProto, run: Run, path: Any, samples: int | None = None, seed: int = 0
) -> CalibrationData | None:
    """Images to compare on: those named, else the data's own test split, else None."""
    from calib.readers import splits

    if path is None:
        if "test" not in splits(Path(run.need("data"))):
            return None
        path = run.data
    return _read(proto, run, path, samples, seed, "test" if "test" in splits(Path(path)) else "train")
