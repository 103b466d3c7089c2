"""The signature of a model: its inputs and outputs, on which whoever serves the model relies."""

from __future__ import annotations

import onnx

from passes.core.errors import ModelError

__all__ = ["same_signature"]


def same_signature(a: onnx.ModelProto, b: onnx.ModelProto) -> None:
    """Check that b can stand in for a: the same inputs, outputs, types, axes and order.

    Raises:
        ModelError: it cannot; the message names the first difference.
    """
    for what in ("input", "output"):
        ours, theirs = (_values(m, what) for m in (a, b))
        if list(ours) != list(theirs):
            raise ModelError(
                f"the models' {what}s differ: {', '.join(ours)} against {', '.join(theirs)}: give a model and the one "
                "that it was made from"
            )
        for name, value in ours.items():
            if value.type != theirs[name].type:
                raise ModelError(f"the models' {what} '{name}' differs in type or shape: compare like with like")


def _values(proto: onnx.ModelProto, what: str) -> dict[str, onnx.ValueInfoProto]:
    defaults = {t.name for t in proto.graph.initializer} if what == "input" else set()
    return {v.name: v for v in getattr(proto.graph, what) if v.name not in defaults}
