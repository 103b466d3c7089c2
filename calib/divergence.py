"""How far a changed network's outputs are from the original's: KL divergence, and top-1 where labels exist."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import log_softmax

__all__ = ["divergence", "kl_divergence", "log_probabilities", "top1"]


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
    total, count = 0.0, 0
    for a, b in zip(reference, outputs, strict=True):
        log_p, log_q = log_probabilities(a), log_probabilities(b)
        p = np.exp(log_p)
        nats = np.subtract(log_p, log_q, out=np.zeros_like(p), where=p > 0)  # not log(p / q), as q may underflow
        total += float((p * nats).sum())
        count += len(a)
    return max(total / count, 0.0)


def divergence(reference: Sequence[Sequence[np.ndarray]], outputs: Sequence[Sequence[np.ndarray]]) -> float:
    """Nats over all outputs of a network, the first of which are its class scores, each as a list of batches.

    Of those, and of others of rank 2, it is the KL divergence. Another output's values are taken for Gaussians of the
    variance that they have over the images: then it is half the squared error as a share of that.
    """
    return sum(
        kl_divergence(a, b) if i == 0 or a[0].ndim == 2 else _gaussian(a, b)
        for i, (a, b) in enumerate(zip(reference, outputs, strict=True))
    )


def _gaussian(reference: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> float:
    a, b = (
        np.concatenate([np.atleast_1d(batch) for batch in side]).astype(np.float64) for side in (reference, outputs)
    )
    return float(((a - b) ** 2).mean() / (2 * max(a.var(), np.finfo(float).tiny)))


def top1(outputs: Sequence[np.ndarray], labels: np.ndarray) -> float:
    """Share of images whose largest output is at the label."""
    predictions = np.concatenate([o.reshape(len(o), -1).argmax(1) for o in outputs])
    return float((predictions == labels).mean())
