"""Weights on the grid of an INT8 quantiser, chosen so that the layer's responses change least.

A quantiser rounds each weight to the nearest multiple of its channel's step. Rounding one input after the other, and
moving the weights of the inputs that are left so that they make up for the error, changes the responses less: GPTQ
(Frantar et al., arXiv:2210.17323), which is optimal brain surgeon with the second moment of the patches. The largest
weight of each channel stays, so that the quantiser finds the same grid again, and rounds nothing a second time.
"""

from __future__ import annotations

import numpy as np

from passes.core.linear_algebra import damped, lower_inverse

__all__ = ["rounded"]

# Strength of the ridge on the second moment, as a share of its mean eigenvalue; that of GPTQ.
DAMPING = 1e-2
# Inputs that are rounded together before the others are moved.
BLOCK = 64


def rounded(weight: np.ndarray, levels: int, second: np.ndarray | None = None) -> np.ndarray:
    """Weights that are whole multiples of a step in each output channel.

    Args:
        weight: (O, I, *kernel); its largest magnitude in a channel is `levels` steps.
        levels: the largest integer of the grid, 127 for 8 bits.
        second: Sxx (n, n) of the patches, n = I k k; None: each weight is rounded to the nearest.

    Returns:
        float64, of the same shape.
    """
    w = weight.reshape(len(weight), -1).astype(np.float64)
    steps = np.abs(w).max(1, keepdims=True) / levels
    steps[steps == 0] = 1.0
    if second is None:
        return np.asarray((np.round(w / steps) * steps).reshape(weight.shape))
    largest = np.abs(w).argmax(1)
    kept = w[np.arange(len(w)), largest]
    # the row i of U holds how the inputs behind i make up for an error of i
    upper = np.linalg.cholesky(lower_inverse(damped(second, DAMPING))).T  # which reads the lower triangle
    for start in range(0, w.shape[1], BLOCK):
        block = slice(start, min(start + BLOCK, w.shape[1]))
        errors = np.zeros((len(w), block.stop - start))
        for i in range(start, block.stop):
            found = np.clip(np.round(w[:, [i]] / steps), -levels, levels) * steps
            found[largest == i, 0] = kept[largest == i]
            error = (w[:, [i]] - found) / upper[i, i]
            w[:, i : block.stop] -= error @ upper[[i], i : block.stop]
            w[:, [i]], errors[:, [i - start]] = found, error
        w[:, block.stop :] -= errors @ upper[block, block.stop :]
    return w.reshape(weight.shape)
