"""A user's mistake is one clear sentence on standard error, an exit code that is not 0, and nothing written.

Where a test stands for a machine that refuses to write, it does so for root too, whom no permissions stop: /proc is
a folder in which nobody can make files, and a limit on the size of files (RLIMIT_FSIZE) fails at the write, as a full
disk does.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import Cli, contents, pixels
from onnx import helper
from PIL import Image
from zoo import images, parsed, resnet

from hmc_onnx.api import profile as profile_model
from hmc_onnx.planning.program import solve
from hmc_onnx.records.goal import parse_target
from hmc_onnx.records.plan import Plan
from hmc_onnx.records.settings import Settings
from passes.graph.files import save

pytestmark = pytest.mark.usefixtures("few_iterations")

Refuses = Callable[..., str]


@pytest.fixture
def refuses(cli: Cli, given: Path, here: Path) -> Refuses:
    """Calls the command line, checks that it refuses as it should, and returns its sentence."""

    def check(*arguments: object, says: str | tuple[str, ...], code: int = 1) -> str:
        before = contents(here), contents(given)
        done = cli(*arguments)
        assert done.code == code, done
        assert len(done.errors) == 1, done.err
        (sentence,) = done.errors
        assert sentence.startswith("error: ")
        for part in (says,) if isinstance(says, str) else says:
            assert part in sentence
        assert "Written" not in done.out
        assert (contents(here), contents(given)) == before
        return sentence

    return check


@pytest.fixture
def compress(refuses: Refuses, given: Path) -> Refuses:
    """As `refuses`, for a `compress` that would be right but for what is given here."""

    def check(*more: object, says: str | tuple[str, ...], code: int = 1, **given_: object) -> str:
        model = given_.get("model", given / "model.onnx")
        options = {"--data": given / "splits.npz", "--target": "macs=0.6", "-o": "out.onnx"}
        options |= {("-o" if k == "out" else f"--{k}"): v for k, v in given_.items() if k != "model"}
        for option in more:
            options.pop(str(option), None)
        flat = [part for option, value in options.items() if value is not None for part in (option, value)]
        return refuses("compress", model, *flat, *more, says=says, code=code)

    return check


@pytest.fixture(scope="module")
def steps(given: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with profile.json of model.onnx with splits.npz, and plan.json of it."""
    at = tmp_path_factory.mktemp("steps")
    pixels = np.load(given / "splits.npz")["train_images"]
    data = {"input": (np.arange(256) / 255).astype(np.float32)[pixels]}
    profile = profile_model(given / "model.onnx", [data], Settings())
    profile.save(at / "profile.json")
    solve(profile, parse_target("macs=0.6")).save(at / "plan.json")
    return at


# Models


@pytest.mark.parametrize(
    "arguments",
    [
        ("compress", "nothing.onnx", "-o", "out.onnx", "--data", "splits.npz", "--target", "macs=0.5"),
        ("inspect", "nothing.onnx"),
        ("profile", "nothing.onnx", "-o", "out.json", "--data", "splits.npz"),
        ("apply", "nothing.onnx", "--plan", "plan.json", "-o", "out.onnx", "--data", "splits.npz"),
        ("verify", "nothing.onnx", "model.onnx", "--data", "splits.npz"),
        ("verify", "model.onnx", "nothing.onnx", "--data", "splits.npz"),
    ],
    ids=lambda a: f"{a[0]}-{a.index('nothing.onnx')}",
)
def test_a_missing_model(refuses: Refuses, given: Path, steps: Path, here: Path, arguments: tuple[str, ...]) -> None:
    for file in (given / "splits.npz", given / "model.onnx", steps / "plan.json"):
        shutil.copy(file, here)
    refuses(*arguments, says=("no model file at 'nothing.onnx'", "give the path"))


