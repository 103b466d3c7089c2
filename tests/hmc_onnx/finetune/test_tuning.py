"""Fine-tuning from one ONNX file to another: what changes, what does not, and that a run which was cut off goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from zoo import Builder, resnet

import hmc_onnx
from calib.data.preprocess import Preprocess
from calib.data.sources import ReadyTensors
from calib.runtime.quantisation import quantise_for_timing
from calib.runtime.sessions import Session
from hmc_onnx import FineTuning, Work
from hmc_onnx.finetune import trainer, tuning
from hmc_onnx.finetune.images import Batch
from hmc_onnx.finetune.processes import TrainingProcesses
from hmc_onnx.finetune.trainer import Trainer
from passes.core.errors import DataError, HmcError, ModelError, SettingsError

SIZE, COUNT = 16, 580
OPTIONS = FineTuning(epochs=2, batch_size=40, device="cpu", train_in="fp32", labels=0, rate=0.02)


def worn(proto: onnx.ModelProto, share: float = 0.5) -> onnx.ModelProto:
    """A copy whose weights have lost some of what they were."""
    copy, rng = onnx.ModelProto(), np.random.default_rng(1)
    copy.CopyFrom(proto)
    for tensor in copy.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.ndim == 4:
            noise = share * value.std() * rng.standard_normal(value.shape)
            tensor.CopyFrom(numpy_helper.from_array((value + noise).astype(np.float32), tensor.name))
    return copy


@pytest.fixture(scope="module")
def teacher() -> onnx.ModelProto:
    return resnet((1, 1), (8, 16), size=SIZE)


@pytest.fixture(scope="module")
def student(teacher: onnx.ModelProto) -> onnx.ModelProto:
    return worn(teacher)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, teacher: onnx.ModelProto) -> Path:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (COUNT, 3, SIZE, SIZE), np.uint8)
    scores = Session(teacher).run({"input": (pixels / 255).astype(np.float32)})[0]
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, images=pixels, labels=scores.argmax(1))
    return path


def values(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


def same_but_for_values(a: onnx.ModelProto, b: onnx.ModelProto) -> bool:
    copy = onnx.ModelProto()
    copy.CopyFrom(a)
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(b.graph.initializer)
    return copy == b and [(t.name, t.dims, t.data_type) for t in a.graph.initializer] == [
        (t.name, t.dims, t.data_type) for t in b.graph.initializer
    ]


@pytest.mark.parametrize("batchnorm", ["auto", "frozen", "none"])
def test_it_comes_nearer_to_the_original_and_changes_values_alone(
    student: onnx.ModelProto, teacher: onnx.ModelProto, data: Path, batchnorm: str
) -> None:
    options = OPTIONS.model_copy(update={"batchnorm": batchnorm, "epochs": 4})
    tuned = hmc_onnx.finetune(student, teacher, data, options=options)
    assert tuned.stopped is None and [e.epoch for e in tuned.history] == [0, 1, 2, 3, 4]
    assert tuned.history[-1].held < 0.7 * tuned.history[0].held
    assert same_but_for_values(student, tuned.model)
    x = np.load(data)["images"] / np.float32(255)
    answer, before, after = (Session(m).run({"input": x})[0] for m in (teacher, student, tuned.model))
    assert np.abs(after - answer).mean() < 0.8 * np.abs(before - answer).mean()


def test_a_graph_that_has_batch_normalisation_trains_its_own(data: Path) -> None:
    teacher = resnet((1, 1), (8, 16), size=SIZE, batchnorm="nodes")
    student = worn(teacher)
    tuned = hmc_onnx.finetune(student, teacher, data, options=OPTIONS.model_copy(update={"epochs": 6}))
    assert tuned.history[-1].held < tuned.history[0].held
    assert same_but_for_values(student, tuned.model)
    before, after = values(student), values(tuned.model)
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert {n for n in before if n.endswith(("running_mean", "running_var", "bn.weight"))} <= changed
    frozen = hmc_onnx.finetune(student, teacher, data, options=OPTIONS.model_copy(update={"batchnorm": "frozen"}))
    after = values(frozen.model)
    assert all((before[n] == after[n]).all() for n in before if "running" in n)


def test_a_network_near_the_original_follows_what_that_does_within(teacher: onnx.ModelProto, data: Path) -> None:
    near = worn(teacher, 0.1)
    options = FineTuning(epochs=20, batch_size=40, device="cpu", train_in="fp32")
    tuned = hmc_onnx.finetune(near, teacher, data, options=options)
    assert same_but_for_values(near, tuned.model)
    sums = [n.output[0] for n in teacher.graph.node if n.op_type == "Add"]
    x = {"input": np.load(data)["images"] / np.float32(255)}
    answers, before, after = (Session(exposing(m, sums)).run(x, sums) for m in (teacher, near, tuned.model))
    for answer, ours, theirs in zip(answers, before, after, strict=True):
        assert ((theirs - answer) ** 2).mean() < 0.8 * ((ours - answer) ** 2).mean()
    assert {n: v.tobytes() for n, v in values(tuned.model).items()} != {n: v.tobytes() for n, v in values(near).items()}


def exposing(proto: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """A copy with more outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    return copy


