"""The command line's options: declared once, shared by the commands, and the same in a YAML file.

A value given on the command line goes before the file's, and the file's before the default.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from passes.core.errors import SettingsError

__all__ = ["Choices", "Run", "merged"]


class StrategyName(str, enum.Enum):
    """HMC, or one of its methods alone."""

    hmc = "hmc"
    nahc = "nahc"
    ahc = "ahc"
    prune = "prune"
    lowrank = "lowrank"


class ProviderName(str, enum.Enum):
    """An onnxruntime execution provider."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    tensorrt = "tensorrt"


class BackendName(str, enum.Enum):
    """Where profiling is done."""

    processes = "processes"
    dask = "dask"
    ray = "ray"


class LayoutName(str, enum.Enum):
    """The order of the axes of an image batch."""

    NCHW = "NCHW"
    NHWC = "NHWC"


class DeviceName(str, enum.Enum):
    """Where torch trains."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class PrecisionName(str, enum.Enum):
    """What torch trains in."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


class BatchnormName(str, enum.Enum):
    """What is done about batch normalisation in training."""

    auto = "auto"
    reinsert = "reinsert"
    frozen = "frozen"
    none = "none"


class OptimizerName(str, enum.Enum):
    """An optimizer of torch's."""

    sgd = "sgd"
    adamw = "adamw"


class AugmentationName(str, enum.Enum):
    """How training images are changed."""

    auto = "auto"
    crop = "crop"
    resized = "resized"
    flip = "flip"
    none = "none"


class Choices:
    """Annotated types of the options."""

    Model = Annotated[Path, typer.Argument(metavar="MODEL", help="The ONNX file.")]
    Output = Annotated[Path, typer.Option("--output", "-o", help="The file to write.")]
    Data = Annotated[
        Optional[Path],  # noqa: UP045  typer reads annotations at run time
        typer.Option(help="Calibration images: an .npz file, a folder of images, or CIFAR's own folder."),
    ]
    TestData = Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Images to compare the models on. Default: the data's test split, if it has one."),
    ]
    Preset = Annotated[Optional[str], typer.Option(help="Preprocessing: cifar10 or imagenet.")]  # noqa: UP045
    Mean = Annotated[
        Optional[tuple[float, float, float]],  # noqa: UP045
        typer.Option(help="Mean of each channel, of images in [0, 1]."),
    ]
    Std = Annotated[
        Optional[tuple[float, float, float]],  # noqa: UP045
        typer.Option(help="Standard deviation of each channel."),
    ]
    Size = Annotated[Optional[tuple[int, int]], typer.Option(help="Height and width of the input.")]  # noqa: UP045
    Layout = Annotated[Optional[LayoutName], typer.Option(help="Axes of the model's input.")]  # noqa: UP045
    Target = Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Share to keep: latency=0.6, macs=0.5, params=0.5, or several with commas."),
    ]
    MaxDrop = Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="In place of a target: the fastest network that loses no more top-1, such as 0.01."),
    ]
    Strategy = Annotated[
        Optional[StrategyName],  # noqa: UP045
        typer.Option(help="hmc chooses freely; the others are its methods alone."),
    ]
    Samples = Annotated[Optional[int], typer.Option(help="Calibration images to use. [1024]")]  # noqa: UP045
    Seed = Annotated[Optional[int], typer.Option(help="Draws the calibration images and positions. [0]")]  # noqa: UP045
    Align = Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            help="Ranks and channel counts are multiples of this. [what pays where latency is measured, else 4]"
        ),
    ]
    Provider = Annotated[Optional[ProviderName], typer.Option(help="Where to run. [auto]")]  # noqa: UP045
    Threads = Annotated[Optional[int], typer.Option(help="Threads of onnxruntime; 0: one for each usable core. [0]")]  # noqa: UP045
    Batch = Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Images a run when serving, which latency is measured at. [what the model declares, or 1]"),
    ]
    LatencyTable = Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Times of another machine, to plan for it: see `hmc-onnx latency measure`."),
    ]
    Latency = Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option(
            "--latency/--no-latency", help="Measure the time of every candidate, to plan for it. [--no-latency]"
        ),
    ]
    Quick = Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option("--quick/--no-quick", help="A quarter of the images and fewer candidates. [--no-quick]"),
    ]
    Exhaustive = Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option("--exhaustive/--no-exhaustive", help="Measure every candidate on all images. [--no-exhaustive]"),
    ]
    WorkDir = Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A folder for all that is measured: a run that was cut off goes on from it."),
    ]
    Memory = Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Gigabytes of activations to hold in memory; more goes to disk. [2]"),
    ]
    Backend = Annotated[
        Optional[BackendName],  # noqa: UP045
        typer.Option(help="Where to profile: processes of this machine, or a cluster. [processes]"),
    ]
    Address = Annotated[Optional[str], typer.Option(help="Of the dask or ray cluster.")]  # noqa: UP045
    Labels = Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option("--labels/--no-labels", help="Use the labels of the data, where there are any. [--labels]"),
    ]
    Finetune = Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option("--finetune/--no-finetune", help="Train the compressed model on the data after. [--no-finetune]"),
    ]
    Epochs = Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Times to go through all images. [10, if no --minutes]"),
    ]
    Minutes = Annotated[Optional[float], typer.Option(help="Time to train for, in place of epochs.")]  # noqa: UP045
    Device = Annotated[Optional[DeviceName], typer.Option(help="Where to train. [auto]")]  # noqa: UP045
    Precision = Annotated[
        Optional[PrecisionName],  # noqa: UP045
        typer.Option(help="What to train in. [auto: what is faster]"),
    ]
    Batchnorm = Annotated[
        Optional[BatchnormName],  # noqa: UP045
        typer.Option(help="Batch normalisation in training: see the docs. [auto]"),
    ]
    Optimizer = Annotated[Optional[OptimizerName], typer.Option(help="Of the training. [sgd]")]  # noqa: UP045
    Rate = Annotated[Optional[float], typer.Option(help="Highest learning rate. [what suits the optimizer]")]  # noqa: UP045
    BatchSize = Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Images a training step, of all processes together. [128]"),
    ]
    Augmentation = Annotated[
        Optional[AugmentationName],  # noqa: UP045
        typer.Option(help="How training images are changed. [auto: as the preset's networks are trained]"),
    ]
    Config = Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A YAML file with options by their names, but for files that are written, and --teacher."),
    ]
    Report = Annotated[Optional[Path], typer.Option(help="Write the comparison as JSON too.")]  # noqa: UP045


