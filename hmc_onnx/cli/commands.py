"""The commands. Each turns its options into records, gives them to a `Run`, and shows what comes out."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from hmc_onnx.cli.console import console, progress_bar, show, show_json
from hmc_onnx.cli.groups import (
    Config,
    Data,
    DryRun,
    Images,
    Json,
    Labels,
    Output,
    PlanFile,
    Quick,
    Report,
    TestImages,
    Training,
)
from hmc_onnx.cli.help import COMMANDS
from hmc_onnx.cli.options import Given, Group, command
from hmc_onnx.cli.reading import (
    calibration_images,
    images_at,
    images_to_compare_on,
    inputs_of,
    opened,
    settings_of,
    supported,
)
from hmc_onnx.finetune.options import FineTuning
from hmc_onnx.records.goal import Goal, Target
from hmc_onnx.records.output import check_output
from hmc_onnx.records.settings import Settings
from hmc_onnx.records.work import Work

if TYPE_CHECKING:
    from hmc_onnx.execution.context import Context

__all__ = ["INPUT", "Model", "commands"]

app = typer.Typer()

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="The ONNX file.", show_default=False)]
INPUT = Group(Images, only=("size", "layout"))
# Whether times are measured follows from the goal.
MEASURING = Group(Settings, without=("latency",))


@cache
def commands() -> TyperGroup:
    """All commands, whole."""
    from hmc_onnx.cli.finetuning import app as finetuning
    from hmc_onnx.cli.latency import app as latency

    app.add_typer(finetuning)
    app.add_typer(latency, name="latency", help=COMMANDS["latency"])
    found = typer.main.get_command(app)
    assert isinstance(found, TyperGroup)
    return found


@command(
    app,
    "compress",
    COMMANDS["compress"],
    Output,
    Config,
    Data,
    Images,
    TestImages,
    Labels,
    Goal,
    MEASURING,
    Quick,
    Work,
    Training,
    Group(FineTuning, needs="finetune"),
    Report,
    Json,
    DryRun,
)
def compress(model: Model, given: Given) -> None:
    """Compress a model."""
    from hmc_onnx.cli.finetuning import check_training, trained
    from hmc_onnx.comparison.judging import check_labels
    from hmc_onnx.reporting.tables import comparison, epochs_table, plan_tables
    from hmc_onnx.run import Run
    from passes.graph.external import brought_in
    from passes.graph.files import save

    output, report = _outputs(given, model)
    goal = given.of(Goal)
    settings = settings_of(given, latency=goal.by_latency)
    proto = supported(model, given)
    training = check_training(proto, given) if given.of(Training).finetune else None
    # with a bound on the loss, half of the images are for the search
    calibration = calibration_images(
        proto, given, settings.samples if goal.max_drop is None else 2 * settings.samples, settings.seed
    )
    test = images_to_compare_on(proto, given)
    with progress_bar() as progress:
        run = Run(proto, calibration, settings, given.of(Work, progress=progress), goal.max_drop is not None)
        check_labels(proto, run.data if test is None else test, settings.runtime, settings.judge)
        if (given.of(DryRun).dry_run or goal.target != Target()) and _looked_ahead(run, given):
            return
        found = run.reach(goal)
        shown: list[Any] = [plan_tables(found.plan)]
        result, stopped = brought_in(found.model), None
        if training is not None:
            folder = None if run.work.work_dir is None else run.work.work_dir / "finetuning"
            tuned = trained(result, proto, given, training, folder)
            shown, result, stopped = [*shown, epochs_table(tuned.history)], tuned.model, tuned.stopped
        result = run.serve(result)
        checked = run.verify(result, test).model_copy(update={"curve": found.curve})
    save(result, output)
    if report is not None:
        checked.save(report)
    if given.of(Json).json_:
        made = {"plan": found.plan.model_dump(mode="json"), "comparison": checked.model_dump(mode="json")}
        show_json({**made, "written": str(output)})
    else:
        show(*shown, comparison(checked), f"Written: {output}")
    if stopped is not None:
        raise stopped


@command(app, "inspect", COMMANDS["inspect"], INPUT, Json)
def inspect(model: Model, given: Given) -> None:
    """Show what a model is made of."""
    from hmc_onnx.analysis.inspection import describe
    from hmc_onnx.analysis.inspection import inspect as tables

    asked = given.of(Images).preprocess()
    if given.of(Json).json_:
        show_json(describe(supported(model, given), asked.size, asked.layout))
        return
    show(tables(supported(model, given), asked.size, asked.layout))


@command(app, "profile", COMMANDS["profile"], Output, Config, Data, Images, Settings, Quick, Work, Json, DryRun)
def profile(model: Model, given: Given) -> None:
    """Measure the candidates of a model."""
    from hmc_onnx.run import Run

    output, _ = _outputs(given, model)
    settings = settings_of(given)
    proto = supported(model, given)
    images = calibration_images(proto, given, settings.samples, settings.seed)
    with progress_bar() as progress:
        run = Run(proto, images, settings, given.of(Work, progress=progress))
        if _looked_ahead(run, given):
            return
        result = run.profile()
    result.save(output)
    candidates = sum(c.measured for layer in result.layers for c in layer.choices)
    if given.of(Json).json_:
        counts = {"layers": len(result.layers), "groups": len(result.groups), "measured": candidates}
        show_json({**counts, "declined": result.declined, "written": str(output)})
        return
    show(
        f"{len(result.layers)} layers, {len(result.groups)} channel groups, {candidates} decompositions measured",
        f"Written: {output}",
    )


@command(app, "plan", COMMANDS["plan"], Output, Config, Group(Goal, only=("target", "strategy")), Json)
def plan(
    profile: Annotated[
        Path, typer.Argument(metavar="PROFILE", help="The profile, as `hmc-onnx profile` wrote it.", show_default=False)
    ],
    given: Given,
) -> None:
    """Choose candidates within a target."""
    from hmc_onnx.planning.program import solve
    from hmc_onnx.records.profile import Profile
    from hmc_onnx.reporting.tables import plan_tables

    output, _ = _outputs(given, profile)
    given.need("target")
    goal = given.of(Goal)
    assert goal.target is not None
    result = solve(Profile.load(profile), goal.target, goal.strategy)
    result.save(output)
    if given.of(Json).json_:
        show_json(result.model_dump(mode="json"))
        return
    show(plan_tables(result), f"Written: {output}")


@command(app, "apply", COMMANDS["apply"], PlanFile, Output, Config, Data, Images)
def apply(model: Model, given: Given) -> None:
    """Carry a plan out."""
    from hmc_onnx.records.plan import Plan
    from hmc_onnx.run import Run
    from passes.graph.external import brought_in
    from passes.graph.files import save

    output, _ = _outputs(given, model)
    chosen, proto = Plan.load(given.of(PlanFile).plan), supported(model, given)
    images = calibration_images(proto, given, chosen.settings.samples, chosen.settings.seed)
    with progress_bar() as progress:
        compressed = Run(proto, images, chosen.settings, Work(progress=progress)).apply(chosen)
    save(brought_in(compressed), output)
    show(f"Written: {output}")


@command(
    app,
    "verify",
    COMMANDS["verify"],
    Config,
    Data,
    Images,
    Labels,
    Group(Settings, only=("samples", "seed", "provider", "provider_option", "threads", "judge")),
    Report,
    Json,
)
def verify(
    a: Annotated[Path, typer.Argument(metavar="A", help="The original model.", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B", help="The compressed model.", show_default=False)],
    given: Given,
) -> None:
    """Compare two models."""
    from hmc_onnx.comparison.verification import Network
    from hmc_onnx.comparison.verification import verify as compare
    from hmc_onnx.reporting.tables import comparison

    _, report = _outputs(given, a, b)
    settings, first, second = given.of(Settings), opened(a, given), opened(b, given)
    samples = settings.samples if "samples" in given else None
    images = images_at(given.need("data"), first, given, samples, settings.seed)
    result = compare(Network(first, outputs=settings.judge), Network(second), images, settings.runtime)
    if report is not None:
        result.save(report)
    if given.of(Json).json_:
        show_json(result.model_dump(mode="json"))
        return
    show(comparison(result))


def _looked_ahead(context: Context, given: Given) -> bool:
    """Say before the work about how long it takes; True if no more than that is asked for.

    A run that goes on from a work folder takes less.
    """
    from hmc_onnx.profiling.estimate import estimate
    from hmc_onnx.reporting.tables import left_alone

    found = estimate(context)
    if not given.of(DryRun).dry_run:
        console(stderr=True).print(f"profile: {found}", markup=False, soft_wrap=True)
        return False
    if given.of(Json).json_:
        show_json(found.dump())
    else:
        show(*([left_alone(found.declined)] if found.declined else []), f"To do: {found}. Nothing was written.")
    return True


def _outputs(given: Given, *inputs: Path) -> tuple[Path, Path | None]:
    """The file to write, and that of the report, of those that the command has, after a look at whether they can be."""
    output, report = (given.values.get(name) for name in ("output", "report"))
    read = inputs_of(given, *inputs)
    if output is not None:
        check_output(output, *read)
    if report is not None:
        check_output(report, *read, *([output] if output is not None else []))
    return Path(output or ""), report
