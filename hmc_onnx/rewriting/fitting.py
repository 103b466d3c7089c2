"""Least squares for one layer: new weights from the moments of what it reads and of what it should answer.

The weights are held near the layer's own by a ridge penalty. Where there are few patches for the layer's many inputs,
its strength is found by cross-validation: weights that are fitted to one half of the images are tried on the other.
"""

from __future__ import annotations

from copy import copy
from functools import cache, cached_property

import numpy as np

from calib.measure.moments import JointMoments, Moments
from passes.core.linear_algebra import least_squares, ridge

__all__ = ["Fit", "fitted_bias"]

# Strength of the ridge penalty towards the layer's own weights, as a share of the mean eigenvalue of the second moment
# of its patches.
RIDGE = 1e-3
# The strengths to choose from. The last keeps about a hundredth of the change that the first would make.
STRENGTHS = (RIDGE, 1e-2, 1e-1, 1.0, 10.0, 100.0)
# Outputs of a layer that the strength is chosen by, at most: they share it, and a few dozen tell it.
JUDGES = 64
# With this many patches for each input, the penalty hardly matters and is not chosen.
PLENTY = 8


class Fit:
    """The moments of one layer's patches and targets, gathered block by block, and the weights that fit them.

    Args:
        features: number of inputs of the layer's matrix, I k k for a Conv.
        patches: number of patches that will be given in all.
        biases: number of biases; nodes that share the weights may have different ones.
    """

    def __init__(self, features: int, patches: int, biases: int = 1) -> None:
        self.biases = biases
        # of all images, or of those at even and at odd places
        self._parts = [JointMoments(biases) for _ in range(1 if patches >= PLENTY * features else 2)]

    def update(self, patches: np.ndarray, targets: np.ndarray, images: int, bias: int = 0) -> None:
        """Add patches (images · positions, n) and their targets (images · positions, O), image by image.

        The positions of an image are those in the output of a Conv, or the vectors (tokens) that a Gemm reads. `bias`
        is the index of the bias that is added to the answers to these patches.
        """
        if len(self._parts) == 1:
            self._parts[0].parts[bias].update(patches, targets)
            return
        at = np.arange(len(patches)) * images // len(patches) % 2
        for part, joint in enumerate(self._parts):
            if (at == part).any():
                joint.parts[bias].update(patches[at == part], targets[at == part])

    def joined(self, other: Fit) -> Fit:
        """The fit of the blocks of both."""
        found = copy(self)
        found._parts = [mine.joined(theirs) for mine, theirs in zip(self._parts, other._parts, strict=True)]
        return found

    @cached_property
    def moments(self) -> JointMoments:
        """The moments over all images; to be read once all patches are given."""
        return self._parts[0] if len(self._parts) == 1 else self._parts[0].joined(self._parts[1])

    @cached_property
    def second(self) -> np.ndarray:
        """Their second moment, (n, n)."""
        return self.moments.second

    def weight(self, own: np.ndarray) -> np.ndarray:
        """argmin_B E‖t - B x‖² + λ‖B - W‖²: least squares, which keeps W where the data give no information.

        Args:
            own: W, the layer's weights so far, (O, I, *kernel).
        """
        strength = self._strength(own)  # first, as it needs much memory, and so do the moments over all images
        return _solved(own, self.second, self.moments.cross, strength).reshape(own.shape)

    def _strength(self, own: np.ndarray) -> float:
        if len(self._parts) == 1 or not all(part.count for joint in self._parts for part in joint.parts):
            return RIDGE
        some = slice(None, None, -(-len(own) // JUDGES))
        # in float32, which is exact enough to compare errors by, and takes half the time
        seconds = [part.second.astype(np.float32) for part in self._parts]
        crosses = [part.cross[some].astype(np.float32) for part in self._parts]
        weights = own[some].astype(np.float32)

        @cache
        def lost(place: int) -> float:
            return sum(
                _error(_solved(weights, seconds[fitted], crosses[fitted], STRENGTHS[place]), seconds[new], crosses[new])
                for fitted, new in ((0, 1), (1, 0))
            )

        # each takes a second for a large layer, so from the middle only as far as it gets better
        best = len(STRENGTHS) // 2
        for step in (1, -1):
            while 0 <= best + step < len(STRENGTHS) and lost(best + step) < lost(best):
                best += step
        return STRENGTHS[best]


def fitted_bias(kernel: np.ndarray, moments: Moments) -> np.ndarray:
    """The bias (O,) with which weights (O, I, *kernel) answer with the mean target to the mean patch."""
    return moments.target_mean - kernel.reshape(len(kernel), -1) @ moments.mean


def _solved(own: np.ndarray, second: np.ndarray, cross: np.ndarray, strength: float) -> np.ndarray:
    right = cross + ridge(second, strength) * own.reshape(len(own), -1)
    return least_squares(second, right, strength)


def _error(matrix: np.ndarray, second: np.ndarray, cross: np.ndarray) -> float:
    """E‖t - B x‖² about the means, less the variance of t, which is the same for every B."""
    return float(np.einsum("on,on->", matrix @ second - 2 * cross, matrix))