def test_a_truncated_model(refuses: Refuses, compress: Refuses, given: Path, here: Path) -> None:
    whole = (given / "model.onnx").read_bytes()
    for length in (0, 1, 10, 100, len(whole) // 2, len(whole) - 1):
        (here / "model.onnx").write_bytes(whole[:length])
        refuses("inspect", "model.onnx", says=("'model.onnx' is not an ONNX file, or", "export the model again"))
    compress(model="model.onnx", says=("'model.onnx' is not an ONNX file, or is damaged", "export the model again"))


def test_a_model_with_damaged_names(refuses: Refuses, given: Path, here: Path) -> None:
    whole = (given / "model.onnx").read_bytes()
    for name in (b"/conv1/Conv", b"zoo", b"logits", b"kernel_shape", b"conv1.weight"):
        assert name in whole
        (here / "model.onnx").write_bytes(whole.replace(name, b"\xff" * len(name)))
        refuses("inspect", "model.onnx", says=("'model.onnx'", "export the model again"))


@pytest.mark.parametrize("name", ["file.onnx", "file", "file.txt", "file.json", "file.textproto", "file.onnxtxt"])
def test_files_that_are_no_models(refuses: Refuses, here: Path, name: str) -> None:
    for content in (b"This is not a model.\n", b'{"irVersion": 8}', b"PK\x03\x04" + bytes(100)):
        (here / name).write_bytes(content)
        refuses("inspect", name, says=(f"'{name}' is not an ONNX file", "export the model again"))


def test_an_image_or_folder_as_model(compress: Refuses, given: Path, here: Path) -> None:
    compress(model=given / "flat" / "0.png", says=("0.png' is not an ONNX file", "export the model again"))
    shutil.copy(given / "flat" / "0.png", here / "image.onnx")
    compress(model="image.onnx", says=("'image.onnx' is not an ONNX file", "export the model again"))
    compress(model=given, says=("no model file at", "give the path of an ONNX file"))


def test_names_that_are_no_utf_8_are_escaped_in_reports(cli: Cli, given: Path, here: Path) -> None:
    model, data = here / os.fsdecode(b"mod\xe9l.onnx"), here / os.fsdecode(b"d\xff.npz")
    shutil.copy(given / "model.onnx", model)
    shutil.copy(given / "plain.npz", data)
    out = here / os.fsdecode(b"o\xe9.onnx")
    for report in (os.fsdecode(b"r\xe9.json"), os.fsdecode(b"r\xe9.html")):
        call = ["compress", model, "-o", out, "--data", data, "--target", "none", "--samples", 16, "--json"]
        done = cli(*call, "--report", here / report)
        assert (done.code, done.errors) == (0, [])
        assert r"o\xe9.onnx" in json.loads(done.out)["written"]
        assert r"mod\xe9l.onnx" in (here / report).read_text(encoding="utf-8").replace("\\\\", "\\")


def test_a_model_with_nothing_to_compress(compress: Refuses, here: Path) -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,3,8,8] input) => (float[N,3,8,8] y) { y = Relu(input) }'
    save(parsed(text), here / "relu.onnx")
    compress(model="relu.onnx", says=("no Conv", "nothing to compress", "give a convolutional network"))


def test_a_model_that_is_not_valid(compress: Refuses, given: Path, here: Path) -> None:
    proto = onnx.load(given / "model.onnx")
    proto.graph.node[1].op_type = "Unheard"
    onnx.save(proto, here / "op.onnx")
    compress(model="op.onnx", says=("'op.onnx': the ONNX checker rejects the model", "Unheard"))
    proto.graph.node[1].domain = "my.own"
    proto.opset_import.append(helper.make_opsetid("my.own", 1))
    onnx.save(proto, here / "domain.onnx")
    compress(model="domain.onnx", says=("onnxruntime cannot load the model", "my.own"))


