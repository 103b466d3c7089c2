"""The groups of options, and the records of those that only the command line has: files and images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from hmc_onnx.cli.options import Group
from hmc_onnx.finetune.options import FineTuning
from hmc_onnx.records.goal import Goal
from hmc_onnx.records.handoff import Handoff, ServingTarget
from hmc_onnx.records.images import Images
from hmc_onnx.records.options import Option, Options
from hmc_onnx.records.settings import Settings
from hmc_onnx.records.work import Work

__all__ = [
    "GROUPS",
    "Against",
    "Config",
    "Data",
    "Destination",
    "DryRun",
    "Handoff",
    "Images",
    "Json",
    "Labels",
    "Metadata",
    "OutputFile",
    "PlanFile",
    "Quick",
    "Report",
    "Teacher",
    "TestImages",
    "Training",
]

FILES, DATA = "Model and files", Images.panel


class OutputFile(Options):
    """The file that a command makes."""

    panel: ClassVar[str] = FILES

    output: Annotated[Path, Option(short="-o", metavar="FILE", file=False)] = Field(description="The file to write.")


class Metadata(Options):
    """Whether a file says how it was made."""

    panel: ClassVar[str] = FILES

    metadata: bool = Field(
        default=True,
        description="Write into the file's metadata how it was made: tool, version, original, target, plan.",
    )


class Config(Options):
    """A file of options."""

    panel: ClassVar[str] = FILES

    config: Annotated[Path | None, Option(metavar="FILE", file=False)] = Field(
        default=None,
        description="YAML file that holds options by their names, such as target: macs=0.5. What is given on the "
        "command line goes before it.",
    )


class Destination(Options):
    """The server that a model is handed over to, and the folder that is made for it."""

    panel: ClassVar[str] = FILES

    to: Annotated[ServingTarget, Option(file=False)] = Field(description="The server.")
    output: Annotated[Path, Option(short="-o", metavar="DIR", file=False)] = Field(description="The folder to make.")


class Against(Options):
    """What a model is compared with in place of a second file."""

    panel: ClassVar[str] = FILES

    against: Annotated[Path | None, Option(metavar="DIR", file=False)] = Field(
        default=None,
        description="A folder that `hmc-onnx handoff` made, in place of B: its model is run as the server will.",
    )


class PlanFile(Options):
    """The plan that is carried out."""

    panel: ClassVar[str] = FILES

    plan: Annotated[Path, Option(metavar="FILE", file=False)] = Field(
        description="The plan, as `hmc-onnx plan` wrote it, or edited."
    )


class Teacher(Options):
    """The network that a compressed one is trained against."""

    panel: ClassVar[str] = FILES

    teacher: Annotated[Path, Option(metavar="FILE", file=False)] = Field(
        description="The original model, whose outputs are learnt."
    )


class Data(Options):
    """Where images are."""

    panel: ClassVar[str] = DATA

    data: Annotated[Path | None, Option(metavar="PATH")] = Field(
        default=None,
        description="Images: an .npz or .npy file, a folder of images, flat or with a folder for each class, or "
        "CIFAR's own folder.",
    )


class TestImages(Options):
    """Images to compare on."""

    panel: ClassVar[str] = DATA

    test_data: Annotated[
        Path | None, Option(metavar="PATH", default="the data's test split, else a part of the data")
    ] = Field(
        default=None,
        description="Images to compare the models on. Where neither these nor a test split are there, images beyond "
        "--samples, or a fifth of all, are held back for it.",
    )


class Labels(Options):
    """Whether labels are used."""

    panel: ClassVar[str] = DATA

    labels: bool = Field(default=True, description="Use the labels of the data, where there are any.")


class Quick(Options):
    """A shorter profile."""

    panel: ClassVar[str] = Settings.panel

    quick: bool = Field(default=False, description="Profile on a quarter of the images, and with fewer candidates.")


class Training(Options):
    """Whether a compressed network is fine-tuned."""

    panel: ClassVar[str] = FineTuning.panel

    finetune: bool = Field(
        default=False, description="Train the compressed model on the data, against the original; needs torch."
    )


class Report(Options):
    """The report in a file."""

    panel: ClassVar[str] = "Report"

    report: Annotated[Path | None, Option(metavar="FILE", file=False)] = Field(
        default=None,
        description="Write a report of the run to this file too: a page where its name ends in .html, else JSON, of "
        "which `hmc-onnx report` makes the page.",
    )


class DryRun(Options):
    """A look ahead."""

    panel: ClassVar[str] = "Work"

    dry_run: Annotated[bool, Option(negative=False, file=False)] = Field(
        default=False, description="Show what would be done, and about how long it takes, and do nothing."
    )


class Json(Options):
    """The result for scripts."""

    panel: ClassVar[str] = "Report"

    json_: Annotated[bool, Option(negative=False, file=False)] = Field(
        default=False, description="Print the result on standard output as one JSON document, in place of tables."
    )


RECORDS: tuple[Any, ...] = (
    OutputFile, Metadata, Destination, Against, Config, PlanFile, Teacher, Data, Images, TestImages, Labels, Goal,
    Settings, Quick, Work, Training, FineTuning, Handoff, Report, Json, DryRun,
)  # fmt: skip
GROUPS = [Group(record) for record in RECORDS]
"""All options of all commands."""
