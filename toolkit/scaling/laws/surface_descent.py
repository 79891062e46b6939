"""What a loss surface is fitted by: squares of losses, or Huber losses of log losses, with their derivatives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toolkit.scaling.laws.descent import expansion
from toolkit.scaling.laws.surface import Floats, LossSurface


@dataclass(frozen=True)
class SurfaceObjective:
    """What five numbers theta = (ln A, ln B, ln E, alpha, beta) are fitted by, over runs.

    Attributes:
        log_n, log_d, log_loss: of the runs, (runs,).
        delta: the sum of Huber losses of residuals of ln L; None: half the sum of squares of residuals of L.
    """

    log_n: Floats
    log_d: Floats
    log_loss: Floats
    delta: float | None

    def expand(self, theta: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
        """As :meth:`toolkit.scaling.laws.descent.Objective.expand`, k = 5."""
        a, b, e, alpha, beta = (column[:, None] for column in theta.T)
        everywhere = np.broadcast_to(e, (len(theta), len(self.log_n)))
        terms = np.stack([a - alpha * self.log_n, b - beta * self.log_d, everywhere])
        top = terms.max(axis=0)
        shares = np.exp(terms - top)
        total = shares.sum(axis=0)
        log_predicted = top + np.log(total)
        shares /= total
        jacobian = np.stack([*shares, -shares[0] * self.log_n, -shares[1] * self.log_d], axis=2)
        if self.delta is None:
            predicted = np.exp(log_predicted)
            residual, jacobian = predicted - np.exp(self.log_loss), jacobian * predicted[..., None]
        else:
            residual = log_predicted - self.log_loss
        value, gradient, squares = expansion(residual, jacobian, weights, self.delta)
        return value, gradient, squares


def surface_of(theta: Floats) -> LossSurface:
    """theta (5,) -> the surface."""
    log_a, log_b, log_e, alpha, beta = (float(value) for value in theta)
    return LossSurface(float(np.exp(log_e)), float(np.exp(log_a)), float(np.exp(log_b)), alpha, beta)
