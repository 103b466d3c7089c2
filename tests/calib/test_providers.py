"""Names of execution providers, their options, and what is said where one is not here."""

from __future__ import annotations

import onnxruntime as ort
import pytest
from zoo import resnet

from calib.measure.latency_table import Machine, this_machine
from calib.runtime.providers import known_provider, parse_options, providers
from calib.runtime.sessions import Runtime, Session
from passes.core.errors import SettingsError


@pytest.mark.parametrize(
    ("choice", "name"),
    [
        ("cpu", "CPUExecutionProvider"),
        ("CPUExecutionProvider", "CPUExecutionProvider"),
        ("TensorRT", "TensorrtExecutionProvider"),
        ("openvino", "OpenVINOExecutionProvider"),
        ("OpenVINOExecutionProvider", "OpenVINOExecutionProvider"),
        ("dml", "DmlExecutionProvider"),
        ("directml", "DmlExecutionProvider"),
        ("tensorrt-rtx", "NvTensorRTRTXExecutionProvider"),
        ("nvtensorrtrtx", "NvTensorRTRTXExecutionProvider"),
        ("coreml", "CoreMLExecutionProvider"),
        ("auto", "auto"),
    ],
)
def test_a_provider_has_onnxruntimes_name_and_a_short_one(choice: str, name: str) -> None:
    assert known_provider(choice) == name


@pytest.mark.parametrize("name", ort.get_all_providers())
def test_every_provider_of_onnxruntime_is_known_in_short(name: str) -> None:
    assert known_provider(name.removesuffix("ExecutionProvider").lower()) == name


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ("openvino", "install onnxruntime-openvino in place of"),
        ("dml", "install onnxruntime-directml on Windows in place of"),
        ("cuda", "install onnxruntime-gpu with its CUDA libraries"),
        ("nnapi", "build onnxruntime with it"),
    ],
)
def test_a_known_provider_that_is_not_here_is_refused_with_its_package(
    choice: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from calib.runtime.providers import _start

    _start.cache_clear()
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(SettingsError, match=f"provider '{choice}' does not work on this machine.*{says}.*cpu"):
        providers(choice)
    _start.cache_clear()


@pytest.mark.parametrize("option", ["device_type", "=GPU", ""])
def test_an_option_is_a_key_and_a_value(option: str) -> None:
    with pytest.raises(SettingsError, match=f"`provider_option` '{option}' has no value: write KEY=VALUE"):
        parse_options([option])
    assert parse_options(["a=b=c", "d="]) == {"a": "b=c", "d": ""}


def test_options_are_of_a_provider_that_is_named() -> None:
    with pytest.raises(SettingsError, match="name it with `provider`"):
        providers("auto", ["device_type=GPU"])


def test_sessions_are_given_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    session = ort.InferenceSession

    def recorded(*args, **options):
        given.append(options["providers"])
        return session(*args, **options)

    monkeypatch.setattr(ort, "InferenceSession", recorded)
    Session(resnet((1,), (4,)), Runtime("cpu", options=("arena_extend_strategy=kSameAsRequested",)))
    assert given[-1] == [("CPUExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"})]


@pytest.mark.parametrize(
    ("options", "passed"),
    [
        ((), {"num_of_threads": "3"}),
        (("device_type=CPU",), {"device_type": "CPU", "num_of_threads": "3"}),
        (("device_type=GPU",), {"device_type": "GPU"}),
        (("num_of_threads=2",), {"num_of_threads": "2"}),
    ],
)
def test_openvino_has_the_threads_that_are_asked_for(
    options: tuple[str, ...], passed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calib.runtime.providers._start", lambda *_: None)
    found = Runtime("openvino", 3, options).session_providers()
    assert found == [("OpenVINOExecutionProvider", passed), "CPUExecutionProvider"]


def test_times_are_kept_apart_by_the_options() -> None:
    plain, other = this_machine(Runtime("cpu", 1)), this_machine(Runtime("cpu", 1, ("b=2", "a=1")))
    assert plain != other
    assert str(plain) != str(other)
    assert other == this_machine(Runtime("cpu", 1, ("a=1", "b=2")))
    assert "options" not in plain.model_dump_json()
    assert Machine.model_validate_json(other.model_dump_json()) == other
