"""CP of a tensor of three axes by alternating least squares (Kolda & Bader, SIAM Review 51, 2009, figure 3.3).

The iterates are those of tensorly's `parafac` up to rounding, which takes two to four times as long: here a product of
the tensor and a factor serves two axes, and the systems, which are symmetric, are solved by Cholesky.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg.lapack import get_lapack_funcs
from tensorly.decomposition import parafac

from passes.core.linear_algebra import damped
from passes.decompose.tensorly_apart import apart, svd_by_gram

__all__ = ["alternate"]

# Iterations, at most; they end earlier where one changes the error by less than GAIN of the tensor's norm.
MOST, GAIN = 30, 1e-5
# What is added to the diagonal of a system, in roundings of its mean entry there: terms that are alike, or more of them
# than the tensor has, make it singular.
DAMPING = 10


def alternate(tensor: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Factors A (o, r), B (i, r) and C (k, r) with T[o, i, k] ≈ Σ_r A[o, r] B[i, r] C[k, r].

    They start from the leading singular vectors along each axis, filled up with random numbers where the rank is larger
    than the axis; each solves a least-squares problem with the other two held.

    Args:
        tensor: T, (o, i, k), float32 or float64.
        rank: the number of terms r.
    """
    o, i, k = tensor.shape
    _, (_, b, c) = apart(parafac, tensor, rank, n_iter_max=0, svd=svd_by_gram, random_state=0)  # its start
    by_output, by_input = tensor.reshape(o, i * k), np.ascontiguousarray(tensor.transpose(0, 2, 1)).reshape(o * k, i)
    size, before = max(float(np.vdot(tensor, tensor)), float(np.finfo(tensor.dtype).tiny)), np.inf
    for _ in range(MOST):
        b, c = _unit(b), _unit(c)
        of_c = c.T @ c
        half = (by_input @ b).reshape(o, k, rank)
        a = _unit(_solved((b.T @ b) * of_c, np.einsum("okr,kr->or", half, c)))
        of_both = a.T @ a
        half = (by_output.T @ a).reshape(i, k, rank)
        b = _unit(_solved(of_both * of_c, np.einsum("ikr,kr->ir", half, c)))
        of_both *= b.T @ b
        right = np.einsum("ikr,ir->kr", half, b)
        c = _solved(of_both, right)
        # ‖T - T̂‖² = ‖T‖² + ‖T̂‖² - 2 ⟨T, T̂⟩
        lost = size + float(np.vdot(of_both, c.T @ c)) - 2 * float(np.vdot(right, c))
        after = (abs(lost) / size) ** 0.5
        if abs(before - after) < GAIN:
            break
        before = after
    return a, b, c


def _unit(factor: np.ndarray) -> np.ndarray:
    """A factor with columns of length 1: their lengths are in the factor that is solved for last."""
    length = np.sqrt(np.einsum("ir,ir->r", factor, factor))
    return np.asarray(factor / np.maximum(length, np.finfo(factor.dtype).tiny))


def _solved(gram: np.ndarray, right: np.ndarray) -> np.ndarray:
    """X (n, r) with X G = R for a symmetric G (r, r), which is damped."""
    gram = damped(gram, DAMPING * float(np.finfo(gram.dtype).eps))
    posv = get_lapack_funcs("posv", (gram,))
    _, found, failed = posv(gram, right.T, lower=True)
    if failed:  # by rounding, the least eigenvalue is not above zero for all that
        found = np.linalg.solve(gram, right.T)
    return np.asarray(found.T)
