"""The checkpoint gives back what was kept in it, to the same run alone, and never half of it."""

from __future__ import annotations

import errno
from pathlib import Path

import joblib
import numpy as np
import pytest

from hmc_onnx.execution.checkpoint import Checkpoint
from passes.core.errors import OutputError, SettingsError

IDENTITY = {"model": "a1", "data": "b2", "settings": "c3", "version": "0.1"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run" / "work"


def everything(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def test_values_come_back_to_the_same_run(folder: Path) -> None:
    values = {
        "second moments/conv1": np.arange(6.0).reshape(2, 3),
        "second moments/conv2": {"a": [1, 2], "b": None},
        "groups/conv1": (0.5, "text"),
        "groups/a/b": 1,
        "groups/a": 2,
        "groups/": 3,
        "plan": 4,
    }
    checkpoint = Checkpoint(folder, IDENTITY)
    for name, value in values.items():
        assert name not in checkpoint
        checkpoint.save(name, value)
    for again in (checkpoint, Checkpoint(folder, IDENTITY)):
        for name, value in values.items():
            assert name in again
            np.testing.assert_equal(again.load(name), value)
        assert "groups/conv2" not in again


def test_any_name_will_do(folder: Path) -> None:
    names = ["moments//model/layer1/Conv", "moments/..", "moments/" + 400 * "x", "moments/über ∂", "moments/a:b\n*"]
    checkpoint = Checkpoint(folder, IDENTITY)
    for i, name in enumerate(names):
        checkpoint.save(name, i)
    assert [checkpoint.load(name) for name in names] == list(range(len(names)))
    assert {path.parts[0] for path in everything(folder)} == {"run.json", "moments"}


def test_the_last_value_of_a_name_counts(folder: Path) -> None:
    checkpoint = Checkpoint(folder, IDENTITY)
    for value in (1, 2):
        checkpoint.save("plans/a", value)
    assert checkpoint.load("plans/a") == 2
    assert len(everything(folder)) == 2


def test_without_a_folder_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = Checkpoint(None, IDENTITY)
    checkpoint.save("groups/conv1", 1)
    assert "groups/conv1" not in checkpoint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model", "another model"),
        ("data", "other calibration data"),
        ("version", "another version of hmc_onnx"),
        ("settings", "other settings"),
        ("latency table", "other latency table"),
    ],
)
def test_a_run_of_something_else_is_refused_and_left_as_it_is(folder: Path, name: str, said: str) -> None:
    Checkpoint(folder, IDENTITY).save("groups/conv1", 1)
    before = everything(folder)
    with pytest.raises(SettingsError, match=rf"\A[^\n]*'{folder}' is of a run with {said}: give another `work_dir`"):
        Checkpoint(folder, IDENTITY | {name: "other"})
    assert everything(folder) == before
    assert Checkpoint(folder, IDENTITY).load("groups/conv1") == 1


def test_an_empty_folder_is_taken_and_one_of_other_files_refused(folder: Path) -> None:
    folder.mkdir(parents=True)
    Checkpoint(folder, IDENTITY)
    other = folder.parent / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("text")
    with pytest.raises(SettingsError, match=rf"\Athe work folder '{other}' holds other files: give an empty one\Z"):
        Checkpoint(other, IDENTITY)
    assert everything(other) == {Path("thesis.tex")}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_a_damaged_folder_is_refused(folder: Path, content: bytes) -> None:
    Checkpoint(folder, IDENTITY)
    (folder / "run.json").write_bytes(content)
    with pytest.raises(SettingsError, match=r"\A'[^\n]*run.json' is damaged: give another `work_dir`\Z"):
        Checkpoint(folder, IDENTITY)


@pytest.mark.parametrize("length", [0, 20])
def test_a_damaged_value_is_named(folder: Path, length: int) -> None:
    checkpoint = Checkpoint(folder, IDENTITY)
    checkpoint.save("sensitivity/1", np.arange(100.0))
    (place,) = (folder / "sensitivity").iterdir()
    place.write_bytes(place.read_bytes()[:length])
    with pytest.raises(
        SettingsError, match=rf"\A'{place}' is damaged: remove it, and what it held is measured again\Z"
    ):
        checkpoint.load("sensitivity/1")


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), MemoryError(), OSError(errno.ENOSPC, "No space left on device")]
)
def test_a_write_that_is_cut_off_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    checkpoint = Checkpoint(folder, IDENTITY)
    checkpoint.save("groups/conv1", 1)
    before = everything(folder)

    def half(_: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(joblib, "dump", half)
        for name in ("groups/conv1", "groups/conv2", "plans/conv1"):
            with pytest.raises(OutputError if isinstance(error, OSError) else type(error)):
                checkpoint.save(name, 2)
    assert everything(folder) == before
    again = Checkpoint(folder, IDENTITY)
    assert again.load("groups/conv1") == 1
    assert "groups/conv2" not in again and "plans/conv1" not in again
    again.save("groups/conv2", 3)
    assert again.load("groups/conv2") == 3


def test_a_run_that_is_cut_off_as_it_begins_can_begin_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(path: Path, *_: object, **__: object) -> None:
        path.touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", half)
        with pytest.raises(KeyboardInterrupt):
            Checkpoint(folder, IDENTITY)
    assert not everything(folder)
    Checkpoint(folder, IDENTITY)


def test_a_full_disk_is_said_in_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoint = Checkpoint(folder, IDENTITY)
    monkeypatch.setattr(joblib, "dump", full)
    with pytest.raises(OutputError, match=rf"\Acannot write '{folder}.*' \(No space left on device\): [^\n]+\Z"):
        checkpoint.save("groups/conv1", 1)


def test_a_folder_that_cannot_be_made_or_is_gone_is_said(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("text")
    for place in (file, file / "work"):
        with pytest.raises(OutputError, match=rf"\Acannot use the work folder '{place}' \([^\n]+\): [^\n]+\Z"):
            Checkpoint(place, IDENTITY)
    checkpoint = Checkpoint(folder, IDENTITY)
    (folder / "run.json").unlink()
    folder.rmdir()
    with pytest.raises(
        OutputError, match=r"\Acannot write to the work folder [^\n]+ \(No such file or directory\): [^\n]+\Z"
    ):
        checkpoint.save("groups/conv1", 1)
