"""How far a changed network's outputs are from the original's: KL divergence, and top-1 where labels exist."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_softmax

__all__ = ["divergence", "divergences", "kl_divergence", "log_probabilities", "temperature", "top1"]

# Of the largest class probability, a mean that leaves something to be seen of the others.
SURE = 0.95
# The highest temperature that is tried.
HOTTEST = 1e3


def log_probabilities(outputs: np.ndarray) -> np.ndarray:
    """Log class probabilities (N, K), float64, of logits or of probabilities (a network that ends in Softmax).

    Outputs that are non-negative and sum to 1 are probabilities: their logarithm is taken.
    """
    flat = outputs.reshape(len(outputs), -1).astype(np.float64)
    if (flat >= 0).all() and np.allclose(flat.sum(1), 1, atol=1e-3):
        return np.asarray(np.log(np.maximum(flat, 1e-30)))
    return np.asarray(log_softmax(flat, axis=1))


def kl_divergence(reference: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> float:
    """Mean KL(reference ‖ outputs) over all images, in nats; both as lists of batches of network outputs."""
    return max(float(_kl(reference, outputs).mean()), 0.0)


def temperature(reference: Sequence[np.ndarray]) -> float:
    """The least temperature, from 1, at which a network is no surer of its classes than `SURE`, as a mean over images.

    On images that it was trained on a network is sure: there the KL divergence comes from the few of which it is not,
    and a mean over some hundred images says little. At a temperature (Hinton et al., arXiv:1503.02531) all tell.
    """
    logs = np.concatenate([log_probabilities(batch) for batch in reference])

    def excess(log_heat: float) -> float:
        return float(np.exp(log_softmax(logs / np.exp(log_heat), axis=1)).max(1).mean()) - SURE

    hottest = float(np.log(HOTTEST))
    if excess(0.0) <= 0 or excess(hottest) >= 0:  # of one class any network is sure
        return 1.0
    return float(np.exp(brentq(excess, 0.0, hottest, xtol=1e-3)))


def _kl(reference: Sequence[np.ndarray], outputs: Sequence[np.ndarray], heat: float = 1.0) -> np.ndarray:
    """KL divergence of each image (N,) at a temperature, times its square."""
    found = []
    for a, b in zip(reference, outputs, strict=True):
        log_p, log_q = (log_softmax(log_probabilities(side) / heat, axis=1) for side in (a, b))
        p = np.exp(log_p)
        nats = np.subtract(log_p, log_q, out=np.zeros_like(p), where=p > 0)  # not log(p / q), as q may underflow
        found.append(heat**2 * (p * nats).sum(1))
    return np.concatenate(found)


def divergence(reference: Sequence[Sequence[np.ndarray]], outputs: Sequence[Sequence[np.ndarray]]) -> float:
    """The mean of `divergences`."""
    return max(float(divergences(reference, outputs).mean()), 0.0)


def divergences(
    reference: Sequence[Sequence[np.ndarray]],
    outputs: Sequence[Sequence[np.ndarray]],
    spread: Sequence[Sequence[np.ndarray]] | None = None,
    heat: float = 1.0,
) -> np.ndarray:
    """Nats of each image (N,) over all outputs of a network, class scores first, each as a list of batches.

    Of those, and of others of rank 2, it is the KL divergence at the temperature `heat`, times its square, which leaves
    small differences of logits as large as they are at 1. Another output's values are taken for Gaussians of the
    variance that they have over the images of `spread` (default: `reference`): then it is half the squared error as a
    share of that.
    """
    images = sum(len(batch) for batch in reference[0])
    total = np.zeros(images)
    for i, (a, b, all_) in enumerate(zip(reference, outputs, spread or reference, strict=True)):
        total += _kl(a, b, heat) if i == 0 or a[0].ndim == 2 else _gaussian(a, b, all_, images)
    return total


def _gaussian(
    reference: Sequence[np.ndarray], outputs: Sequence[np.ndarray], spread: Sequence[np.ndarray], images: int
) -> np.ndarray:
    a, b, all_ = (_joined(side) for side in (reference, outputs, spread))
    squares = (a - b) ** 2 / (2 * max(all_.var(), np.finfo(float).tiny))
    if len(squares) != images:  # not one entry an image
        return np.full(images, squares.mean())
    return np.asarray(squares.reshape(images, -1).mean(1))


def _joined(batches: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.atleast_1d(batch) for batch in batches]).astype(np.float64)


def top1(outputs: Sequence[np.ndarray], labels: np.ndarray) -> float:
    """Share of images whose largest output is at the label."""
    predictions = np.concatenate([o.reshape(len(o), -1).argmax(1) for o in outputs])
    return float((predictions == labels).mean())
