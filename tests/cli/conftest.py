"""What the tests of the command line share: calls of it in this process, and a folder of inputs, good and bad."""

from __future__ import annotations

import re
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from zoo import images, resnet

from hmc_onnx.api import profile as profile_model
from hmc_onnx.planning.program import solve
from hmc_onnx.records.goal import parse_target
from hmc_onnx.records.settings import Settings
from passes.graph.files import save

PROGRESS = re.compile(r"[a-z ]+: (\d+ steps|\d+ of \d+ \(\d+%\)(, about \d+ (s|min) left)?|about \d+ minutes? and .*)")
# Networks with random weights that are shown noise: of their answers there is much to warn of.
OF_DATA = re.compile(
    r"warning: .*(no more than a guess|close to equal probabilities|to each of \d+ images|images to calibrate with"
    r"|class folders and the model has).*"
)


@dataclass(frozen=True)
class Outcome:
    """How a call ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines on standard error that are neither progress nor warnings of the data."""
        return [line for line in self.err.splitlines() if not PROGRESS.fullmatch(line) and not OF_DATA.fullmatch(line)]

    @property
    def words(self) -> str:
        """Standard output without the rulings of its tables, and with single spaces."""
        return " ".join(re.sub(r"[┃│┏━┳┓┡╇┩└─┴┘]", " ", self.out).split())


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """Calls `hmc-onnx` in this process."""
    from hmc_onnx.cli import main

    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    handler = signal.getsignal(signal.SIGTERM)

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "argv", ["hmc-onnx", *map(str, arguments)])
            with pytest.raises(SystemExit) as exit_:
                main()
        return Outcome(int(exit_.value.code or 0), *capsys.readouterr())

    yield call
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="session")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models and data that fit them; tests leave it as it is.

    model.onnx takes N×3×8×8 and has 5 classes; other.onnx has other weights, seven.onnx has 7 classes.
    """
    at = tmp_path_factory.mktemp("given")
    save(resnet((1, 1), (4, 8), size=8, classes=5), at / "model.onnx")
    save(resnet((1, 1), (4, 8), size=8, classes=5, seed=1), at / "other.onnx")
    save(resnet((1, 1), (4, 8), size=8, classes=7), at / "seven.onnx")
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, 256, (2, 40, 3, 8, 8), np.uint8)
    labels = rng.integers(0, 5, 40)
    np.savez(at / "splits.npz", train_images=train, test_images=test, test_labels=labels)
    np.savez(at / "labelled.npz", images=train, labels=labels)
    np.savez(at / "plain.npz", images=train)
    np.savez(at / "floats.npz", input=images(40, 8))
    for kind in ("cat", "dog", "frog"):
        (at / "classes" / kind).mkdir(parents=True)
        for i in range(12):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(at / "classes" / kind / f"{i}.png")
    (at / "flat").mkdir()
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(at / "flat" / f"{i}.png")
    return at


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """What is in a folder, hidden and temporary files too."""
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_mtime_ns, content)
    return found


def pixels(*shape: int) -> np.ndarray:
    """Noise as an image's bytes."""
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


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


@pytest.fixture(scope="session")
def steps(given: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with profile.json of model.onnx with splits.npz, and plan.json of it."""
    at = tmp_path_factory.mktemp("steps")
    pixels = np.load(given / "splits.npz")["train_images"]
    data = {"input": (np.arange(256) / 255).astype(np.float32)[pixels]}
    profile = profile_model(given / "model.onnx", [data], Settings())
    profile.save(at / "profile.json")
    solve(profile, parse_target("macs=0.6")).save(at / "plan.json")
    return at
