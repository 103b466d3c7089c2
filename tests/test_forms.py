"""The forms that other tests read are sound: valid, and the same function as what torch exported."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from exported import exported
from forms import FORMS
from zoo import run

NAMES = (
    "resnet18-torchscript-13",
    "resnet50-torchscript-13",
    "resnet50-torchscript-17-bn",
    "resnet20a-dynamo-18",
    "resnet20a-torchscript-17-bn",
    "resnet20c-torchscript-13",
    "preresnet50-torchscript-13",
    "seresnet18-torchscript-13",
    "seresnet50-torchscript-17-bn",
    "resnext50-dynamo-23",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", FORMS)
def test_the_form_is_valid_and_the_same_function(form: str, name: str) -> None:
    source = exported(name)
    model = FORMS[form](source)
    onnx.checker.check_model(model, full_check=True)
    assert model == FORMS[form](source)
    (image,), (formed,) = source.graph.input, model.graph.input
    shape = [dim.dim_value for dim in image.type.tensor_type.shape.dim[1:]]
    for batch in (1, 3):
        images = np.random.default_rng(0).normal(size=(batch, *shape)).astype(np.float32)
        (expected,) = run(source, {image.name: images})
        turned = images.transpose(0, 2, 3, 1) if form == "tf2onnx" else images
        (actual,) = run(model, {formed.name: np.ascontiguousarray(turned)})
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
