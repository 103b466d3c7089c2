"""The commands `latency show`, `latency clear` and `latency measure`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from hmc_onnx.cli.commands import INPUT, Model
from hmc_onnx.cli.console import progress_bar, show
from hmc_onnx.cli.groups import Images, OutputFile, Quick
from hmc_onnx.cli.help import LATENCY
from hmc_onnx.cli.options import Given, Group, command
from hmc_onnx.cli.reading import settings_of, supported
from hmc_onnx.records.output import check_output
from hmc_onnx.records.settings import Settings
from hmc_onnx.records.work import Work

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)


@app.command("show", help=LATENCY["show"])
def show_tables(
    table: Annotated[
        Optional[Path],  # noqa: UP045  typer reads annotations at run time
        typer.Argument(metavar="[TABLE]", help="A table's file.", show_default="all in the cache"),
    ] = None,
) -> None:
    """Show latency tables."""
    from calib.measure.latency_table import cached_tables, read_table
    from hmc_onnx.reporting.tables import latency_table

    paths = cached_tables() if table is None else [table]
    for path in paths:
        show(latency_table(read_table(path)), str(path))
    if not paths:
        show("No table is in the cache yet: a plan for a share of the time makes one.")


@app.command("clear", help=LATENCY["clear"])
def clear_tables() -> None:
    """Remove this machine's tables."""
    from calib.measure.latency_table import cached_tables

    paths = cached_tables()
    for path in paths:
        path.unlink(missing_ok=True)
    show(*([f"Removed: {path}" for path in paths] or ["No table is in the cache."]))


@command(
    app,
    "measure",
    LATENCY["measure"],
    OutputFile,
    INPUT,
    Group(Settings, only=("align", "provider", "provider_option", "threads", "batch", "precision")),
    Quick,
)
def measure(model: Model, given: Given) -> None:
    """Make a table of all that a model may become."""
    from hmc_onnx.analysis.inspection import closed_shapes
    from hmc_onnx.analysis.model_inputs import noise
    from hmc_onnx.execution.context import Context
    from hmc_onnx.profiling.whole_table import measure_table

    output, asked = given.of(OutputFile).output, given.of(Images).preprocess()
    check_output(output, model)
    settings, proto = settings_of(given, latency=True), supported(model, given)
    images = noise(proto, closed_shapes(proto, asked.size, asked.layout))
    with progress_bar() as progress:
        found = measure_table(Context(proto, images, settings, Work(progress=progress)))
    found.write(output)
    show(f"{len(found.entries)} times on {found.machine}", f"Written: {output}")
