"""Targets, options and settings files that make no sense: one sentence, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Refuses

pytestmark = pytest.mark.usefixtures("few_iterations")


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
    compress(
        "--align",
        "1000",
        target="macs=0.9",
        says=("macs=1.0", "keep more, give an --align below 1000 or give --or-nearest"),
    )
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
