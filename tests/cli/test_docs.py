"""README.md and docs/: every command works, on small files of the names that the pages use; every link leads somewhere.

Each fenced block names its language. Blocks in `sh` and `python` are run, page by page in the page's order, in a folder
with stand-ins for the files that the pages name. A block in `yaml` whose first line is a comment with a file's name is
that file. A comment `<!-- not run: REASON -->` before a block says why it is not run; its commands are parsed.
"""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from conftest import Cli
from graphs import Builder, resnet
from PIL import Image

import hmc_onnx
from hmc_onnx.profiling.candidate_times import Clock
from hmc_onnx.records.provenance import Provenance, with_provenance
from passes.graph.files import save

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKING = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
LANGUAGES = {"sh", "python", "yaml", "text"}
NOT_RUN = re.compile(r"<!-- not run: (\S.*) -->")
# Names of the stand-in's layers, in its order: as torch's exporter names those of a ResNet.
LAYERS = (
    "/conv1/Conv", "/layer1/layer1.0/conv1/Conv", "/layer1/layer1.0/conv2/Conv", "/layer2/layer2.0/conv1/Conv",
    "/layer2/layer2.0/conv2/Conv", "/layer2/layer2.0/downsample/downsample.0/Conv", "/fc/Gemm",
)  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, the reason why it is not run ("" where it is), and its text."""

    language: str
    reason: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command; a backslash joins lines, and # begins a comment."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    found: list[Block] = []
    lines = iter(page.read_text(encoding="utf-8").splitlines())
    before = ""
    for line in lines:
        if line.startswith("```"):
            marker = NOT_RUN.fullmatch(before)
            inside: list[str] = []
            for own in lines:
                if own == "```":
                    break
                inside.append(own)
            found.append(Block(line.removeprefix("```"), marker[1] if marker else "", "\n".join(inside)))
        before = line
    return found


def stand_in() -> onnx.ModelProto:
    """A network of two residual blocks, N×3×224×224 to N×5, whose layers have the names of a ResNet's.

    torch 2.13 on the CPU crashes in the backward pass of the same network with half the channels.
    """
    b = Builder()
    x = b.add("Relu", [b.conv("input", 3, 16, kernel=7, stride=16)])
    for inputs, outputs, stride in ((16, 16, 1), (16, 32, 2)):
        y = b.conv(b.add("Relu", [b.conv(x, inputs, outputs, stride=stride)]), outputs, outputs)
        if inputs != outputs:
            x = b.conv(x, inputs, outputs, kernel=1, stride=stride)
        x = b.add("Relu", [b.add("Add", [y, x])])
    weight = b.weight("fc.weight", (b.rng.normal(size=(5, 32)) / 6).astype(np.float32))
    features = b.add("Flatten", [b.add("GlobalAveragePool", [x])])
    model = b.model(b.add("Gemm", [features, weight], transB=1), ("N", 3, 224, 224), 5)
    for node, name in zip([n for n in model.graph.node if n.op_type in ("Conv", "Gemm")], LAYERS, strict=True):
        node.name = name
    output = model.graph.output[0].name
    model.graph.node[-1].output[0] = model.graph.output[0].name = "output"
    assert output != "output"
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that pages take as given."""
    at = tmp_path_factory.mktemp("files")
    made = Provenance(
        version="1", original="a", target="none", precision="fp32", strategy="hmc", plan="b", provider="cpu"
    )
    save(stand_in(), at / "resnet50.onnx")
    save(with_provenance(stand_in(), made), at / "faster.onnx")
    rng = np.random.default_rng(0)
    for folder in ("images", *(f"{split}/{kind}" for split in ("labelled", "train") for kind in "abcde")):
        (at / folder).mkdir(parents=True)
        for i in range(40 if folder == "images" else 9):
            colour = rng.integers(0, 200, (1, 1, 3))  # so that images differ for a network with random weights
            Image.fromarray((colour + rng.integers(0, 56, (40, 44, 3))).astype(np.uint8)).save(at / folder / f"{i}.png")
    save(resnet((1, 1), (8, 16), size=32), at / "model.onnx")
    np.savez(at / "images.npz", images=rng.integers(0, 256, (40, 32, 32, 3), np.uint8))
    return at


