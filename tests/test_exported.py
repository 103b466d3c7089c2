"""The exports that other tests read are sound: valid, runnable, with outputs that tell images apart."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from exported import exported, names


@pytest.mark.parametrize("name", names())
def test_the_export_is_valid_and_runs(name: str) -> None:
    model = exported(name)
    onnx.checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    images = np.random.default_rng(0).normal(size=(2, *image.shape[1:])).astype(np.float32)
    (both,) = session.run(None, {image.name: images})
    (one,) = session.run(None, {image.name: images[:1]})
    assert both.shape == (2, 10) and one.shape == (1, 10)
    np.testing.assert_allclose(one, both[:1], rtol=1e-3, atol=1e-4)
    assert np.abs(both).max() < 1e4
    assert np.abs(both[0] - both[1]).max() > 1e-2 * np.abs(both).max()
