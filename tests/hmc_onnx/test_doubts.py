"""What speaks against serving a compressed network is warned of, and in the report."""

from __future__ import annotations

import warnings

import pytest
from zoo import images, resnet

import hmc_onnx
from calib.data.calibration import CalibrationData
from hmc_onnx.comparison.doubts import with_doubts
from hmc_onnx.comparison.verification import Network, verify
from passes.core.errors import HmcWarning

SETTINGS = hmc_onnx.Settings(samples=16, kl_samples=8, chunk=8, positions=8, provider="cpu", threads=1)
WORK = hmc_onnx.Work(jobs=1)


def data() -> CalibrationData:
    return CalibrationData({"input": images(16, 8)}, None, "noise")


def test_what_speaks_against_serving_a_network_is_said() -> None:
    run = hmc_onnx.Run(resnet((1,), (4,), size=8), data(), SETTINGS.model_copy(update={"precision": "int8"}), WORK)
    found = verify(Network.of(run), Network(run.served_alone), run.data, run.runtime, batches=())
    assert found.unchanged is not None
    (own,), (alone,) = (
        [hmc_onnx.Timing(batch=1, a=1.0, b=share, ratio=share, uncertainty=0.0)] for share in (0.9, 0.5)
    )
    slower = {"timings": [own], "unchanged": found.unchanged.model_copy(update={"timings": [alone]})}
    with pytest.warns(HmcWarning) as warned:
        doubted = with_doubts(found.model_copy(update=slower | {"kl": float("nan")}), run.runtime, 1)
    sentences = [str(w.message) for w in warned]
    said = "takes 0.90 of the original's time at batch 1, and quantising alone, which is the `target` none, gives 0.50"
    assert any(said in s for s in sentences)
    assert any("answers with NaN or infinity" in s for s in sentences)
    assert {*doubted.doubts} <= {*sentences} and len(doubted.doubts) == 2
    assert all(sentence in doubted.explain() for sentence in doubted.doubts)


def test_times_in_float16_on_a_processor_are_said_to_be_none_of_the_targets() -> None:
    run = hmc_onnx.Run(resnet((1,), (4,), size=8), data(), SETTINGS.model_copy(update={"precision": "fp16"}), WORK)
    with pytest.warns(HmcWarning, match="these times are not those of the target"):
        run.verify(run.served_alone)


@pytest.mark.parametrize(
    ("own", "alone", "says"),
    [
        ((0.5, 0.02), (0.48, 0.02), ""),  # within what is not known
        ((0.5, 0.0), (0.4, 0.0), "latency=0.32, gives less"),
        ((1.2, 0.0), (0.4, 0.0), "INT8 is slow here"),
        ((1.2, 0.2), (1.1, 0.1), ""),
        ((1.0, 0.0), (0.9, 0.0), "latency=0.72, gives less"),
    ],
)
def test_a_file_is_called_slow_only_where_that_is_sure(
    own: tuple[float, float], alone: tuple[float, float], says: str
) -> None:
    run = hmc_onnx.Run(resnet((1,), (4,), size=8), data(), SETTINGS.model_copy(update={"precision": "int8"}), WORK)
    found = verify(Network.of(run), Network(run.served_alone), run.data, run.runtime, batches=())
    assert found.unchanged is not None
    (a,), (b,) = ([hmc_onnx.Timing(batch=1, a=1.0, b=t, ratio=t, uncertainty=u)] for t, u in (own, alone))
    timed = {"timings": [a], "unchanged": found.unchanged.model_copy(update={"timings": [b]})}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HmcWarning)
        doubts = with_doubts(found.model_copy(update=timed), run.runtime, 1).doubts
    assert [says in doubt for doubt in doubts] == [True] * bool(says)


@pytest.mark.parametrize(("before", "said"), [(0.5e-3, True), (0.9e-3, False), (2e-3, False), (None, False)])
def test_times_are_doubted_where_the_original_takes_much_longer_than_before(before: float | None, said: bool) -> None:
    run = hmc_onnx.Run(resnet((1,), (4,), size=8), data(), SETTINGS, WORK)
    found = verify(Network.of(run), Network(run.served), run.data, run.runtime, batches=())
    timings = [hmc_onnx.Timing(batch=n, a=float(n), b=0.5 * n, ratio=0.5, uncertainty=0.0) for n in (1, 8)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HmcWarning)
        doubts = with_doubts(found.model_copy(update={"timings": timings}), run.runtime, 1, before).doubts
    assert ["the original took 1 ms at batch 1, and 0.5 ms before" in doubt for doubt in doubts] == [True] * said
