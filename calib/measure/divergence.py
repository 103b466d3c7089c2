"""Distance of a changed network's outputs from the original's: KL divergence, and top-1 where there are labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_softmax

__all__ = ["divergence", "divergences", "kl_divergence", "log_probabilities", "temperature", "top1"]

# Target mean of the top-1 probability when the temperature is chosen.
SURE = 0.95
# Upper bound of the search for the temperature.
HOTTEST = 1e3


def log_probabilities(outputs: np.ndarray) -> np.ndarray:
    """Log class probabilities (N, K), float64, from logits or from probabilities (of a network that ends in Softmax).

    Outputs that are non-negative and sum to 1 are taken to be probabilities.
    """
    flat = outputs.reshape(len(outputs), -1).astype(np.float64)
    if (flat >= 0).all() and np.allclose(flat.sum(1), 1, atol=1e-3):
        return np.asarray(np.log(np.maximum(flat, 1e-30)))
    return np.asarray(log_softmax(flat, axis=1))


def kl_divergence(reference: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> float:
    """Mean KL(reference ‖ outputs) over all images, in nats; both are lists of batches of class scores (n, K)."""
    return max(float(_kl(reference, outputs).mean()), 0.0)


def temperature(reference: Sequence[np.ndarray]) -> float:
    """The lowest temperature, from 1, at which the mean top-1 probability of a network is at most `SURE`.

    A network is nearly certain on the images that it was trained on. There the KL divergence comes from the few images
    of which it is not, so that its mean over some hundred images is noisy. At a temperature (Hinton et al.,
    arXiv:1503.02531) all images contribute.

    Args:
        reference: class scores of the network, as a list of batches (n, K).

    Returns:
        The temperature; 1 where the network is not that certain, or where no temperature makes it less so (one class).
    """
    logs = np.concatenate([log_probabilities(batch) for batch in reference])

    def excess(log_heat: float) -> float:
        return float(np.exp(log_softmax(logs / np.exp(log_heat), axis=1)).max(1).mean()) - SURE

    hottest = float(np.log(HOTTEST))
    if excess(0.0) <= 0 or excess(hottest) >= 0:  # a network with one class is always certain
        return 1.0
    return float(np.exp(brentq(excess, 0.0, hottest, xtol=1e-3)))


def _kl(reference: Sequence[np.ndarray], outputs: Sequence[np.ndarray], heat: float = 1.0) -> np.ndarray:
    """KL divergence of each image (N,) in nats, at the temperature `heat` and times its square."""
    found = []
    for a, b in zip(reference, outputs, strict=True):
        log_p, log_q = (log_softmax(log_probabilities(side) / heat, axis=1) for side in (a, b))
        p = np.exp(log_p)
        nats = np.subtract(log_p, log_q, out=np.zeros_like(p), where=p > 0)  # in p / q, q may underflow
        found.append(heat**2 * (p * nats).sum(1))
    return np.concatenate(found)


def divergence(reference: Sequence[Sequence[np.ndarray]], outputs: Sequence[Sequence[np.ndarray]]) -> float:
    """The mean of `divergences` over the images, in nats, at least 0."""
    return max(float(divergences(reference, outputs).mean()), 0.0)


def divergences(
    reference: Sequence[Sequence[np.ndarray]],
    outputs: Sequence[Sequence[np.ndarray]],
    spread: Sequence[Sequence[np.ndarray]] | None = None,
    heat: float = 1.0,
) -> np.ndarray:
    """Divergence of each image (N,) in nats, summed over all outputs of a network.

    For class scores it is the KL divergence at the temperature `heat`, times heat²: with this factor, small differences
    of logits count as much as at temperature 1. For another output it is half the squared error as a share of the
    output's variance, which is the KL divergence of two Gaussians of that variance.

    Args:
        reference: the original's outputs, each as a list of batches. The first one is class scores, and so is every
            other output of rank 2.
        outputs: the changed network's, in the same order.
        spread: outputs of the original over which the variance is taken; default: `reference`.
        heat: the temperature.
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
    if len(squares) != images:  # the output has no batch axis
        return np.full(images, squares.mean())
    return np.asarray(squares.reshape(images, -1).mean(1))


def _joined(batches: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.atleast_1d(batch) for batch in batches]).astype(np.float64)


def top1(outputs: Sequence[np.ndarray], labels: np.ndarray) -> float:
    """Share of the images (0 to 1) whose largest score is that of the label."""
    predictions = np.concatenate([o.reshape(len(o), -1).argmax(1) for o in outputs])
    return float((predictions == labels).mean())