def test_hints_are_sums_of_one_name_and_shape_that_are_close(
    teacher: onnx.ModelProto, student: onnx.ModelProto
) -> None:
    batch = Batch(torch.from_numpy(np.random.default_rng(0).random((8, 3, SIZE, SIZE), np.float32)), None)
    sums = [n.output[0] for n in teacher.graph.node if n.op_type == "Add"]
    assert sums and tuning._hints(teacher, teacher, batch) == dict.fromkeys(sums, 0.0)
    assert tuning._hints(resnet((1, 1), (4, 8), size=SIZE), teacher, batch) == {}  # of other widths
    assert tuning._hints(resnet((1, 1), (8, 16), size=SIZE, seed=1), teacher, batch) == {}  # another network
    errors = tuning._hints(worn(teacher, 0.1), teacher, batch)
    assert list(errors) == sums and all(0 < e < tuning.NEAR for e in errors.values())


def test_what_is_left_open_is_set_by_how_near_the_network_is_and_what_was_asked_for_is_kept() -> None:
    near, far = FineTuning().settled(near=True), FineTuning().settled(near=False)
    assert (near.batchnorm, far.batchnorm) == ("frozen", "reinsert")
    assert near.hints and not far.hints and near.rate and far.rate and near.rate < far.rate
    own = FineTuning(batchnorm="none", rate=0.1, hints=0.5, labels=0.2)
    assert own.settled(near=True) == own.settled(near=False) == own


def test_the_same_seed_gives_the_same_file(student: onnx.ModelProto, teacher: onnx.ModelProto, data: Path) -> None:
    first, second, other = (
        hmc_onnx.finetune(student, teacher, data, options=OPTIONS.model_copy(update={"seed": seed})).model
        for seed in (0, 0, 1)
    )
    assert first == second != other


def test_it_is_never_worse_than_it_was(teacher: onnx.ModelProto, data: Path) -> None:
    tuned = hmc_onnx.finetune(teacher, teacher, data, options=OPTIONS.model_copy(update={"rate": 3.0}))
    assert min(e.held for e in tuned.history) == tuned.history[0].held
    assert tuned.model == teacher


@pytest.mark.parametrize(("images", "held"), [(40, 20), (300, 150), (1000, 200), (10_000, 500), (60_000, 2500)])
def test_of_few_images_half_are_held_back_as_fewer_tell_nothing(images: int, held: int) -> None:
    source = ReadyTensors(np.zeros((images, 1), np.float32), None)
    plain = Preprocess(None, None, (0.0,) * 3, (1.0,) * 3)
    parts = tuning._split(source, plain, OPTIONS, TrainingProcesses(0, 1, torch.device("cpu")))
    assert [len(part) for part in parts] == [images - held, held]
    assert len({*parts[0].indices, *parts[1].indices}) == images


def test_python_readers_do(student: onnx.ModelProto, teacher: onnx.ModelProto, data: Path) -> None:
    x = np.load(data)["images"] / np.float32(255)
    tuned = hmc_onnx.finetune(student, teacher, [x[:200], x[200:]], options=OPTIONS)
    assert tuned.history[-1].held < tuned.history[0].held


def test_minutes_end_it(student: onnx.ModelProto, teacher: onnx.ModelProto, data: Path) -> None:
    options = OPTIONS.model_copy(update={"epochs": None, "minutes": 0.02})
    tuned = hmc_onnx.finetune(student, teacher, data, options=options)
    assert tuned.history[-1].epoch >= 1 and tuned.history[-1].seconds >= 1.2


