"""What a command reads: models and images, as its options say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx

from calib.data.calibration import CalibrationData
from calib.data.readers import Selection, splits
from hmc_onnx.analysis.held_back import images_to_ask_for
from hmc_onnx.analysis.model_inputs import check_kind, check_varied, load_data, load_selection
from hmc_onnx.cli.groups import Images, Labels, Quick
from hmc_onnx.cli.options import Given
from hmc_onnx.records.plan import HeldBack
from hmc_onnx.records.settings import QUICK, Settings
from passes.graph.external import on_disk
from passes.graph.files import load

__all__ = [
    "calibration_images",
    "images_at",
    "images_to_compare_on",
    "inputs_of",
    "opened",
    "settings_of",
    "supported",
]


def opened(path: Path, given: Given) -> onnx.ModelProto:
    """A model; the weights of a large one are in a temporary file until the command ends."""
    return given.resources.enter_context(on_disk(load(path)))


def supported(path: Path, given: Given) -> onnx.ModelProto:
    """`opened`, of a kind that can be compressed."""
    return check_kind(opened(path, given))


def inputs_of(given: Given, *more: Path) -> list[Path]:
    """The files that a command reads, which no output may replace."""
    named = (given.values.get(name) for name in ("config", "data", "test_data", "latency_table", "plan", "teacher"))
    return [*more, *(Path(path) for path in named if path is not None)]


def settings_of(given: Given, latency: bool = False) -> Settings:
    """The settings of a run; raises SettingsError.

    Args:
        given: the options.
        latency: whether times are measured, whatever the options say.
    """
    set_here = {k: v for k, v in QUICK.items() if k not in given} if given.of(Quick).quick else {}
    return given.of(Settings, **set_here, **({"latency": True} if latency else {}))


def calibration_images(
    proto: onnx.ModelProto, given: Given, settings: Settings, purpose: HeldBack = "nothing"
) -> CalibrationData:
    """The images to calibrate with, and behind them others to hold back for a purpose, as far as there are any.

    Raises:
        DataError: they cannot be read, do not fit the model, or are all alike.
        SettingsError: none were given, or the preprocessing makes no sense.
    """
    more = images_to_ask_for(settings.samples, purpose) - settings.samples
    selection = Selection(settings.samples, settings.seed, more=more)
    data = load_selection(proto, given.need("data"), given.of(Images), selection)
    check_varied(data)
    return _labelled(data, given)


def images_to_compare_on(
    proto: onnx.ModelProto, given: Given, samples: int | None = None, seed: int = 0
) -> CalibrationData | None:
    """Images apart from the calibration images: those named, else the data's own test split, else None.

    Raises:
        DataError: they cannot be read or do not fit the model.
        SettingsError: no data were given, or the preprocessing makes no sense.
    """
    path = given.values.get("test_data")
    if path is None and "test" not in splits(given.need("data")):
        return None
    path = given.values["data"] if path is None else path
    return images_at(path, proto, given, samples, seed)


def images_at(
    path: Path, proto: onnx.ModelProto, given: Given, samples: int | None = None, seed: int = 0
) -> CalibrationData:
    """Images of a path: its test split where it has splits; raises as above."""
    split = "test" if "test" in splits(path) else "train"
    data = load_data(proto, path, given.of(Images), samples=samples, seed=seed, split=split)
    return _labelled(data, given)


def _labelled(data: CalibrationData, given: Given) -> CalibrationData:
    """Images without their labels where the user wants none used."""
    return data if given.of(Labels).labels else replace(data, labels=None)
