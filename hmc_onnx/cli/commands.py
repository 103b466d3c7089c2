"""The commands. Each turns its options into records, gives them to a `Run`, and shows what comes out."""

from __future__ import annotations

import warnings
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from typer.core import TyperGroup

from hmc_onnx.cli.console import console, progress_bar, show, show_json
from hmc_onnx.cli.groups import (
    Against,
    Config,
    Data,
    DryRun,
    Images,
    Json,
    Labels,
    Metadata,
    OutputFile,
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
from hmc_onnx.finetune.options import Epoch, FineTuning
from hmc_onnx.records.goal import Goal, Target
from hmc_onnx.records.output import check_output
from hmc_onnx.records.settings import Settings
from hmc_onnx.records.work import Work
from passes.core.errors import HmcWarning
from passes.core.paths import shown

if TYPE_CHECKING:
    from hmc_onnx.execution.context import Context

__all__ = ["INPUT", "Model", "commands"]

app = typer.Typer()

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="The ONNX file.", show_default=False)]
INPUT = Group(Images, only=("size", "layout"))
# Whether times are measured follows from the goal.
MEASURING = Group(Settings, without=("latency",))
COMPARING = ("samples", "seed", "provider", "provider_option", "threads", "judge", "precision", "calibration")


@cache
def commands() -> TyperGroup:
    """All commands, whole."""
    from hmc_onnx.cli.finetuning import app as finetuning
    from hmc_onnx.cli.handoff import app as handoff
    from hmc_onnx.cli.latency import app as latency
    from hmc_onnx.cli.report import app as report

    app.add_typer(handoff)
    app.add_typer(finetuning)
    app.add_typer(report)
    app.add_typer(latency, name="latency", help=COMMANDS["latency"])
    found = typer.main.get_command(app)
    assert isinstance(found, TyperGroup)
    return found


