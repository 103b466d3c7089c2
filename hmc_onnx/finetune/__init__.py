"""Fine-tuning in torch: a compressed ONNX graph is trained against the original; its initializers get the new values.

This package can be called: `hmc_onnx.finetune(compressed, original, data)` calls the function `finetune` below. torch
is imported when it is needed; it comes with the extra `finetune`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import onnx

from hmc_onnx.callable_package import make_callable
from hmc_onnx.finetune.options import FineTuning
from hmc_onnx.finetune.result import FineTuned
from hmc_onnx.records.work import HERE, Work
from passes.core.errors import SettingsError

if TYPE_CHECKING:
    from calib.data.calibration import CalibrationData, CalibrationDataReader
    from calib.data.preprocess import Preprocess
    from hmc_onnx.records.images import Images

__all__ = ["FineTuned", "FineTuning", "finetune", "with_torch"]


def finetune(
    model: onnx.ModelProto | str | os.PathLike[str],
    teacher: onnx.ModelProto | str | os.PathLike[str],
    data: CalibrationData | CalibrationDataReader | Iterable[Any] | str | os.PathLike[str],
    *,
    preprocess: Preprocess | Images | None = None,
    options: FineTuning | None = None,
    work: Work = HERE,
) -> FineTuned:
    """Train a compressed model against the original; only the values of its initializers change.

    Args:
        model: the compressed model, or its path; it has one input.
        teacher: the original model, or its path.
        data: images to train on: a path as for `load_data`, whose images are read when they are needed, or Python
            objects as for `compress`, which are held in memory. Labels are used if there are any.
        preprocess: the networks' preprocessing in deployment, for images of a path; or `Images`, which also says how
            labels become class numbers, and whether unreadable files are left out. Default: scaled to [0, 1].
        options: see `FineTuning`; default: ten epochs.
        work: its `work_dir` holds checkpoints, from which an interrupted run continues.

    Returns:
        The fine-tuned model and the results of each epoch. Its loss on held-out images is never above the initial one.

    Raises:
        SettingsError: torch is not installed, the device does not work, or `work_dir` belongs to another run.
        ModelError: the signatures differ, or fine-tuning does not support an operator.
        DataError: the data do not fit the model, or are too few.
    """
    return with_torch().finetune_models(model, teacher, data, preprocess, options or FineTuning(), work)


def with_torch() -> Any:
    """The module `tuning`, which needs torch.

    Raises:
        SettingsError: torch is not installed.
    """
    try:
        import torch  # noqa: F401, PLC0415
    except ImportError as e:
        raise SettingsError("fine-tuning needs torch, which is not installed: pip install 'hmc-onnx[finetune]'") from e
    from hmc_onnx.finetune import tuning  # noqa: PLC0415

    return tuning


make_callable(__name__, finetune)