def test_a_run_that_was_cut_off_goes_on_to_the_same_file(
    student: onnx.ModelProto, teacher: onnx.ModelProto, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = OPTIONS.model_copy(update={"epochs": 3})
    whole = hmc_onnx.finetune(student, teacher, data, options=options)
    step, steps = Trainer._step, []

    def cut_off(self: Trainer, *args: object) -> torch.Tensor:
        steps.append(1)
        if len(steps) == 14:  # within the second epoch
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(Trainer, "_step", cut_off)
    with pytest.raises(KeyboardInterrupt):
        hmc_onnx.finetune(student, teacher, data, options=options, work=Work(work_dir=tmp_path / "work"))
    resumed = hmc_onnx.finetune(student, teacher, data, options=options, work=Work(work_dir=tmp_path / "work"))
    assert len(steps) == 14 + 2 * 9
    assert resumed.model == whole.model
    with pytest.raises(SettingsError, match="other settings"):
        hmc_onnx.finetune(student, teacher, data, options=OPTIONS, work=Work(work_dir=tmp_path / "work"))
    others = tmp_path / "other.npz"
    np.savez(others, images=np.load(data)["images"][::-1])
    with pytest.raises(SettingsError, match="other calibration data"):
        hmc_onnx.finetune(student, teacher, others, options=options, work=Work(work_dir=tmp_path / "work"))
    with pytest.raises(SettingsError, match="teacher"):
        hmc_onnx.finetune(student, worn(teacher, 0.1), data, options=options, work=Work(work_dir=tmp_path / "work"))


def test_a_loss_that_is_no_number_stops_it_and_keeps_the_best(
    student: onnx.ModelProto, teacher: onnx.ModelProto, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "LARGEST_GRADIENT", float("inf"))
    options = OPTIONS.model_copy(update={"epochs": 3, "rate": 1e30, "batchnorm": "none"})
    tuned = hmc_onnx.finetune(student, teacher, data, options=options)
    assert tuned.stopped is not None and "no longer a number in epoch 1" in str(tuned.stopped)
    x = np.load(data)["images"][:20] / np.float32(255)
    before, after = (Session(m).run({"input": x})[0] for m in (student, tuned.model))
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(("enough", "said"), [(10_000, 1), (1, 0)])
def test_few_images_to_train_on_are_told_before_the_work(
    teacher: onnx.ModelProto, data: Path, monkeypatch: pytest.MonkeyPatch, enough: int, said: int
) -> None:
    monkeypatch.setattr(tuning, "FEW", enough)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        tuning.check_trainable(teacher, data, hmc_onnx.preprocessing(None), OPTIONS)
    assert sum("images to train on" in str(warning.message) for warning in told) == said


def test_bad_input_is_one_sentence(student: onnx.ModelProto, teacher: onnx.ModelProto, data: Path) -> None:
    with pytest.raises(ModelError, match="differs in type or shape"):
        hmc_onnx.finetune(student, resnet((1, 1), (8, 16), size=SIZE, classes=7), data, options=OPTIONS)
    x = np.load(data)["images"] / np.float32(255)
    for count in (15, 39):  # of so few none can be held back that tell good from bad
        with pytest.raises(DataError, match=r"too few images to train on .*: give 40 or more"):
            hmc_onnx.finetune(student, teacher, [x[:count]], options=OPTIONS)
    labelled = hmc_onnx.CalibrationData({"input": x}, np.full(len(x), 10), "test")
    with pytest.raises(DataError, match="labels go from 10 to 10"):
        hmc_onnx.finetune(student, teacher, labelled, options=OPTIONS.model_copy(update={"labels": 0.1}))
    broken = data.with_name("broken.npz")
    np.savez(broken, input=np.where(np.arange(len(x))[:, None, None, None] == 7, np.float32("nan"), x))
    with pytest.raises(DataError, match="holds NaN or infinity in sample 7"):
        hmc_onnx.finetune(student, teacher, broken, options=OPTIONS)
    with pytest.raises(ModelError, match="not a number before any training"):
        hmc_onnx.finetune(student, worn(teacher, float("nan")), data, options=OPTIONS)
    with pytest.raises(ModelError, match=r"the model is quantised .*: fine-tune the float model, and quantise after"):
        hmc_onnx.finetune(quantise_for_timing(student), teacher, data, options=OPTIONS)
    with pytest.raises(SettingsError, match="give one"):
        FineTuning(epochs=1, minutes=1)
    if not torch.cuda.is_available():
        with pytest.raises(SettingsError, match="'cuda' does not work"):
            hmc_onnx.finetune(student, teacher, data, options=OPTIONS.model_copy(update={"device": "cuda"}))


def test_a_loss_that_is_no_number_at_the_end_is_said_too(
    student: onnx.ModelProto, teacher: onnx.ModelProto, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "LARGEST_GRADIENT", float("inf"))
    count = len(np.load(data)["images"])
    one_step = {"epochs": 1, "rate": 1e30, "batchnorm": "none", "batch_size": count}
    tuned = hmc_onnx.finetune(student, teacher, data, options=OPTIONS.model_copy(update=one_step))
    assert tuned.stopped is not None and "images held back is no longer a number after epoch 1" in str(tuned.stopped)
    assert values(tuned.model).keys() == values(student).keys()
    for name, value in values(student).items():
        np.testing.assert_array_equal(values(tuned.model)[name], value)


@pytest.mark.parametrize("shape", [[1, -1], [1, 16]], ids=str)
def test_a_batch_size_that_is_written_into_the_graph_is_refused(data: Path, shape: list[int]) -> None:
    b = Builder()
    x = b.node("GlobalAveragePool", b.node("Relu", b.conv("input", 3, 16, at="one")))
    x = b.gemm(b.node("Reshape", x, b.const(shape)), 16, 10, at="head")
    proto = b.model(x, (1, 3, SIZE, SIZE))
    with pytest.raises(ModelError, match=r"cannot be run on 2 images at once .*: export it with an open batch size"):
        hmc_onnx.finetune(proto, proto, data, options=OPTIONS)
    with pytest.raises(ModelError, match=r"cannot be run on 2 images at once .*: export it with an open batch size"):
        tuning.check_trainable(proto, data, Preprocess(None, None, (0.0,) * 3, (1.0,) * 3), OPTIONS)


def test_labels_are_numbered_and_unreadable_files_left_out_as_the_options_say(
    teacher: onnx.ModelProto, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        for i in range(3):
            pixels = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / kind / f"{i}.png")
    (tmp_path / "dog" / "1.png").write_bytes(b"no image")
    (tmp_path / "map.json").write_text('{"cat": 5, "dog": 2}')
    images = hmc_onnx.Images(labels_offset=1, label_map=tmp_path / "map.json", skip_unreadable=True)
    source, how = tuning._source(teacher, tmp_path, images)
    assert how == images.preprocess()
    assert source.labels is not None and source.labels.tolist() == [6, 6, 6, 3, 3]
    assert source.take(np.arange(5), how).shape == (5, 3, SIZE, SIZE)
    plain, how = tuning._source(teacher, tmp_path, hmc_onnx.Images())
    with pytest.raises(DataError, match="cannot decode image"):
        plain.take(np.arange(6), how)


def trained_here(student: onnx.ModelProto, teacher: onnx.ModelProto, data: Path, epochs: int) -> onnx.ModelProto:
    """What the command makes of the student, made in this process."""
    options = FineTuning(epochs=epochs, batch_size=40, device="cpu", train_in="fp32")
    return hmc_onnx.finetune(student, teacher, data, options=options, preprocess=hmc_onnx.preprocessing(None)).model


@pytest.mark.long
def test_two_processes_do_what_one_does(
    student: onnx.ModelProto, teacher: onnx.ModelProto, data: Path, tmp_path: Path
) -> None:
    for name, proto in (("student", student), ("teacher", teacher)):
        onnx.save(proto, tmp_path / f"{name}.onnx")
    options = ["--teacher", "teacher.onnx", "--data", str(data), "--epochs", "2", "--batch-size", "40"]
    options += ["--device", "cpu", "--train-in", "fp32"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command = [*torchrun, "--standalone", "-m", "hmc_onnx", "finetune", "student.onnx", "-o", "two.onnx", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    one = values(trained_here(student, teacher, data, epochs=2))
    two = values(onnx.load(tmp_path / "two.onnx"))
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=0, atol=1e-3 * max(np.abs(value).max(), 1e-3))


@pytest.mark.long  # what is cut off in this process goes on above
def test_killed_it_goes_on(student: onnx.ModelProto, teacher: onnx.ModelProto, data: Path, tmp_path: Path) -> None:
    for name, proto in (("student", student), ("teacher", teacher)):
        onnx.save(proto, tmp_path / f"{name}.onnx")
    command = [sys.executable, "-m", "hmc_onnx", "finetune", "student.onnx", "-o", "out.onnx"]
    command += ["--teacher", "teacher.onnx", "--data", str(data), "--epochs", "8", "--batch-size", "40"]
    command += ["--device", "cpu", "--train-in", "fp32"]
    command += ["--work-dir", "work"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list((tmp_path / "work").glob("checkpoint/*.joblib")):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out.onnx").exists()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    whole = trained_here(student, teacher, data, epochs=8)
    for a, b in zip(whole.graph.initializer, onnx.load(tmp_path / "out.onnx").graph.initializer, strict=True):
        np.testing.assert_allclose(numpy_helper.to_array(a), numpy_helper.to_array(b), rtol=1e-3, atol=1e-4)


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(HmcError, match=r"hmc-onnx\[finetune\]"):
        hmc_onnx.finetune("a.onnx", "b.onnx", data)
