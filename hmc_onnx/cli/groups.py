"""The groups of options, and the records of those that only the command line has: files and images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from hmc_onnx.cli.options import Group
from hmc_onnx.finetune.options import FineTuning
from hmc_onnx.records.goal import Goal
from hmc_onnx.records.options import Option, Options
from hmc_onnx.records.settings import Settings
from hmc_onnx.records.work import Work

if TYPE_CHECKING:
    from calib.data.preprocess import Preprocess

__all__ = [
    "GROUPS",
    "Config",
    "Images",
    "Labels",
    "Output",
    "PlanFile",
    "Quick",
    "Report",
    "Teacher",
    "TestImages",
    "Training",
]

FILES, DATA = "Model and files", "Data and preprocessing"


class Output(Options):
    """The file that a command makes."""

    panel: ClassVar[str] = FILES

    output: Annotated[Path, Option(short="-o", metavar="FILE", file=False)] = Field(description="The file to write.")


class Config(Options):
    """A file of options."""

    panel: ClassVar[str] = FILES

    config: Annotated[Path | None, Option(metavar="FILE", file=False)] = Field(
        default=None,
        description="YAML file that holds options by their names, such as target: macs=0.5. What is given on the "
        "command line goes before it.",
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


class Images(Options):
    """Images, and how they become the model's input."""

    panel: ClassVar[str] = DATA

    data: Annotated[Path | None, Option(metavar="PATH")] = Field(
        default=None,
        description="Images: an .npz file, a folder of images, flat or with a folder for each class, or CIFAR's own "
        "folder.",
    )
    preset: Annotated[
        Literal["cifar10", "imagenet"] | None, Option(default="images are scaled to [0, 1] and nothing else")
    ] = Field(default=None, description="Size, mean and standard deviation that the model was trained with.")
    mean: Annotated[
        tuple[float, ...] | None,
        Option(given=tuple[float, float, float], metavar="R G B", default="the preset's", example="[0.5, 0.5, 0.5]"),
    ] = Field(default=None, description="Mean of each channel of images that are scaled to [0, 1].")
    std: Annotated[
        tuple[float, ...] | None,
        Option(given=tuple[float, float, float], metavar="R G B", default="the preset's", example="[0.2, 0.2, 0.2]"),
    ] = Field(default=None, description="Standard deviation of each channel of images that are scaled to [0, 1].")
    size: Annotated[
        tuple[int, int] | None, Option(metavar="H W", default="the preset's, or that of the images", example="[32, 32]")
    ] = Field(default=None, description="Height and width of the model's input.")
    layout: Annotated[Literal["NCHW", "NHWC"] | None, Option(default="NCHW")] = Field(
        default=None, description="Order of the axes of the model's input."
    )

    def preprocess(self) -> Preprocess:
        """How an image becomes the model's input; raises SettingsError."""
        from hmc_onnx.analysis.model_inputs import preprocessing

        return preprocessing(self.preset, mean=self.mean, std=self.std, size=self.size, layout=self.layout)


class TestImages(Options):
    """Images to compare on."""

    panel: ClassVar[str] = DATA

    test_data: Annotated[Path | None, Option(metavar="PATH", default="the data's test split, or else the data")] = (
        Field(default=None, description="Images to compare the models on.")
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
    """The comparison in a file."""

    panel: ClassVar[str] = "Report"

    report: Annotated[Path | None, Option(metavar="FILE", file=False)] = Field(
        default=None, description="Write the comparison of the models to this file too, as JSON."
    )


RECORDS: tuple[Any, ...] = (
    Output, Config, PlanFile, Teacher, Images, TestImages, Labels, Goal, Settings, Quick, Work, Training, FineTuning,
    Report,
)  # fmt: skip
GROUPS = [Group(record) for record in RECORDS]
"""All options of all commands."""
