"""A compressed file says how it was made: on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Cli
from graphs import images, resnet

from calib.runtime.quantisation import quantise
from hmc_onnx.records.provenance import Provenance, with_provenance
from passes.graph.files import load, save


@pytest.fixture(scope="module")
def planned(given: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan that changes nothing, for model.onnx and plain.npz."""
    from hmc_onnx.api import Images, Settings, load_data
    from hmc_onnx.planning.solution import unchanged
    from hmc_onnx.run import Run

    proto = load(given / "model.onnx")
    data = load_data(proto, given / "plain.npz", Images(), samples=16, seed=0)
    path = tmp_path_factory.mktemp("planned") / "plan.json"
    unchanged(Run(proto, data, Settings(samples=16, batch=4))).save(path)
    return path


def test_inspect_shows_how_a_file_was_made(cli: Cli, given: Path, planned: Path, tmp_path: Path) -> None:
    common = ("apply", given / "model.onnx", "--plan", planned, "--data", given / "plain.npz")
    assert cli(*common, "-o", tmp_path / "out.onnx").code == 0
    made = Provenance.read(load(tmp_path / "out.onnx"))
    assert made is not None
    words = cli("inspect", tmp_path / "out.onnx").words
    assert made.original in words
    assert "How this file was made" in words and made.plan in words and "planned for batch 4" in words
    assert "Layers that compute" in words

    assert cli(*common, "-o", tmp_path / "plain.onnx", "--no-metadata").code == 0
    assert Provenance.read(load(tmp_path / "plain.onnx")) is None
    assert "How this file was made" not in cli("inspect", tmp_path / "plain.onnx").words

    (tmp_path / "run.yaml").write_text("metadata: false\n")
    assert cli(*common, "-o", tmp_path / "yaml.onnx", "--config", tmp_path / "run.yaml").code == 0
    assert Provenance.read(load(tmp_path / "yaml.onnx")) is None


def test_inspect_shows_how_a_quantised_file_was_made_though_not_its_layers(cli: Cli, tmp_path: Path) -> None:
    made = Provenance(version="1", original="a", target="none", precision="int8", strategy="hmc", plan="b")
    save(with_provenance(quantise(resnet(), [{"input": images(8)}]), made), tmp_path / "int8.onnx")
    shown = cli("inspect", tmp_path / "int8.onnx")
    assert shown.code == 0
    assert "precision int8" in shown.words and "Its layers are not shown: the model is quantised" in shown.words
