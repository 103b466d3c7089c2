"""tensorly called so that its settings, which are of the whole process, stay what the caller has made them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import tensorly
from tensorly import tenalg
from tensorly.tenalg.core_tenalg import CoreTenalgBackend

__all__ = ["apart"]

_T = TypeVar("_T")


class _Products(CoreTenalgBackend, backend_name="hmc_onnx"):  # type: ignore[call-arg, misc]  # it has no types
    """tensorly's tensor algebra with another product of an unfolded tensor and a Khatri-Rao product.

    tensorly's own writes down the Khatri-Rao product of the two long axes, which is larger than the tensor by
    rank / k k, and takes four times as long; the sums are the same.
    """

    @staticmethod
    def unfolding_dot_khatri_rao(
        tensor: np.ndarray, cp_tensor: tuple[np.ndarray | None, Sequence[np.ndarray]], mode: int
    ) -> np.ndarray:
        """Σ over all axes but `mode` of a tensor of three axes times the factors of these: the longer one first."""
        weights, factors = cp_tensor
        longer = max((m for m in range(3) if m != mode), key=lambda m: tensor.shape[m])
        other = 3 - mode - longer
        half = np.tensordot(tensor, factors[longer], (longer, 0))
        summed = np.einsum("mor,or->mr" if mode < other else "omr,or->mr", half, factors[other])
        return np.asarray(summed if weights is None else summed * weights)


def apart(function: Callable[..., _T], *arguments: Any, **options: Any) -> _T:
    """The result of a function of tensorly on numpy arrays, whichever backend the caller has chosen.

    tensorly keeps its backends by thread, and there is no way to forget that one was chosen in a thread. So the call is
    made in a thread of its own, which ends with it.
    """

    def call() -> _T:
        tensorly.set_backend("numpy", local_threadsafe=True)
        tenalg.set_backend(_Products(), local_threadsafe=True)
        return function(*arguments, **options)

    with warnings.catch_warnings(), ThreadPoolExecutor(1) as thread:
        warnings.simplefilter("ignore")  # tensorly warns where it fills ranks above a mode's size
        return thread.submit(call).result()
