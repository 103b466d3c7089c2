"""Providers: what works is used, what does not is said."""

from __future__ import annotations

import warnings

import numpy as np
import onnxruntime as ort
import pytest
from zoo import images, resnet, run

from calib.runtime.sessions import Runtime, Session, providers
from passes.core.errors import ModelError, SettingsError


@pytest.fixture(scope="module")
def proto():
    return resnet((1,), (4,), size=8)


@pytest.fixture(scope="module")
def cuda_works(proto) -> bool:
    """Whether onnxruntime itself, asked for CUDA, starts it."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        session = ort.InferenceSession(
            proto.SerializeToString(), options, providers=["CUDAExecutionProvider", "CPUExecutionProvider"]
        )
    return "CUDAExecutionProvider" in session.get_providers()


def test_auto_is_cuda_where_it_works_and_else_the_cpu(cuda_works: bool) -> None:
    assert providers("auto") == ["CUDAExecutionProvider"] * cuda_works + ["CPUExecutionProvider"]
    assert providers("cpu") == ["CPUExecutionProvider"]


def test_cuda_starts_or_the_user_is_told_what_to_do(proto, cuda_works: bool) -> None:
    def attempt() -> tuple[list[str], str]:
        try:
            Session(proto, Runtime("cuda")).run({"input": images(2, 8)})
            return providers("cuda"), ""
        except SettingsError as e:
            return [], str(e)

    found, said = attempt()
    assert bool(found) == cuda_works
    if cuda_works:
        assert found == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    else:
        assert said.startswith("provider 'cuda' does not work on this machine")
        assert "install onnxruntime-gpu" in said and "use cpu" in said and "\n" not in said


@pytest.mark.parametrize("use", [providers, lambda choice: Session(resnet((1,), (4,)), Runtime(choice))])
def test_an_unknown_provider_is_a_wrong_setting(use) -> None:
    with pytest.raises(SettingsError, match="unknown provider 'gpu': use auto, or one that onnxruntime has here: cpu"):
        use("gpu")


def test_a_session_gives_the_outputs_asked_for(proto) -> None:
    x = images(3, 8)
    session = Session(proto, Runtime(threads=1))
    assert session.outputs == ["logits"]
    expected = run(proto, x)[0]
    for found in (session.run({"input": x}), session.run({"input": x}, ["logits"])):
        np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-5)


def test_a_profile_has_every_kernel_of_every_run_in_order(proto) -> None:
    session = Session(proto, Runtime(threads=1), profiled=True)
    for _ in range(3):
        session.run({"input": images(2, 8)})
    kernels = session.profile()
    assert len(kernels) % 3 == 0
    runs = np.split(np.arange(len(kernels)), 3)
    names = [[kernels[i].name for i in run] for run in runs]
    assert names[0] == names[1] == names[2]
    ops = [kernels[i].op for i in runs[0]]
    assert ops.count("Conv") + ops.count("FusedConv") == sum(n.op_type == "Conv" for n in proto.graph.node)
    assert ops[-1] in ("Gemm", "FusedGemm")
    assert all(kernel.seconds >= 0 for kernel in kernels)
    assert sum(kernel.seconds for kernel in kernels) > 0


def test_what_onnxruntime_refuses_is_said_in_one_line(proto) -> None:
    broken = type(proto)()
    broken.CopyFrom(proto)
    broken.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ModelError, match=r"\Aonnxruntime cannot load the model: [^\n]+\Z"):
        Session(broken)
    with pytest.raises(ModelError, match=r"\Aonnxruntime cannot run the model: [^\n]+\Z"):
        Session(proto).run({"input": images(1, 8)[:, :2]})