@command(
    app,
    "compress",
    COMMANDS["compress"],
    OutputFile,
    Metadata,
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
    from hmc_onnx.cli.report import write_report
    from hmc_onnx.comparison.judging import check_labels
    from hmc_onnx.reporting.tables import comparison, epochs_table, plan_tables
    from hmc_onnx.run import Run, purpose_of
    from passes.graph.external import brought_in
    from passes.graph.files import save

    output, report = _outputs(given, model)
    goal = given.of(Goal)
    settings = settings_of(given, latency=goal.by_latency)
    proto = supported(model, given)
    training = check_training(proto, given) if given.of(Training).finetune else None
    test = images_to_compare_on(proto, given)
    # fine-tuning reads the images anew, those that were held back too
    purpose = purpose_of(goal, test is not None or training is not None)
    calibration = calibration_images(proto, given, settings, purpose)
    with progress_bar() as progress:
        run = Run(proto, calibration, settings, given.of(Work, progress=progress), purpose)
        check_labels(proto, run.data if test is None else test, settings.runtime, settings.judge)
        run.check_data(goal)
        if (given.of(DryRun).dry_run or goal.target != Target()) and _looked_ahead(run, given):
            return
        found = run.reach(goal)
        parts: list[Any] = [plan_tables(found.plan)]
        epochs: list[Epoch] = []
        result, stopped = run.recorded(found.model, found.plan), None
        if training is not None:
            folder = None if run.work.work_dir is None else run.work.work_dir / "finetuning"
            tuned = trained(brought_in(result), proto, given, training, folder)
            parts, result, stopped = [*parts, epochs_table(tuned.history)], tuned.model, tuned.stopped
            epochs = tuned.history
        result = run.serve(result, found.plan)
        checked = found.noted_in(run.verify(result, test))
        timed = report is not None and run.profiled is not None
        seconds = run.layer_seconds(found.plan) if timed and found.plan.latency is None else {}
        result = brought_in(result)  # only now, as two sessions hold the weights of a large model while it is compared
    save(_with_metadata(result, given), output)
    if report is not None:
        write_report(report, checked, (model, output), run.runtime, (found.plan, run.profiled, epochs), seconds)
    if given.of(Json).json_:
        made = {"plan": found.plan.model_dump(mode="json"), "comparison": checked.model_dump(mode="json")}
        show_json({**made, "written": shown(output)})
    else:
        show(*parts, comparison(checked), f"Written: {output}")
    if stopped is not None:
        raise stopped


@command(app, "inspect", COMMANDS["inspect"], INPUT, Json)
def inspect(model: Model, given: Given) -> None:
    """Show what a model is made of."""
    from hmc_onnx.analysis.inspection import describe
    from hmc_onnx.analysis.inspection import inspect as tables
    from hmc_onnx.analysis.model_inputs import check_kind
    from hmc_onnx.cli.wording import in_options
    from hmc_onnx.records.provenance import Provenance
    from hmc_onnx.reporting.tables import provenance_table
    from passes.core.errors import ModelError

    asked, proto = given.of(Images).preprocess(), opened(model, given)
    made = Provenance.read(proto)
    if given.of(Json).json_:
        described = describe(check_kind(proto), asked.size, asked.layout)
        show_json(described | ({} if made is None else {"provenance": made.model_dump(mode="json")}))
        return
    if made is None:
        show(tables(check_kind(proto), asked.size, asked.layout))
        return
    show(provenance_table(made))
    try:
        check_kind(proto)
    except ModelError as e:
        show(f"Its layers are not shown: {in_options(str(e))}")
        return
    show(tables(proto, asked.size, asked.layout))


@command(app, "profile", COMMANDS["profile"], OutputFile, Config, Data, Images, Settings, Quick, Work, Json, DryRun)
def profile(model: Model, given: Given) -> None:
    """Measure the candidates of a model."""
    from hmc_onnx.run import Run
    from passes.core.declined import sentences

    output, _ = _outputs(given, model)
    settings = settings_of(given)
    proto = supported(model, given)
    images = calibration_images(proto, given, settings)
    with progress_bar() as progress:
        run = Run(proto, images, settings, given.of(Work, progress=progress))
        if _looked_ahead(run, given):
            return
        result = run.profile()
    result.save(output)
    candidates = sum(c.measured for layer in result.layers for c in layer.choices)
    if given.of(Json).json_:
        counts = {"layers": len(result.layers), "groups": len(result.groups), "measured": candidates}
        show_json({**counts, "declined": sentences(result.declined), "written": shown(output)})
        return
    show(
        f"{len(result.layers)} layers, {len(result.groups)} channel groups, {candidates} decompositions measured",
        f"Written: {output}",
    )


@command(
    app, "plan", COMMANDS["plan"], OutputFile, Config, Group(Goal, only=("target", "or_nearest", "strategy")), Json
)
def plan(
    profile: Annotated[
        Path, typer.Argument(metavar="PROFILE", help="The profile, as `hmc-onnx profile` wrote it.", show_default=False)
    ],
    given: Given,
) -> None:
    """Choose candidates within a target."""
    from hmc_onnx.planning.nearest import nearest
    from hmc_onnx.planning.program import solve
    from hmc_onnx.records.profile import Profile
    from hmc_onnx.reporting.tables import plan_tables

    output, _ = _outputs(given, profile)
    given.need("target")
    goal = given.of(Goal)
    assert goal.target is not None
    solved = partial(solve, Profile.load(profile), strategy=goal.strategy)
    result = nearest(goal.target, solved) if goal.or_nearest else solved(goal.target)
    result.save(output)
    if given.of(Json).json_:
        show_json(result.model_dump(mode="json"))
        return
    show(plan_tables(result), f"Written: {output}")


@command(app, "apply", COMMANDS["apply"], PlanFile, OutputFile, Metadata, Config, Data, Images)
def apply(model: Model, given: Given) -> None:
    """Carry a plan out, in the precision that it was made for."""
    from hmc_onnx.records.plan import Plan
    from hmc_onnx.run import Run
    from passes.graph.external import brought_in
    from passes.graph.files import save

    output, _ = _outputs(given, model)
    chosen, proto = Plan.load(given.of(PlanFile).plan), supported(model, given)
    images = calibration_images(proto, given, chosen.settings, chosen.held_back)
    with progress_bar() as progress:
        run = Run(proto, images, chosen.settings, Work(progress=progress), chosen.held_back)
        compressed = run.serve(run.recorded(run.apply(chosen), chosen), chosen)
    save(_with_metadata(brought_in(compressed), given), output)
    if not chosen.changes:
        show("The plan changes no layer and removes no channel.")
    show(f"Written: {output}")


@command(
    app,
    "verify",
    COMMANDS["verify"],
    Against,
    Config,
    Data,
    Images,
    Labels,
    Group(Settings, only=COMPARING),
    Report,
    Json,
)
def verify(
    a: Annotated[Path, typer.Argument(metavar="A", help="The original model.", show_default=False)],
    given: Given,
    b: Annotated[
        Optional[Path],  # noqa: UP045  typer reads annotations at run time
        typer.Argument(metavar="B", help="The compressed model, where `--against` names none.", show_default=False),
    ] = None,
) -> None:
    """Compare two models."""
    from hmc_onnx.cli.handoff import check_one_of, second_model
    from hmc_onnx.cli.report import write_report
    from hmc_onnx.comparison.data_check import look_at, warn_of
    from hmc_onnx.comparison.verification import BATCHES, Network
    from hmc_onnx.comparison.verification import verify as compare
    from hmc_onnx.execution.context import Context, check_convertible
    from hmc_onnx.reporting.tables import comparison

    against = given.of(Against).against
    check_one_of(b, against)
    _, report = _outputs(given, a, *([] if b is None else [b]))
    settings, first = given.of(Settings), opened(a, given)
    check_convertible(first, settings.precision)
    second, runtime, sizes = second_model(b, against, given, settings.runtime)
    samples = settings.samples if "samples" in given else None
    images = images_at(given.need("data"), first, given, samples, settings.seed)
    warn_of(look_at(first, images, settings.runtime, settings.judge))
    if sizes is not None and max(sizes) > len(images):
        warnings.warn(
            f"the folder is for {max(sizes):,} images at once, and there are {len(images):,} images here: times are "
            "those of one image alone, unless you give more",
            HmcWarning,
            stacklevel=2,
        )
    original = Network.of(Context(first, images, settings.run_by(runtime)))
    result = compare(original, Network(second), images, runtime, sizes or BATCHES)
    if report is not None:
        write_report(report, result, (a, b or against or a), settings.runtime)
    if given.of(Json).json_:
        show_json(result.model_dump(mode="json"))
        return
    show(comparison(result))


def _with_metadata(proto: Any, given: Given) -> Any:
    """A compressed model as the user wants it: with what it says of how it was made, or without."""
    from hmc_onnx.records.provenance import with_provenance

    return proto if given.of(Metadata).metadata else with_provenance(proto, None)


def _looked_ahead(context: Context, given: Given) -> bool:
    """Say before the work about how long it takes; True if no more than that is asked for.

    A run that goes on from a work folder takes less.
    """
    from hmc_onnx.planning.estimate import estimate
    from hmc_onnx.reporting.tables import left_alone

    found = estimate(context)
    if not given.of(DryRun).dry_run:
        target = console(stderr=True)
        target.print(f"profile: {found}", markup=False, soft_wrap=not target.is_terminal)  # a line of a log stays one
        return False
    if given.of(Json).json_:
        show_json(found.dump())
    else:
        how = context.runtime
        with_what = f"{len(context.data)} images ({context.data.source}), {how.provider}, {how.threads_used} threads"
        alone = [left_alone(found.declined)] if found.declined else []
        show(*alone, f"With: {with_what}.", f"To do: {found}. Nothing was written.")
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
