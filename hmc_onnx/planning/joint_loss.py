"""What residual branches of a stage lose together, beside the sum of what each loses alone.

Removals that lose s nats alone leave errors of norm √s in the scores, as the divergence is quadratic in them. If any
two of these errors have a correlation of ρ, the removals lose (1 - ρ) Σ s + ρ (Σ √s)² nats together, the squared norm
of the sum. The part beside Σ s is convex in the choices of a program, so tangents bound it from below, and the program
stays linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import LinearConstraint

from hmc_onnx.records.profile import GroupProfile, Stage

__all__ = ["JointLoss", "correlation"]

# Number of tangents to the square. Between two of them it is too low by a four-thousandth of its largest value at most.
TANGENTS = 32


def correlation(alone: np.ndarray, together: float) -> float:
    """ρ of removals that lose so many nats each, (removals,), and so many together; 0 to 1."""
    squared, total = np.sqrt(alone).sum() ** 2, alone.sum()
    return float(np.clip((together - total) / (squared - total), 0.0, 1.0))


class JointLoss(NamedTuple):
    """The branches of a stage among the choices of a program.

    Attributes:
        roots: √s of each choice that removes one of them, else 0, float64 (choices,).
        correlation: ρ of the stage.
    """

    roots: np.ndarray
    correlation: float

    @classmethod
    def of(cls, stage: Stage, groups: Sequence[tuple[GroupProfile, int]], count: int) -> JointLoss:
        """The branches of a stage, in a program of `count` choices, of which `groups` are the first."""
        roots = np.zeros(count)
        for at, (group, choice) in enumerate(groups):
            if group.name in stage.branches and group.choices[choice].removes_branch:
                roots[at] = np.sqrt(group.choices[choice].sensitivity)
        return cls(roots, stage.correlation)

    def beside_sum(self, solution: np.ndarray) -> float:
        """Nats that the branches which a solution removes, a 0/1 vector (choices,), lose beside their sum."""
        own = self.roots * solution
        return self.correlation * float(own.sum() ** 2 - own @ own)

    def bound(self, at: int, variables: int, unit: float) -> LinearConstraint:
        """The constraint that a variable is on or above the tangents to `beside_sum`.

        Args:
            at: index of that variable.
            variables: of the program; the first are its choices.
            unit: nats that the variable counts in; the solver's tolerances are those of numbers near 1.
        """
        points = np.linspace(0.0, self.roots.sum(), TANGENTS + 1)[1:, None]
        rows = np.zeros((TANGENTS, variables))
        rows[:, : len(self.roots)] = self.correlation * (2 * points * self.roots - self.roots**2) / unit
        rows[:, at] = -1.0
        return LinearConstraint(rows, -np.inf, self.correlation * points[:, 0] ** 2 / unit)