@pytest.fixture
def folder(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with these files; times are measured on multiples of 4, which need not be looked for."""
    for path in files.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Clock, "align", lambda _: 4)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_names_a_language(page: Path) -> None:
    assert {block.language for block in blocks(page)} <= LANGUAGES
    assert page.read_text(encoding="utf-8").count("<!-- not run") == sum(bool(b.reason) for b in blocks(page))


@pytest.mark.usefixtures("few_iterations", "few_candidates")
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(not b.reason for b in blocks(page))], ids=lambda page: page.name
)
def test_the_commands_of_a_page_work(page: Path, cli: Cli, folder: Path) -> None:
    for block in blocks(page):
        if block.reason:
            continue
        if block.language == "yaml":
            (folder / block.text.splitlines()[0].removeprefix("# ")).write_text(block.text)
        elif block.language == "python":
            rng = np.random.default_rng(0)
            reader = [rng.normal(size=(8, 3, 224, 224)).astype(np.float32) for _ in range(5)]
            exec(block.text, {"reader": reader})
        elif block.language == "sh":
            for name, *words in block.commands:
                _run(cli, name, words)


def _run(cli: Cli, name: str, words: list[str]) -> None:
    if name == "hmc-onnx":
        # of a network this small, starting its kernels takes most of the time, and that cannot be had back
        short = words[0] == "compress" and any("latency=" in word for word in words)
        done = cli(*words, *(["--or-nearest"] if short else []))
        assert done.code == 0, (words, done.err)
    else:
        assert name == "python", f"say before the block why '{name}' is not run"
        subprocess.run([sys.executable, *words], check=True, capture_output=True, timeout=60)


class Parsed(Exception):
    """The command line was accepted."""


@pytest.fixture
def only_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands and scripts end once their command line has been read."""
    from hmc_onnx.cli.commands import commands

    def stop(*_: Any, **__: Any) -> None:
        raise Parsed

    read = argparse.ArgumentParser.parse_args

    def parse_args(*args: Any, **options: Any) -> None:
        read(*args, **options)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    for command in commands().commands.values():
        monkeypatch.setattr(command, "callback", stop)


PARSED = [
    pytest.param(words, id=f"{page.name}-{' '.join(words)[:60]}")
    for page in PAGES
    for block in blocks(page)
    if block.reason and block.language == "sh"
    for words in block.commands
]


@pytest.mark.usefixtures("only_parsed")
@pytest.mark.parametrize("words", PARSED)
def test_a_command_that_is_not_run_is_one(words: list[str], cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    name, *rest = words
    if name == "torchrun":
        assert rest[rest.index("-m") + 1] == "hmc_onnx"
        name, rest = "hmc-onnx", rest[rest.index("-m") + 2 :]
    if name == "hmc-onnx":
        with pytest.raises(Parsed):
            cli(*rest)
    elif name == "python" and rest[0] == "-m":
        assert find_spec(f"{rest[1]}.__main__") is not None
    elif name == "python":
        monkeypatch.syspath_prepend(ROOT / "benchmarks")
        monkeypatch.setattr(sys, "argv", rest)
        with pytest.raises(Parsed):
            runpy.run_path(str(ROOT / rest[0]), run_name="__main__")
    elif name == "pip":
        extras = re.findall(r"[\w-]+", rest[-1])
        declared = re.findall(r"^([\w-]+) = \[", (ROOT / "pyproject.toml").read_text(), flags=re.M)
        assert rest[0] == "install" and set(extras) <= set(declared)
    elif name == "olive":
        assert rest[0] == "run" and (ROOT / rest[rest.index("--config") + 1]).is_file()
    else:
        assert name in ("tritonserver", "sh") or (ROOT / name).is_file()


LINK = re.compile(r"\]\(([^)\s]+)\)")


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as the site and GitHub make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKING, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.is_file(), link
        assert not anchor or anchor in slugs(other), link


def test_the_site_has_every_page() -> None:
    def paths(part: Any) -> Iterator[str]:
        if isinstance(part, str):
            yield part
        else:
            for own in part.values() if isinstance(part, dict) else part:
                yield from paths(own)

    listed = list(paths(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(listed) == sorted([*(p.name for p in PAGES[1:]), "contributing.md", "changelog.md"])


def test_the_python_page_has_every_public_name() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert [name for name in hmc_onnx.__all__ if not re.search(rf"\b{name}\b", page)] == []
