"""Weights left in a file: the same model, the same bytes when it is written, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from zoo import assert_same, images, resnet

import passes.graph.external
from calib.runtime.sessions import Session
from passes.core.errors import OutputError
from passes.graph.external import brought_in, bytes_held, content, is_external, on_disk, pages_let_go
from passes.graph.files import save
from passes.graph.model import Model, digest
from passes.graph.protos import SMALL, byte_size, check
from passes.normal_form.normalise import normalise


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes.graph.external, "LARGE", 0)
    monkeypatch.setattr(passes.graph.external, "LARGE_TENSOR", 4 * SMALL)


def place(proto: onnx.ModelProto) -> Path:
    """The one file that a model refers to."""
    (found,) = {t.external_data[0].value for t in proto.graph.initializer if is_external(t)}
    return Path(found)


@pytest.mark.usefixtures("everything_is_large")
def test_a_model_is_the_same_with_its_weights_on_disk(tmp_path: Path) -> None:
    proto = resnet((1, 1), (8, 16))
    with on_disk(proto) as light:
        assert any(map(is_external, light.graph.initializer))
        assert bytes_held(light) < bytes_held(proto)
        check(light)
        assert brought_in(light) == proto
        assert brought_in(proto) is proto
        assert normalise(light).digest() == normalise(proto).digest()
        feeds = {"input": images()}
        for timed in (True, False):
            assert_same(Session(light, timed=timed).run(feeds), Session(proto).run(feeds))
        save(light, tmp_path / "light.onnx")
        save(proto, tmp_path / "plain.onnx")
        file = place(light)
    assert (tmp_path / "light.onnx").read_bytes() == (tmp_path / "plain.onnx").read_bytes()
    assert not file.exists()


@pytest.mark.usefixtures("everything_is_large")
def test_weights_stay_on_disk_though_they_are_read_until_they_are_replaced() -> None:
    with on_disk(resnet((1, 1), (8, 16))) as light:
        model = Model(light)
        read = {t.name: np.array(t.values) for t in model.constants()}
        proto = model.to_proto()
        assert {t.name for t in proto.graph.initializer if is_external(t)} == {
            t.name for t in light.graph.initializer if is_external(t)
        }
        for tensor in proto.graph.initializer:
            np.testing.assert_array_equal(
                np.frombuffer(content(tensor), read[tensor.name].dtype), read[tensor.name].flat
            )
        changed = next(t for t in model.constants() if t.values.ndim == 4)
        changed.values = changed.values[::-1] * 2  # what is made of a weight in a file is not taken for it
        after = {t.name: t for t in model.to_proto().graph.initializer}
        assert not is_external(after[changed.name])
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(after[changed.name]), read[changed.name][::-1] * 2)
        view = next(t for t in model.constants() if is_external(after[t.name]) and t.values.ndim == 4)
        view.values = view.values[::-1]
        after = {t.name: t for t in model.to_proto().graph.initializer}
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(after[view.name]), read[view.name][::-1])


def test_a_small_model_stays_as_it_is() -> None:
    proto = resnet((1,), (8,))
    with on_disk(proto) as same:
        assert same is proto


@pytest.mark.usefixtures("everything_is_large")
def test_a_model_on_disk_stays_there() -> None:
    with on_disk(resnet((1,), (8,))) as light:
        with on_disk(light) as again:
            assert again is light
        assert place(light).exists()


@pytest.mark.usefixtures("everything_is_large")
def test_no_room_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(passes.graph.external, "refer", full)
    proto = resnet((1,), (8,))
    refused = pytest.raises(OutputError, match=r"weights to '.+' \(No space left on device\): make room, or set TMPDIR")
    with refused, on_disk(proto):
        pass


def test_the_digest_is_of_the_values_and_not_of_how_they_are_kept() -> None:
    proto, listed = resnet((1,), (8,)), resnet((1,), (8,))
    for tensor in listed.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.float_data.extend(onnx.numpy_helper.to_array(tensor).ravel())
            tensor.ClearField("raw_data")
    assert digest(listed) == digest(proto) != digest(resnet((1,), (8,), seed=1))


@pytest.mark.parametrize("element", ["FLOAT16", "BFLOAT16", "DOUBLE"])
@pytest.mark.usefixtures("everything_is_large")
def test_weights_of_other_types(element: str) -> None:
    proto = resnet((1,), (8,))
    for tensor in proto.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        kind = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.DataType.Value(element))
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(kind), tensor.name))
    with on_disk(proto) as light:
        for constant in Model(light).constants():
            (tensor,) = (t for t in proto.graph.initializer if t.name == constant.name)
            np.testing.assert_array_equal(constant.values, onnx.numpy_helper.to_array(tensor))


@pytest.mark.usefixtures("everything_is_large")
def test_the_size_of_a_model_counts_what_is_on_disk() -> None:
    proto = resnet((1, 1), (16, 32))
    with on_disk(proto) as light:
        assert byte_size(light) == pytest.approx(byte_size(proto), rel=0.05)


@pytest.mark.usefixtures("everything_is_large")
def test_weights_can_be_read_when_their_pages_were_let_go() -> None:
    proto = resnet((1, 1), (8, 16))
    with on_disk(proto) as light:
        graph = Model(light)
        held = [t.values for t in graph.constants()]
        before = [np.array(values) for values in held]
        assert len(passes.graph.external.MAPPED) >= sum(map(is_external, light.graph.initializer)) > 0
        pages_let_go()
        for values, expected in zip(held, before, strict=True):
            np.testing.assert_array_equal(values, expected)
