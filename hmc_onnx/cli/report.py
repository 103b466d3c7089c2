"""The command `report`, and how other commands write a report: as a page or as JSON, by the name of the file."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

import typer

from hmc_onnx.cli.console import show
from hmc_onnx.cli.groups import OutputFile
from hmc_onnx.cli.help import COMMANDS
from hmc_onnx.cli.options import Given, command
from hmc_onnx.records.output import check_output
from passes.core.errors import PlanError, SettingsError
from passes.core.paths import shown

if TYPE_CHECKING:
    from calib.runtime.sessions import Runtime
    from hmc_onnx.finetune.options import Epoch
    from hmc_onnx.records.comparison import Verification
    from hmc_onnx.records.plan import Plan
    from hmc_onnx.records.profile import Profile

__all__ = ["app", "write_report"]

app = typer.Typer()


@command(app, "report", COMMANDS["report"], OutputFile)
def report(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN.json", help="The report, as `--report RUN.json` wrote it.", show_default=False),
    ],
    given: Given,
) -> None:
    """Make a page of a report."""
    from hmc_onnx.records.report import RunReport
    from hmc_onnx.reporting.page import write_page
    from hmc_onnx.reporting.report_file import PAGES

    output = given.of(OutputFile).output
    if output.suffix.lower() not in PAGES:
        raise SettingsError(f"the page '{output}' would be HTML: give `output` a name that ends in {PAGES[0]}")
    if run.suffix.lower() in PAGES:
        raise PlanError(f"'{run}' is a page already: give the JSON that `--report RUN.json` wrote")
    check_output(output, run)
    write_page(RunReport.load(run), output)
    show(f"Written: {output}")


def write_report(
    path: Path,
    checked: Verification,
    models: tuple[Path, Path],
    runtime: Runtime,
    made: tuple[Plan, Profile | None, Sequence[Epoch]] | None = None,
    seconds: Mapping[str, tuple[float, float]] = MappingProxyType({}),
) -> None:
    """Write the report of a command: a page where the file's name ends as a page's, else JSON.

    Args:
        path: of the file.
        checked: the comparison.
        models: files of the original and of the compressed model.
        runtime: how both were run.
        made: the plan, the profile and the epochs of fine-tuning, where a network was compressed.
        seconds: of layers before and after, by name, where the plan does not say them.

    Raises:
        OutputError: it cannot be written.
    """
    from hmc_onnx.reporting.report_file import write_report_file
    from hmc_onnx.reporting.run_report import provenance, run_report

    line = shown(shlex.join(["hmc-onnx", *sys.argv[1:]]))
    by = provenance(line, shown(models[0].name), shown(models[1].name), runtime)
    plan, profile, epochs = made or (None, None, ())
    write_report_file(run_report(checked, plan, profile, epochs, by, seconds), path)
