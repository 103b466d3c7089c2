"""What a command's options stand for: settings, images, tables and places."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hmc_onnx.cli.options import BackendName, Run, StrategyName

if TYPE_CHECKING:
    import onnx

    from calib.data.calibration import CalibrationData
    from calib.data.preprocess import Preprocess
    from hmc_onnx.finetune.options import FineTuning
    from hmc_onnx.records.goal import Goal
    from hmc_onnx.records.settings import Settings
    from hmc_onnx.records.work import Work
    from passes.core.progress import Progress

_T = TypeVar("_T")

__all__ = [
    "calibration_data",
    "comparison_data",
    "finetuning_of",
    "goal_of",
    "images_of",
    "inputs_of",
    "labelled",
    "opened",
    "options_of",
    "preprocess_of",
    "read_images",
    "resources",
    "settings_of",
    "strategy_of",
    "supported",
    "validated",
    "work_of",
]


resources = ExitStack()  # what a command holds until it ends


def opened(path: Path) -> onnx.ModelProto:
    """A model; the weights of a large one are in a temporary file until the command ends."""
    from passes.graph.external import on_disk
    from passes.graph.files import load

    return resources.enter_context(on_disk(load(path)))


def supported(path: Path) -> onnx.ModelProto:
    """`opened`, of a kind that can be compressed."""
    from hmc_onnx.analysis.model_inputs import check_kind

    return check_kind(opened(path))


def options_of(given: dict[str, Any]) -> dict[str, Any]:
    """The options of a command that a YAML file may hold too."""
    return {k: v for k, v in given.items() if k in Run.NAMES}


def inputs_of(first: Path, config: Path | None, run: Run) -> list[Path]:
    """The files that a command reads, which no output may replace."""
    return [Path(p) for p in (first, config, run.data, run.test_data, run.latency_table) if p is not None]


def settings_of(run: Run) -> Settings:
    """The settings of a run; raises SettingsError."""
    from hmc_onnx.records.settings import QUICK, Settings

    names = ("samples", "seed", "align", "provider", "threads", "batch", "exhaustive")
    given = {n: getattr(run, n) for n in names if getattr(run, n) is not None}
    if run.latency_table is not None:
        given["latency_table"] = Path(run.latency_table)
    return validated(Settings, QUICK | given if run.quick else given)


def validated(kind: type[_T], given: dict[str, Any]) -> _T:
    """A record of settings; raises SettingsError that names the option."""
    from pydantic import ValidationError

    from passes.core.errors import SettingsError

    try:
        return kind(**given)
    except ValidationError as e:
        problem = e.errors()[0]
        option = "--" + "-".join(str(problem["loc"][0]).split("_"))
        raise SettingsError(f"{option} {problem['input']}: {problem['msg'].lower()}") from e


def finetuning_of(run: Run) -> FineTuning:
    """How to fine-tune; raises SettingsError."""
    from hmc_onnx.finetune.options import FineTuning

    names = ("epochs", "minutes", "device", "precision", "batchnorm", "optimizer", "rate", "batch_size")
    given = {n: getattr(run, n) for n in (*names, "augmentation", "seed") if getattr(run, n) is not None}
    if run.labels is False:
        given["labels"] = 0.0
    return validated(FineTuning, given)


def goal_of(run: Run) -> Goal:
    """What to compress for; raises SettingsError."""
    from hmc_onnx.records.goal import Goal, parse_target
    from passes.core.errors import SettingsError

    if run.target is not None and run.max_drop is not None:
        raise SettingsError("--target and --max-drop were both given: give one")
    if run.max_drop is not None:
        return validated(Goal, {"max_drop": run.max_drop, "strategy": strategy_of(run)})
    return Goal(target=parse_target(str(run.need("target"))), strategy=strategy_of(run))


def work_of(run: Run, progress: Progress) -> Work:
    """Where the work is done; raises SettingsError."""
    from hmc_onnx.records.work import Work
    from passes.core.errors import SettingsError

    backend: Any = run.backend or "processes"
    if backend not in BackendName.__members__:
        raise SettingsError(f"unknown backend '{backend}': use {', '.join(BackendName.__members__)}")
    if run.address is not None and backend == "processes":
        raise SettingsError("--address goes with a cluster: give --backend dask or --backend ray, too")
    if run.memory is not None and not 0 < run.memory < math.inf:
        raise SettingsError(f"--memory {run.memory:g}: give gigabytes, above 0")
    folder = None if run.work_dir is None else Path(run.work_dir)
    memory = 2.0 if run.memory is None else float(run.memory)
    return Work(work_dir=folder, backend=backend, address=run.address, memory=memory, progress=progress)


def strategy_of(run: Run) -> Any:
    """The strategy; raises SettingsError."""
    from passes.core.errors import SettingsError

    name = run.strategy or "hmc"
    if name not in StrategyName.__members__:
        raise SettingsError(f"unknown strategy '{name}': use {', '.join(StrategyName.__members__)}")
    return name


def preprocess_of(run: Run) -> Preprocess:
    """How images become the model's input."""
    from hmc_onnx.analysis.model_inputs import preprocessing

    def numbers(value: Any) -> Any:
        return None if value is None else tuple(value)

    return preprocessing(
        run.preset, mean=numbers(run.mean), std=numbers(run.std), size=numbers(run.size), layout=run.layout
    )


def read_images(
    proto: onnx.ModelProto, run: Run, path: Any, samples: int | None, seed: int, split: str
) -> CalibrationData:
    """Images that fit the model, of a path."""
    from hmc_onnx.analysis.model_inputs import load_data

    return load_data(proto, Path(path), preprocess_of(run), samples=samples, seed=seed, split=split)


def calibration_data(proto: onnx.ModelProto, run: Run, settings: Settings) -> CalibrationData:
    """The images to calibrate with, and to search with."""
    from hmc_onnx.analysis.model_inputs import check_varied

    samples = settings.samples if run.max_drop is None else 2 * settings.samples  # a half to search with
    data = read_images(proto, run, run.need("data"), samples, settings.seed, "train")
    check_varied(data)
    return data


def images_of(proto: onnx.ModelProto, run: Run, settings: Settings) -> tuple[CalibrationData, CalibrationData | None]:
    """The images to calibrate with, and those to compare on."""
    test = comparison_data(proto, run, run.test_data)
    return labelled(calibration_data(proto, run, settings), run), None if test is None else labelled(test, run)


def labelled(data: CalibrationData, run: Run) -> CalibrationData:
    """Images to compare on, without their labels if the user wants no accuracy."""
    from dataclasses import replace

    return data if run.labels is not False else replace(data, labels=None)


def comparison_data(
    proto: onnx.ModelProto, run: Run, path: Any, samples: int | None = None, seed: int = 0
) -> CalibrationData | None:
    """Images to compare on: those named, else the data's own test split, else None."""
    from calib.data.readers import splits

    if path is None:
        if "test" not in splits(Path(run.need("data"))):
            return None
        path = run.data
    return read_images(proto, run, path, samples, seed, "test" if "test" in splits(Path(path)) else "train")
