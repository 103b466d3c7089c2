"""A model that was exported in training mode is refused in one sentence; on constants alone it is no matter."""

from __future__ import annotations

import numpy as np
import pytest
from zoo import Builder

from hmc_onnx.analysis.model_inputs import check_evaluation_mode
from passes.core.errors import ModelError
from passes.normal_form.normalise import normalise


def test_a_batch_norm_in_training_mode_is_refused() -> None:
    b = Builder()
    model = normalise(b.model(b.batchnorm(b.conv("input", 3, 4), 4, training_mode=1, outputs=3)))
    with pytest.raises(ModelError, match=r"training mode \(BatchNormalization node '.+'\).*model.eval"):
        check_evaluation_mode(model)


@pytest.mark.parametrize("training", [True, False])
def test_a_dropout_that_drops_is_refused(training: bool) -> None:
    b = Builder()
    x = b.node("Dropout", b.conv("input", 3, 4), b.const(np.float32(0.5)), b.const(np.array(training)))
    model = normalise(b.model(x))
    if training:
        with pytest.raises(ModelError, match="training mode"):
            check_evaluation_mode(model)
    else:
        check_evaluation_mode(model)


def test_training_mode_on_a_constant_is_folded_away() -> None:
    b = Builder()
    given = [b.const(np.full(3, v, np.float32)) for v in (1, 0, 0, 1)]
    weight = b.node("BatchNormalization", b.const(b.normal(4, 3, 3, 3)), *given, training_mode=1, outputs=3)
    check_evaluation_mode(normalise(b.model(b.node("Conv", "input", weight))))
