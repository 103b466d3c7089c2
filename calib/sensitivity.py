"""Sensitivity: how far the network's output moves when some of its weights are replaced.

Measured as the KL divergence of the output from the original's, over calibration images, without labels. Only
the part of the graph behind the change runs, on activations held from one walk over the graph, and one
session serves every value that is tried for the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calib.divergence import divergence
from calib.walk import Walk
from passes.errors import ModelError
from passes.progress import Progress, silent

__all__ = ["Change", "sensitivities"]

# Share of the nodes behind a cut that are run again for changes further on, to save the building of sessions. What
# may be changed is not constant to onnxruntime either, which keeps it from the fastest kernels.
WINDOW = 0.05


@dataclass(frozen=True)
class Change:
    """Initializers that are replaced together, and the values to try for them.

    Attributes:
        tensor: name of the first tensor, in graph order, that a node with such an initializer reads.
        position: of that node in the graph.
        initializers: their names.
        options: for each key, what makes the values, by initializer name.
    """

    tensor: str
    position: int
    initializers: tuple[str, ...]
    options: Mapping[Hashable, Callable[[], dict[str, np.ndarray]]]


def sensitivities(walk: Walk, changes: Sequence[Change], progress: Progress = silent) -> dict[Hashable, float]:
    """Nats by option key, for all changes; the walk must be at the start of its graph.

    Raises:
        ModelError: the network's output is not a number.
    """
    results: dict[Hashable, float] = {}
    reference: list[list[np.ndarray]] | None = None
    of = sum(len(c.options) for c in changes)
    for window in _windows([c for c in changes if c.options], len(walk.model.graph.nodes)):
        walk.advance([window[0].tensor])
        tail = walk.tail([name for change in window for name in change.initializers])
        if reference is None:
            reference = tail.outputs({})
            if any(np.isnan(chunk).any() for output in reference for chunk in output):
                raise ModelError(
                    "the model's output is NaN on some calibration images: "
                    "check its weights, and that the images are preprocessed as for training"
                )
        for change in window:
            for key, values in change.options.items():
                progress("sensitivity", len(results), of)
                results[key] = divergence(reference, tail.outputs(values()))
    progress("sensitivity", of, of)
    return results


def _windows(changes: Sequence[Change], nodes: int) -> Iterator[list[Change]]:
    """Changes in graph order that share a session: it begins where the first of them does."""
    window: list[Change] = []
    for change in sorted(changes, key=lambda c: c.position):
        if window and change.position > window[0].position + WINDOW * (nodes - window[0].position):
            yield window
            window = []
        window.append(change)
    if window:
        yield window
