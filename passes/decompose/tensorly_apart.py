"""Calls tensorly with settings of this package, and leaves the settings of the caller as they are."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import tensorly

from passes.core.linear_algebra import principal

__all__ = ["apart", "svd_by_gram"]

_T = TypeVar("_T")


def svd_by_gram(
    matrix: np.ndarray, n_eigenvecs: int | None = None, **_: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The leading singular vectors and values of a matrix, for tensorly's option `svd`: U (a, n), S (n,) and V (n, b).

    They come from the eigenvectors of the smaller Gram matrix. For the long matrices that kernels unfold to, this takes
    a fraction of the time of an SVD. Singular values below √ε of the largest are inexact. (tensorly 0.9's "symeig_svd"
    takes the larger Gram matrix.)
    """
    if matrix.shape[0] > matrix.shape[1]:
        right, values, left = svd_by_gram(matrix.T, n_eigenvecs)
        return left.T, values, right.T
    squares, vectors = principal(matrix @ matrix.T)
    left = vectors[:, :n_eigenvecs]
    values = np.sqrt(np.maximum(squares[:n_eigenvecs], np.finfo(matrix.dtype).tiny))
    return left, values, left.T @ matrix / values[:, None]


def apart(function: Callable[..., _T], *arguments: Any, **options: Any) -> _T:
    """Call a function of tensorly with the numpy backend, whichever backend the caller has chosen; returns its result.

    tensorly stores the chosen backend by thread and cannot unset it, so the call runs in a thread of its own.
    """

    def call() -> _T:
        tensorly.set_backend("numpy", local_threadsafe=True)
        return function(*arguments, **options)

    with warnings.catch_warnings(), ThreadPoolExecutor(1) as thread:
        warnings.simplefilter("ignore")  # tensorly warns where it fills ranks above a mode's size
        return thread.submit(call).result()
