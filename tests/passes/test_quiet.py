"""graphsurgeon prints no warnings while this package calls it, and its log is as the host process has set it after."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from onnx_graphsurgeon.logger import G_LOGGER
from zoo import Builder

from passes.graph.model import Model
from passes.graph.quiet import quiet
from passes.normal_form.fold_constants import FoldConstants


@pytest.fixture(autouse=True)
def verbose() -> Iterator[None]:
    """The host process wants to see everything."""
    before, G_LOGGER.severity = G_LOGGER.severity, G_LOGGER.VERBOSE
    yield
    G_LOGGER.severity = before


def test_importing_changes_nothing() -> None:
    script = (
        "import logging, onnx_graphsurgeon as gs; before = gs.logger.G_LOGGER.severity; "
        "import hmc_onnx, calib.measure.walk, passes.normal_form.normalise; "
        "assert gs.logger.G_LOGGER.severity == before; assert not logging.getLogger('onnx_graphsurgeon').level; "
        "assert not logging.getLogger('onnxscript.optimizer').level"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_model_is_read_changed_and_written_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    b = Builder()
    weight = b.const(np.ones((3, 3)).astype(ml_dtypes.bfloat16))
    model = Model(b.model(b.node("MatMul", b.node("Cast", "input", to=16), weight), (2, 3)))
    assert np.asarray(model.constants()[0].values).dtype == ml_dtypes.bfloat16
    model.finished()
    assert capsys.readouterr().out == ""
    assert G_LOGGER.severity == G_LOGGER.VERBOSE


def test_the_severity_comes_back_after_contexts_that_overlap() -> None:
    first, second = quiet(), quiet()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert G_LOGGER.severity == G_LOGGER.ERROR
    second.__exit__(None, None, None)
    assert G_LOGGER.severity == G_LOGGER.VERBOSE


def test_constants_are_folded_without_a_word_and_the_log_is_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    b = Builder()
    wrong = b.node("Gather", b.const(np.ones(3, np.float32)), b.const(np.array([7])))  # cannot be evaluated
    proto = b.model(b.node("Add", "input", wrong), (1, 3))
    log = logging.getLogger("onnxscript.optimizer")
    before = log.level
    with caplog.at_level(logging.WARNING):
        FoldConstants()(ir.from_proto(proto))
    assert not caplog.records
    assert log.level == before