def test_a_model_without_its_weights_file(compress: Refuses, given: Path, here: Path) -> None:
    proto = onnx.load(given / "model.onnx")
    onnx.save(proto, here / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    (here / "weights").unlink()
    compress(model="model.onnx", says=("'model.onnx' cannot be read", "weights"))


def test_a_model_of_several_inputs_and_image_files(compress: Refuses, here: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3,8,8] left, float[N,3,8,8] right) => (float[N,3,8,8] y) { y = Add(left, right) }"""
    save(parsed(text), here / "two.onnx")
    compress(model="two.onnx", says=("'left'", "store one array for each of left, right"))


# Data


def archive(**arrays: np.ndarray) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        np.savez(path, **arrays)

    return write


BAD_ARCHIVES = {
    "floats of wrong size": (archive(input=images(8, 9)), ("(3, 9, 9)", "'input' takes (3, 8, 8)", "store")),
    "floats in NHWC": (archive(input=images(8, 8).transpose(0, 2, 3, 1)), ("(8, 8, 3)", "takes (3, 8, 8)", "store")),
    "images of wrong size": (archive(images=pixels(8, 3, 9, 9)), ("(3, 9, 9)", "takes (3, 8, 8)", "set --size")),
    "images of two channels": (archive(images=pixels(8, 2, 8, 8)), ("(8, 2, 8, 8)", "store images as (N, C, H, W)")),
    "flat images": (archive(images=pixels(8, 192)), ("(8, 192)", "store images as (N, C, H, W)")),
    "int32 images": (archive(images=pixels(8, 3, 8, 8).astype(np.int32)), ("is int32", "store images as uint8")),
    "int32 tensors": (archive(input=pixels(8, 3, 8, 8).astype(np.int32)), ("is int32", "store images as uint8")),
    "text": (archive(images=np.array(["a", "b"])), ("'images' of 'data.npz' is <U1", "store images as uint8")),
    "objects": (archive(images=np.array([{}, 1], object)), ("cannot read 'data.npz'", "write it with numpy.savez")),
    "NaN": (
        archive(input=np.full((8, 3, 8, 8), np.nan, np.float32)),
        ("holds NaN", "sample 0", "leave that sample out"),
    ),
    "infinity": (archive(input=np.full((8, 3, 8, 8), 1e300)), ("infinity in sample 0", "leave that sample out")),
    "no arrays": (archive(), ("'data.npz' has no images among its keys", "store them as 'images'")),
    "other arrays": (archive(pictures=pixels(8, 3, 8, 8)), ("no images among its keys (pictures)", "store them as")),
    "no images": (archive(images=pixels(0, 3, 8, 8)), ("'images' of 'data.npz' is empty", "store at least one")),
    "only one image": (archive(images=pixels(1, 3, 8, 8)), ("all samples are alike in 1 images", "more images")),
    "black images": (archive(images=0 * pixels(8, 3, 8, 8)), ("all samples are alike in 8 images", "which differ")),
    "only a test split": (
        archive(test_images=pixels(8, 3, 8, 8)),
        ("has no split 'train'", "it has test: add 'train_images'"),
    ),
    "labels too few": (
        archive(images=pixels(8, 3, 8, 8), labels=np.arange(3)),
        ("'labels' of 'data.npz'", "each of the 8"),
    ),
    "labels of floats": (
        archive(images=pixels(8, 3, 8, 8), labels=np.arange(8.0)),
        ("is float64", "one integer for each"),
    ),
    "labels too high": (
        archive(images=pixels(8, 3, 8, 8), labels=np.arange(8)),
        ("from 0 to 7", "5 classes", "--no-labels"),
    ),
    "labels below 0": (
        archive(images=pixels(8, 3, 8, 8), labels=-np.arange(8)),
        ("from -7 to 0", "5 classes", "--no-labels"),
    ),
}


@pytest.mark.parametrize("what", BAD_ARCHIVES)
def test_data_that_do_not_fit(compress: Refuses, here: Path, what: str) -> None:
    write, says = BAD_ARCHIVES[what]
    write(here / "data.npz")
    compress(data="data.npz", says=("data.npz", *says))


def test_data_in_another_layout_than_the_model(compress: Refuses, given: Path) -> None:
    for data in ("splits.npz", "flat"):
        says = ("(8, 8, 3)", "'input' takes (3, 8, 8)", "set --layout NCHW")
        compress("--layout", "NHWC", data=given / data, says=says)


def test_a_preset_of_another_size_than_the_model(compress: Refuses, given: Path) -> None:
    compress("--preset", "cifar10", says=("(3, 32, 32)", "takes (3, 8, 8)", "set --size or --preset"))


def test_files_that_are_no_data(compress: Refuses, given: Path, here: Path) -> None:
    whole = (given / "splits.npz").read_bytes()
    np.save(here / "array.npy", images(8, 8))
    for content in (
        b"",
        b"text",
        whole[:1000],
        whole[:500] + bytes(500) + whole[1000:],
        (here / "array.npy").read_bytes(),
    ):
        (here / "data.npz").write_bytes(content)
        compress(data="data.npz", says=("cannot read 'data.npz' as an .npz file", "write it with numpy.savez"))
    for other in (given / "model.onnx", given / "flat" / "0.png"):
        compress(data=other, says=(f"'{other}' is of an unknown kind", "give an .npz"))


def test_no_data_and_missing_data(compress: Refuses, refuses: Refuses, given: Path) -> None:
    missing = ("'nothing' does not exist", "give an .npz or .npy file, a folder of images or a CIFAR folder")
    compress(data="nothing", says=missing)
    compress("--test-data", "nothing", says=missing)
    model = given / "model.onnx"
    refuses("verify", model, model, "--data", "nothing", says=missing)
    compress(data=None, says=("--data is missing", "give it on the command line or in the --config file"))
    refuses("verify", model, model, says="--data is missing")
    refuses("profile", model, "-o", "profile.json", says="--data is missing")


def test_folders_without_usable_images(compress: Refuses, here: Path) -> None:
    (here / "data").mkdir()
    compress(data="data", says=("'data' holds no images", "give a folder of images"))
    (here / "data" / "empty class").mkdir()
    (here / "data" / "notes.txt").write_text("no image")
    compress(data="data", says=("'data' holds no images", "give a folder of images"))
    (here / "data" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    compress(
        data="data",
        says=("cannot decode image 'data/a.png'", "replace it, take it out of the folder, or set --skip-unreadable"),
    )
    Image.fromarray(pixels(8, 8, 3)).save(here / "data" / "a.png")
    whole = (here / "data" / "a.png").read_bytes()
    (here / "data" / "b.png").write_bytes(whole[: len(whole) // 2])
    compress(
        data="data",
        says=("cannot decode image 'data/b.png'", "replace it, take it out of the folder, or set --skip-unreadable"),
    )
    Image.fromarray(pixels(9, 9, 3)).save(here / "data" / "b.png")
    compress(data="data", says=("'data/b.png' comes out as (3, 9, 9)", "set --size or --preset"))
    Image.fromarray(pixels(8, 8).astype(np.uint16) * 256).save(here / "data" / "b.png")
    compress(data="data", says=("cannot use image 'data/b.png'", "save it with 8 bits a channel"))


def test_bad_test_data_is_refused_before_the_work(cli: Cli, given: Path, here: Path) -> None:
    np.savez(here / "nan.npz", input=np.full((8, 3, 8, 8), np.nan, np.float32))
    np.savez(here / "labels.npz", images=pixels(8, 3, 8, 8), labels=np.arange(8))
    for test in ("nan.npz", "labels.npz", "nothing.npz"):
        arguments = ["--data", given / "plain.npz", "--test-data", test, "--target", "macs=0.6"]
        done = cli("compress", given / "model.onnx", "-o", "out.onnx", *arguments)
        assert done.code == 1
        assert done.err.splitlines() == done.errors
        assert test in done.errors[0]


def test_labels_outside_the_classes_do_not_matter_without_labels(cli: Cli, given: Path, here: Path) -> None:
    np.savez(here / "labels.npz", images=pixels(8, 3, 8, 8), labels=np.arange(8))
    model = given / "model.onnx"
    assert cli("verify", model, model, "--data", "labels.npz").code == 1
    assert cli("verify", model, model, "--data", "labels.npz", "--no-labels").code == 0
    given_ = ["compress", model, "-o", "out.onnx", "--data", "labels.npz", "--target", "macs=0.6"]
    assert cli(*given_).code == 1
    assert cli(*given_, "--no-labels").code == 0


# Targets and other options


@pytest.mark.parametrize(
    "target", ["macs=0", "macs=-0.1", "macs=1.5", "params=2", "macs=nan", "params=inf", "macs=0.5,params=0"]
)
def test_a_target_out_of_range(compress: Refuses, target: str) -> None:
    compress(target=target, says=(f"target {target.split(',')[-1]} is out of range", "above 0 and at most 1"))


@pytest.mark.parametrize(
    "target", ["half", "0.5", "", "macs", "macs=", "macs=half", "flops=0.5", "macs=0.5;params=0.5", "macs=50%"]
)
def test_a_target_that_makes_no_sense(compress: Refuses, target: str) -> None:
    compress(target=target, says=(f"target '{target}' is not understood", "write latency=0.6, macs=0.5 or params=0.5"))


def test_no_target(compress: Refuses, refuses: Refuses, steps: Path) -> None:
    says = ("--target is missing", "give it on the command line or in the --config file")
    compress(target=None, says=("there is no goal", "give --target, such as latency=0.6, or --max-drop"))
    refuses("plan", steps / "profile.json", "-o", "plan.json", says=says)


def test_a_target_below_what_is_possible(compress: Refuses, refuses: Refuses, steps: Path) -> None:
    says = "target macs=0.001 is below what strategy 'hmc' can reach on this model, macs=0."
    compress(target="macs=0.001", says=(says, "keep more"))
    compress("--align", "1000", target="macs=0.9", says=("macs=1.0", "keep more or align to fewer than 1000 channels"))
    for target in ("params=0.001", "macs=0.9,params=0.001"):
        for strategy in ("hmc", "prune", "lowrank"):
            arguments = ["-o", "plan.json", "--target", target, "--strategy", strategy]
            says = f"target {target} is below what strategy '{strategy}' can reach"
            refuses("plan", steps / "profile.json", *arguments, says=(says, "params=0.", "keep more"))


USAGE = {
    ("--strategy", "all"): ("'--strategy'", "'all' is not one of 'hmc', 'nahc', 'ahc', 'prune', 'lowrank'"),
    ("--layout", "nchw"): ("'--layout'", "'NCHW', 'NHWC'"),
    ("--preset", "mnist"): ("'--preset'", "'mnist' is not one of 'cifar10', 'imagenet'"),
    ("--samples", "many"): ("'--samples'", "integer"),
    ("--align", "2.5"): ("'--align'", "integer"),
    ("--size", "8", "eight"): ("'--size'", "integer"),
    ("--fast",): ("--fast",),
    ("another.onnx",): ("another.onnx",),
}


@pytest.mark.parametrize("options", USAGE, ids=" ".join)
def test_options_that_cannot_be_parsed(compress: Refuses, options: tuple[str, ...]) -> None:
    compress(*options, says=(*USAGE[options], "--help"), code=2)


def test_commands_that_cannot_be_parsed(refuses: Refuses) -> None:
    refuses("compres", says=("'compres', did you mean 'compress'", "see 'hmc-onnx --help'"), code=2)
    refuses("compress", says=("MODEL", "see 'hmc-onnx compress --help'"), code=2)
    refuses("compress", "model.onnx", says=("--output", "see 'hmc-onnx compress --help'"), code=2)
    refuses("verify", "model.onnx", says=("give either the compressed model's file", "--against"))
    refuses("apply", "model.onnx", "-o", "out.onnx", says=("--plan", "see 'hmc-onnx apply --help'"), code=2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--samples", "0"), "--samples 0: input should be greater than or equal to 1"),
        (("--samples", "-5"), "--samples -5"),
        (("--align", "0"), "--align 0"),
        (("--memory", "nan"), "--memory nan: input should be a finite number"),
        (("--memory", "-1"), "--memory -1.0: input should be greater than 0"),
        (("--address", "tcp://127.0.0.1:1"), "--address goes with a cluster: give --backend dask or --backend ray"),
        (("--epochs", "1"), "--epochs only applies with --finetune"),
        (("--device", "cuda"), "--device only applies with --finetune"),
        (("--finetune", "--epochs", "1", "--minutes", "1"), "--epochs and --minutes were both given: give one"),
        (("--max-drop", "0.01"), "--target and --max-drop were both given: give one"),
        (("--seed", "-1"), "--seed -1"),
        (("--size", "0", "8"), "size (0, 8) is not an image's: give height and width"),
        (("--std", "0", "1", "1"), "std (0.0, 1.0, 1.0) is out of range: give each channel's"),
        (("--mean", "nan", "1", "1"), "mean (nan, 1.0, 1.0) is not finite: give each channel's"),
        (("--mean", "0.5", "0.5"), "do not fit: give both three values (colour) or one (gray)"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, tuple) else "",
)
def test_options_out_of_range(compress: Refuses, options: tuple[str, ...], says: str) -> None:
    compress(*options, says=says)


@pytest.mark.parametrize("size", [("0", "0"), ("-8", "8")])
def test_inspect_with_a_size_out_of_range(refuses: Refuses, given: Path, size: tuple[str, str]) -> None:
    refuses("inspect", given / "model.onnx", "--size", *size, says=("is not an image's", "give height and width"))


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_the_machine_has_not(compress: Refuses, refuses: Refuses, given: Path, provider: str) -> None:
    from calib.runtime.providers import _start

    if _start({"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}[provider]) is None:
        pytest.skip("this machine has it")
    says = (f"error: provider '{provider}' does not work on this machine", "use cpu")
    for data in ("splits.npz", "plain.npz"):
        compress("--provider", provider, data=given / data, says=says)
    refuses("verify", *[given / "model.onnx"] * 2, "--data", given / "plain.npz", "--provider", provider, says=says)


# Settings files


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", ("holds no options", "write one 'name: value' a line")),
        ("# nothing yet", ("holds no options", "write one 'name: value' a line")),
        ("- target", ("holds no options", "write one 'name: value' a line")),
        ("macs=0.5", ("holds no options", "write one 'name: value' a line")),
        ("target: [macs=0.5", ("is not valid YAML", "line 1")),
        ("target: macs: 0.5", ("is not valid YAML", "line 1")),
        ("\ttarget: macs=0.5", ("is not valid YAML", "line 1")),
        ("seed: !!python/object/apply:os.getpid []", ("is not valid YAML", "python/object")),
        ("\x00", ("is not valid YAML",)),
        ("targte: macs=0.5", ("unknown option 'targte'", "did you mean 'target'?")),
        ("xyz: 1", ("unknown option 'xyz'", "known are address, align, augmentation, backend")),
        ("output: other.onnx", ("the option 'output', which a file cannot hold", "give --output in the call")),
        ("outptu: other.onnx", ("unknown option 'outptu'", "known are address, align, augmentation, backend")),
        ("work_dir: ~nosuch/x", ("--work-dir '~nosuch/x' begins with the home of a user that is not known here",)),
        ("target: 0.5", ("0.5 for the option 'target'", "write text such as macs=0.5")),
        ("target: {macs: 0.5}", ("'target'", "write text such as macs=0.5")),
        ("data: 5", ("5 for the option 'data'", "write text")),
        ("test_data: [a]", ("'test_data'", "write text")),
        ("data: 2020-01-01", ("datetime.date(2020, 1, 1) for the option 'data'", "write text")),
        ("preset: [cifar10]", ("'preset'", "write cifar10 or imagenet")),
        ("preset: mnist", ("'mnist' for the option 'preset'", "write cifar10 or imagenet")),
        ("strategy: [hmc]", ("'strategy'", "write hmc, nahc, ahc, prune or lowrank")),
        ("strategy: all", ("'all' for the option 'strategy'", "write hmc, nahc, ahc, prune or lowrank")),
        ("layout: 3", ("'layout'", "write NCHW or NHWC")),
        ("layout: nchw", ("'nchw' for the option 'layout'", "write NCHW or NHWC")),
        ("provider: gpu", ("unknown provider 'gpu'", "use auto, or one that onnxruntime has here: cpu")),
        ("provider: [cpu]", ("['cpu'] for the option 'provider'", "write text")),
        ("provider_option: [device]", ("--provider-option 'device' has no value", "write KEY=VALUE")),
        ("samples: many", ("'samples'", "write a whole number")),
        ("samples: 4.5", ("'samples'", "write a whole number")),
        ("samples: yes", ("True for the option 'samples'", "write a whole number")),
        ("samples: 0", ("samples 0", "greater than or equal to 1")),
        ("align: [4]", ("'align'", "write a whole number")),
        ("seed: -1", ("seed -1", "greater than or equal to 0")),
        ("size: 8", ("'size'", "write 2 whole numbers in brackets, as in [32, 32]")),
        ("size: [8]", ("'size'", "write 2 whole numbers in brackets, as in [32, 32]")),
        ("size: ['8', '8']", ("'size'", "write 2 whole numbers in brackets, as in [32, 32]")),
        ("size: [0, 8]", ("size (0, 8)", "give height and width")),
        ("mean: 0.5", ("'mean'", "write a list of numbers, as in [0.5, 0.5, 0.5]")),
        ("mean: [a, b, c]", ("'mean'", "write a list of numbers")),
        ("mean: [1, 2]", ("--mean (1.0, 2.0)", "give both three values (colour) or one (gray)")),
        ("std: [0, 0, 0]", ("std (0.0, 0.0, 0.0) is out of range", "above 0")),
        ("labels: maybe", ("'maybe' for the option 'labels'", "write true or false")),
    ],
    ids=lambda v: repr(v) if isinstance(v, str) else "",
)
def test_settings_files_that_are_wrong(compress: Refuses, here: Path, content: str, says: tuple[str, ...]) -> None:
    (here / "settings.yaml").write_text(content)
    given_here = {name: None for name in ("data", "target") if content.startswith(f"{name}:")}
    sentence = compress("--config", "settings.yaml", says=says, **given_here)
    assert "'settings.yaml'" in sentence or "settings" not in says[0]


def test_settings_files_that_cannot_be_read(compress: Refuses, given: Path) -> None:
    compress("--config", "nothing.yaml", says=("cannot read the settings 'nothing.yaml'", "No such file"))
    compress("--config", given, says=("cannot read the settings", "directory"))
    compress("--config", given / "splits.npz", says=("splits.npz",))


# Outputs


@contextmanager
def unwritable(here: Path, given: Path, what: str) -> Iterator[tuple[Path, str]]:
    """An output that cannot be, and what is said of it."""
    model = given / "model.onnx"
    if what == "a folder":
        (here / "folder").mkdir()
        yield Path("folder"), "'folder' is a folder: give a file name"
    elif what == "nothing":
        yield Path(""), "is a folder: give a file name"
    elif what == "in a missing folder":
        yield Path("missing/out"), "folder 'missing' does not exist: make it first"
    elif what == "in a file":
        yield given / "plain.npz" / "out", "plain.npz' is not a folder: give another path"
    elif what == "in a file's folder":
        yield given / "plain.npz" / "folder" / "out", "does not exist: make it first"
    elif what == "in a folder of the system":
        yield Path("/proc/out"), "the output '/proc/out' cannot be written"
    elif what == "the model":
        yield model, "is an input too, or another output: give another name"
    elif what == "the model by another path":
        yield given / "flat" / ".." / "model.onnx", "is an input too, or another output: give another name"
    elif what == "a link to the model":
        (here / "link").symlink_to(model)
        yield Path("link"), "'link' is an input too, or another output: give another name"
    elif what == "the model by another name":
        (here / "hard").hardlink_to(model)
        yield Path("hard"), "'hard' is an input too, or another output: give another name"
        (here / "hard").unlink()
    elif what == "a pipe":  # stands for devices such as /dev/null, which a file must not replace
        os.mkfifo(here / "pipe")
        yield Path("pipe"), "'pipe' is not a regular file: give another name"
    else:
        yield Path("n" * 300), "too long"


UNWRITABLE = (
    "a folder",
    "nothing",
    "in a missing folder",
    "in a file",
    "in a file's folder",
    pytest.param(
        "in a folder of the system", marks=pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
    ),
    "the model",
    "the model by another path",
    "a link to the model",
    "the model by another name",
    "a pipe",
    "of too long a name",
)


@pytest.mark.parametrize("what", UNWRITABLE)
@pytest.mark.parametrize("command", ["compress", "compress --report", "profile", "plan", "apply", "verify --report"])
def test_outputs_that_cannot_be(
    cli: Cli, refuses: Refuses, given: Path, steps: Path, here: Path, command: str, what: str
) -> None:
    model, data = given / "model.onnx", ["--data", given / "splits.npz"]
    with unwritable(here, given, what) as (out, says):
        arguments = {
            "compress": ["compress", model, *data, "--target", "macs=0.6", "-o", out],
            "compress --report": ["compress", model, *data, "--target", "macs=0.6", "-o", "out.onnx", "--report", out],
            "profile": ["profile", model, *data, "-o", out],
            "plan": ["plan", model if "model" in what else steps / "profile.json", "--target", "macs=0.6", "-o", out],
            "apply": ["apply", model, *data, "--plan", steps / "plan.json", "-o", out],
            "verify --report": ["verify", model, model, *data, "--report", out],
        }[command]
        refuses(*arguments, says=says)
        assert "steps" not in cli(*arguments).err  # known before any work


def test_outputs_that_are_other_inputs(
    compress: Refuses, refuses: Refuses, given: Path, steps: Path, here: Path
) -> None:
    says = "is an input too, or another output: give another name"
    (here / "settings.yaml").write_text("samples: 32\n")
    (here / "data.yaml").write_text(f"data: {given / 'splits.npz'}\n")
    model = given / "model.onnx"
    for option in ("--report", "-o"):
        compress(option, given / "splits.npz", says=says)
        compress(option, given / "plain.npz", test_data=None, says=says, **{"test-data": given / "plain.npz"})
        compress(option, "settings.yaml", config="settings.yaml", says=says)
        compress(option, given / "splits.npz", config="data.yaml", data=None, says=says)
    compress("--report", "out.onnx", says=says)
    compress("--report", "./out.onnx", says=says)
    refuses("apply", model, "--plan", steps / "plan.json", "-o", steps / "plan.json", "--data", "x", says=says)
    refuses("plan", steps / "profile.json", "-o", steps / "profile.json", "--target", "macs=0.6", says=says)
    refuses("verify", model, given / "other.onnx", "--data", "x", "--report", given / "other.onnx", says=says)


def test_weights_beside_an_input_are_an_input(refuses: Refuses, given: Path, here: Path) -> None:
    says = "is an input too, or another output: give another name"
    proto = onnx.load(given / "model.onnx")
    onnx.save(proto, "model.onnx", save_as_external_data=True, location="out.onnx.data", size_threshold=64)
    data, target = ["--data", given / "splits.npz"], ["--target", "macs=0.6"]
    for output in ("out.onnx.data", "out.onnx"):  # the latter, if large, has its weights in the former
        refuses("compress", "model.onnx", *data, *target, "-o", output, says=says)
        refuses("profile", "model.onnx", *data, "-o", output, says=says)
    refuses("verify", given / "model.onnx", "model.onnx", *data, "--report", "out.onnx.data", says=says)
    (here / "table.json").write_text("{}")
    table = ["--latency-table", "table.json"]
    refuses("profile", given / "model.onnx", *data, *table, "-o", "table.json", says=says)


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """As if the disk were full beyond this."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("before", [None, b"what was here before"])
def test_a_full_disk(compress: Refuses, refuses: Refuses, steps: Path, here: Path, before: bytes | None) -> None:
    for name in ("out.onnx", "plan.json"):
        if before is not None:
            (here / name).write_bytes(before)
    with no_file_larger_than(1024):
        compress(says=("cannot write 'out.onnx'", "File too large"))
        arguments = ["plan", steps / "profile.json", "-o", "plan.json", "--target", "macs=0.6"]
        refuses(*arguments, says=("cannot write 'plan.json'", "File too large"))


