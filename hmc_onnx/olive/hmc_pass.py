"""The pass: a model and images of an Olive workflow in, a compressed model out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from olive.common.config_utils import validate_config
from olive.data.config import DataConfig
from olive.hardware import AcceleratorSpec
from olive.logging import get_olive_logger
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.passes import Pass
from olive.passes.onnx.common import get_external_data_config, model_proto_to_olive_model
from olive.passes.pass_config import BasePassConfig, PassConfigParam

from hmc_onnx.api import compress
from hmc_onnx.cli.console import progress_lines
from hmc_onnx.cli.reading import settings_of
from hmc_onnx.olive.options import check_names, given_options, options
from hmc_onnx.records.goal import Goal
from hmc_onnx.records.work import Work
from passes.core.errors import HmcError

__all__ = ["HmcCompress"]

# Olive shows what is logged below its own name.
logger = get_olive_logger().getChild("hmc_onnx")


class HmcCompress(Pass):
    """Make a ResNet smaller and faster: each layer is pruned, decomposed, both or neither.

    Its options are those of `hmc-onnx compress`, by the names that a YAML file has, and Olive's own for weights in a
    file beside the model. `data_config` names the images: batches as Olive's evaluators take them, a dict of arrays by
    input name, with or without labels.

    Raises:
        ValueError: a mistake of the user's, in one sentence. It is the error that ends a workflow, or a step of a
            search; Olive would only log others, and end as if all were well.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        return {
            "data_config": PassConfigParam(
                type_=DataConfig | dict,
                required=True,
                description="Calibration images: the first `samples` of them, and more to compare on, are taken.",
            ),
            **{
                name: PassConfigParam(type_=option.type, default_value=None, description=option.help)
                for name, option in options().items()
            },
            **get_external_data_config(),
        }

    @classmethod
    def get_config_params(
        cls,
        accelerator_spec: AcceleratorSpec,
        config: dict[str, Any] | None = None,
        disable_search: bool | None = False,
    ) -> Any:
        """As of the base class, with names that are no options refused."""
        with _one_sentence():
            check_names(dict(config or {}), cls.default_config(accelerator_spec))
        return super().get_config_params(accelerator_spec, config, disable_search)

    @staticmethod
    def is_accelerator_agnostic(accelerator_spec: AcceleratorSpec) -> bool:
        """False: widths, and times, are those of the provider."""
        return False

    def _run_for_config(
        self, model: ONNXModelHandler, config: BasePassConfig, output_model_path: str
    ) -> ONNXModelHandler:
        with _one_sentence():
            given = given_options(config.model_dump(), self.accelerator_spec.execution_provider)
            goal = given.of(Goal)
            settings, work = settings_of(given), given.of(Work, progress=progress_lines(logger.info))
            images = validate_config(config.data_config, DataConfig).to_data_container().create_dataloader()
            result = compress(model.model_path, images, goal, settings=settings, work=work)
        logger.info("Compressed.\n%s", result)
        path = resolve_onnx_path(output_model_path, Path(model.model_path).name)
        return model_proto_to_olive_model(result.model, path, config)


@contextmanager
def _one_sentence() -> Iterator[None]:
    try:
        yield
    except HmcError as e:
        raise ValueError(str(e)) from None