def _whole(value: Any) -> bool:
    return type(value) is int  # and not bool


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_whole, value))


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(_whole(v) or isinstance(v, float) for v in value)


# What a YAML file may give: is it that, and how to say so.
_TEXT: tuple[Callable[[Any], bool], str] = (lambda value: isinstance(value, str), "text")
_WHOLE: tuple[Callable[[Any], bool], str] = (_whole, "a whole number")
_NUMBERS: tuple[Callable[[Any], bool], str] = (_numbers, "a list of numbers, one a channel")
_NUMBER: tuple[Callable[[Any], bool], str] = (lambda value: _whole(value) or isinstance(value, float), "a number")
_TRUTH: tuple[Callable[[Any], bool], str] = (lambda value: isinstance(value, bool), "true or false")
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "data": _TEXT,
    "test_data": _TEXT,
    "preset": _TEXT,
    "mean": _NUMBERS,
    "std": _NUMBERS,
    "size": (_sizes, "height and width, as in [32, 32]"),
    "layout": _TEXT,
    "target": (_TEXT[0], "text such as macs=0.5"),
    "strategy": _TEXT,
    "samples": _WHOLE,
    "seed": _WHOLE,
    "align": _WHOLE,
    "provider": _TEXT,
    "threads": _WHOLE,
    "batch": _WHOLE,
    "latency_table": _TEXT,
    "latency": _TRUTH,
    "max_drop": _NUMBER,
    "quick": _TRUTH,
    "exhaustive": _TRUTH,
    "work_dir": _TEXT,
    "memory": _NUMBER,
    "backend": _TEXT,
    "address": _TEXT,
    "labels": _TRUTH,
    "finetune": _TRUTH,
    "epochs": _NUMBER,
    "minutes": _NUMBER,
    "device": _TEXT,
    "precision": _TEXT,
    "batchnorm": _TEXT,
    "optimizer": _TEXT,
    "rate": _NUMBER,
    "batch_size": _WHOLE,
    "augmentation": _TEXT,
}


class Run:
    """The options of one call after merging: an attribute each, None where nothing was given."""

    NAMES = frozenset(_KINDS)

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __getattr__(self, name: str) -> Any:
        return self._values.get(name)

    def need(self, name: str) -> Any:
        """A value that the command cannot do without.

        Raises:
            SettingsError: it was not given.
        """
        if self._values.get(name) is None:
            option = "--" + name.replace("_", "-")
            raise SettingsError(f"{option} is missing: give it on the command line or in the --config file")
        return self._values[name]


def merged(config: Path | None, **given: Any) -> Run:
    """Options from the command line over those of a YAML file.

    Raises:
        SettingsError: the file cannot be read, or holds something else than options.
    """
    values: dict[str, Any] = {}
    if config is not None:
        values = _read_yaml(config)
        unknown = sorted(set(values) - Run.NAMES)
        if unknown:
            raise SettingsError(
                f"'{config}' has an unknown option '{unknown[0]}': known are {', '.join(sorted(Run.NAMES))}"
            )
        for name, value in values.items():
            fits, what = _KINDS[name]
            if value is not None and not fits(value):
                raise SettingsError(f"'{config}' has {value!r} for the option '{name}': write {what}")
    for name, value in given.items():
        if value is not None:
            values[name] = value.value if isinstance(value, enum.Enum) else value
    return Run(values)


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as e:
        raise SettingsError(
            f"cannot read the settings '{path}' ({getattr(e, 'strerror', None) or e}): give a YAML file"
        ) from e
    except yaml.YAMLError as e:
        raise SettingsError(
            f"'{path}' is not valid YAML ({' '.join(str(e).split())}): write one 'name: value' a line"
        ) from e
    if not isinstance(content, dict):
        raise SettingsError(f"'{path}' holds no options: write one 'name: value' a line")
    return {str(k).replace("-", "_"): v for k, v in content.items()}
