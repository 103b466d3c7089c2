"""Passes of this project and of onnx-ir in one `Sequential`, on a ResNet that another tool has exported.

python examples/passes.py [MODEL.onnx]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# Python looks into this folder first, where it would find this file in place of the package `passes`.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.passes import common

from passes.normal_form.fold_affine import FoldAffine
from passes.normal_form.fold_constants import FoldConstants
from passes.normal_form.name_nodes import NameNodes

TOLERANCE = 1e-5  # of the largest output: what float32 rounding may make of some tens of layers


class Reported(ir.passes.PassBase):
    """Another pass, which says whether it has modified the model."""

    def __init__(self, step: ir.passes.PassBase) -> None:
        self.step = step

    @property
    def in_place(self) -> bool:
        """As the pass is."""
        return self.step.in_place

    @property
    def changes_input(self) -> bool:
        """As the pass does."""
        return self.step.changes_input

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass and print what came of it."""
        result = self.step(model)
        print(f"{type(self.step).__name__}: {'modified' if result.modified else 'nothing to do'}")
        return result


def rewritten(model: ir.Model) -> ir.Model:
    """The model after all passes; `model` may be changed on the way."""
    steps = (
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        NameNodes(),
        FoldConstants(),
        FoldAffine(),
        common.CommonSubexpressionEliminationPass(),
    )
    return ir.passes.Sequential(*map(Reported, steps))(model).model


def outputs(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What onnxruntime computes on the CPU."""
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, feeds)]


def main() -> None:
    """Rewrite a model, and compare its outputs before and after on two random images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).parent / "resnet20-cifar10.onnx"
    parser.add_argument("model", nargs="?", type=Path, default=default, help="an ONNX file (default: %(default)s)")
    path = parser.parse_args().model
    if not path.is_file():
        parser.error(f"there is no file '{path}'")
    before = onnx.load(path)
    after = ir.to_proto(rewritten(ir.from_proto(onnx.ModelProto.FromString(before.SerializeToString()))))

    image = before.graph.input[0]
    shape = [dim.dim_value or 2 for dim in image.type.tensor_type.shape.dim]
    feeds = {image.name: np.random.default_rng(0).normal(size=shape).astype(np.float32)}
    for expected, found in zip(outputs(before, feeds), outputs(after, feeds), strict=True):
        error = np.abs(expected - found).max() / np.abs(expected).max()
        if error > TOLERANCE:
            raise SystemExit(f"the outputs differ by {error:.1e} of the largest")
    print(f"{len(before.graph.node)} nodes became {len(after.graph.node)}; the outputs are the same")


if __name__ == "__main__":
    main()
