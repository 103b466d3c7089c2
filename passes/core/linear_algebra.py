"""Least squares from second moments, regularised for inputs that are constant, always zero, or copies of each other.

LAPACK stores matrices by columns, and scipy would first copy one that is stored by rows, which takes as long as to
factor it. A symmetric matrix is its own transpose, so the transposed one is given, which is stored by columns.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
import scipy.linalg.lapack

__all__ = ["damped", "least_squares", "lower_inverse", "mirror", "principal", "ridge", "whitening"]

# A matrix is mirrored in blocks of so many rows and columns, which the processor's caches hold.
BLOCK = 256


def ridge(moment: np.ndarray, share: float) -> float:
    """`share` times the mean eigenvalue (trace / n) of a second moment (n, n)."""
    return share * _positive(float(np.trace(moment)) / len(moment))


def damped(moment: np.ndarray, share: float) -> np.ndarray:
    """A second moment (n, n) plus `ridge` on its diagonal, which makes it invertible."""
    found = moment.copy()
    np.fill_diagonal(found, moment.diagonal() + ridge(moment, share))
    return found


def whitening(moment: np.ndarray, floor: float = 1e-8) -> tuple[np.ndarray, np.ndarray]:
    """L and L⁻¹, each (n, n) and lower triangular, of a second moment M = L Lᵀ (n, n). That of L⁻¹ x is the identity.

    `floor` times the mean eigenvalue is added to the diagonal, so that inputs that are always zero, or copies of each
    other, have one, too.
    """
    factor = scipy.linalg.cholesky(damped(moment, floor).T, lower=True, overwrite_a=True, check_finite=False)
    return factor, np.asarray(scipy.linalg.lapack.dtrtri(factor, lower=True)[0])


def least_squares(features: np.ndarray, targets: np.ndarray, floor: float = 1e-10) -> np.ndarray:
    """B (O, m) that minimises E‖t - B z‖² from E[z zᵀ] (m, m) and E[t zᵀ] (O, m).

    `floor` times the mean eigenvalue is added to the diagonal, so that the system can be solved where features are
    always zero or copies of each other.
    """
    try:
        factor = scipy.linalg.cho_factor(damped(features, floor).T, overwrite_a=True, check_finite=False)
        return np.asarray(scipy.linalg.cho_solve(factor, targets.T, check_finite=False)).T
    except scipy.linalg.LinAlgError:  # by rounding, the least eigenvalue is not above zero
        return np.linalg.solve(damped(features, floor), targets.T).T


def principal(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (n,) and eigenvectors, as columns (n, n), of a symmetric matrix (n, n), the largest first.

    For float32, scipy's LAPACK takes half the time of numpy's.
    """
    values, vectors = scipy.linalg.eigh(matrix.T, driver="evd", check_finite=False)
    return values[::-1], vectors[:, ::-1]


def lower_inverse(moment: np.ndarray) -> np.ndarray:
    """M⁻¹ (n, n) of a symmetric positive definite matrix M (n, n), float64; its lower triangle only, by Cholesky.

    What is above the diagonal is not to be read. In this way it takes half the time of LU.
    """
    try:
        factor, lower = scipy.linalg.cho_factor(moment.T, lower=False, check_finite=False)
    except scipy.linalg.LinAlgError:  # by rounding, the least eigenvalue is not above zero
        return np.linalg.inv(moment)
    # transposed, the upper triangle by columns is the lower one by rows
    return np.asarray(scipy.linalg.lapack.dpotri(factor, lower=lower, overwrite_c=True)[0].T)


def mirror(upper: np.ndarray) -> None:
    """Make a matrix (n, n) symmetric in place, from its upper triangle."""
    for start in range(0, len(upper), BLOCK):
        end = start + BLOCK
        upper[end:, start:end] = upper[start:end, end:].T
        corner = np.triu(upper[start:end, start:end])
        upper[start:end, start:end] = corner + np.triu(corner, 1).T


def _positive(scale: float) -> float:
    """`scale`, or 1 where it is practically zero: the inputs never vary then, and any result is as good."""
    return scale if scale > np.finfo(float).tiny ** 0.5 else 1.0