def test_a_full_standard_output(given: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    command = [sys.executable, "-m", "hmc_onnx", "inspect", given / "model.onnx"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["error: No space left on device: check the disk and permissions"]


# Profiles and plans


def test_files_that_are_no_profiles(refuses: Refuses, given: Path, steps: Path, here: Path) -> None:
    whole = (steps / "profile.json").read_text()
    (here / "half.json").write_text(whole[: len(whole) // 2])
    (here / "list.json").write_text("[]")
    (here / "empty.json").write_text("")
    (here / "version.json").write_text(whole.replace('"version": 1', '"version": 2', 1))
    (here / "more.json").write_text(json.dumps(json.loads(whole) | {"more": 1}))
    files = {
        "half.json": "is not a valid profile, as it is no JSON",
        "list.json": "is not a valid profile: at the file",
        "empty.json": "is not a valid profile, as it is no JSON",
        "version.json": "is not a valid profile: at version",
        "more.json": "is not a valid profile: at more",
        "nothing.json": "the profile 'nothing.json' does not exist",
        given: "cannot read the profile",
        given / "model.onnx": "is not a valid profile, as it is no text",
        steps / "plan.json": "plan.json' is not a valid profile",
    }
    for file, says in files.items():
        refuses("plan", file, "-o", "plan.json", "--target", "macs=0.6", says=(str(file), says))


@pytest.fixture
def apply(refuses: Refuses, given: Path) -> Refuses:
    """As `refuses`, for an `apply` of a plan."""

    def check(plan: object, *, says: str | tuple[str, ...], model: str = "model.onnx", data: str = "splits.npz") -> str:
        return refuses("apply", given / model, "--plan", plan, "--data", given / data, "-o", "out.onnx", says=says)

    return check


def test_files_that_are_no_plans(apply: Refuses, given: Path, steps: Path, here: Path) -> None:
    whole = (steps / "plan.json").read_text()
    (here / "half.json").write_text(whole[: len(whole) // 2])
    (here / "text.json").write_text("prune everything")
    (here / "rank.json").write_text(whole.replace('"rank": 0', '"rank": "all"', 1))
    apply("half.json", says="'half.json' is not a valid plan, as it is no JSON")
    apply("text.json", says="'text.json' is not a valid plan, as it is no JSON")
    apply("rank.json", says=("'rank.json' is not a valid plan: at layers.", ".rank, input should be a valid integer"))
    apply("nothing.json", says="the plan 'nothing.json' does not exist")
    apply(given, says="cannot read the plan")
    apply(given / "model.onnx", says="is not a valid plan, as it is no text")
    apply(steps / "profile.json", says="profile.json' is not a valid plan")


def test_a_plan_for_another_model_or_other_data(apply: Refuses, given: Path, steps: Path) -> None:
    apply(steps / "plan.json", model="other.onnx", says=("plan was made for another model", "plan again"))
    apply(steps / "plan.json", data="floats.npz", says=("made with other calibration data", "give the same images"))
    apply(steps / "plan.json", data="nothing.npz", says=("does not exist", "give an .npz or .npy file"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"method": "magic", "rank": 1}, "unknown method 'magic', use keep or"),
        ({"method": "svd", "rank": 10**6}, "svd of rank 1000000 does not apply"),
        ({"method": "svd", "rank": 0}, "svd of rank 0 does not apply"),
        ({"method": "svd", "rank": -1}, "svd of rank -1 does not apply"),
    ],
)
def test_a_plan_edited_wrongly(apply: Refuses, steps: Path, here: Path, change: dict, says: str) -> None:
    plan = json.loads((steps / "plan.json").read_text())
    name = list(plan["layers"])[1]
    plan["layers"][name] |= change
    (here / "edited.json").write_text(json.dumps(plan))
    apply("edited.json", says=(f"layer '{name}'", says))


def test_a_plan_of_what_the_model_has_not(apply: Refuses, steps: Path, here: Path) -> None:
    plan = Plan.load(steps / "plan.json").model_dump()
    (name, group), *_ = plan["groups"].items()
    edits = {
        "the plan names a layer that the model does not have: '/none/Conv'": {
            "layers": plan["layers"] | {"/none/Conv": {"method": "keep"}}
        },
        "the plan names a channel group that the model does not have: 'none'": {
            "groups": {"none": {"size": 4, "removed": [0]}}
        },
        f"the plan's group '{name}' is of size {group['size'] + 1}, and the model's of {group['size']}: correct it": {
            "groups": {name: group | {"size": group["size"] + 1}}
        },
        f"the plan removes channels of '{name}' that it does not have": {
            "groups": {name: group | {"removed": [group["size"]]}}
        },
    }
    for says, edit in edits.items():
        (here / "edited.json").write_text(json.dumps(plan | edit))
        apply("edited.json", says=says)


# Comparing


def test_models_of_different_signatures(refuses: Refuses, given: Path, here: Path) -> None:
    model, data = given / "model.onnx", ["--data", given / "splits.npz"]
    says = ("the models' output 'logits' differs in type or shape", "compare like with like")
    refuses("verify", model, given / "seven.onnx", *data, says=says)
    save(resnet((1, 1), (4, 8), size=16, classes=5), here / "larger.onnx")
    refuses("verify", model, "larger.onnx", *data, says="the models' input 'input' differs in type or shape")
    proto = onnx.load(model)
    proto.graph.node[-1].output[0] = proto.graph.output[0].name = "classes"
    save(proto, here / "renamed.onnx")
    refuses("verify", model, "renamed.onnx", *data, says="the models' outputs differ: logits against classes")
