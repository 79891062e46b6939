"""Many loss surfaces fitted at once by damped steps: the starts of one fit, or the resamples of a bootstrap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toolkit.scaling.loss_surface import Floats, LossSurface


@dataclass(frozen=True)
class Objective:
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
        """theta (problems, 5), weights (problems or 1, runs) -> value (problems,), gradient (problems, 5), squares.

        The squares (problems, 5, 5) are Gauss and Newton's, reweighted by the residuals as Huber's loss asks (Holland
        and Welsch 1977).
        """
        a, b, e, alpha, beta = (column[:, None] for column in theta.T)
        everywhere = np.broadcast_to(e, (len(theta), len(self.log_n)))
        terms = np.stack([a - alpha * self.log_n, b - beta * self.log_d, everywhere])
        top = terms.max(axis=0)
        shares = np.exp(terms - top)
        total = shares.sum(axis=0)
        log_predicted = top + np.log(total)
        shares /= total
        jacobian = np.stack([*shares, -shares[0] * self.log_n, -shares[1] * self.log_d], axis=1)
        if self.delta is None:
            predicted = np.exp(log_predicted)
            residual, jacobian = predicted - np.exp(self.log_loss), jacobian * predicted[:, None, :]
            value, scale = (0.5 * weights * residual**2).sum(axis=1), np.broadcast_to(weights, residual.shape)
        else:
            residual = log_predicted - self.log_loss
            size = np.abs(residual)
            inside = size <= self.delta
            losses = np.where(inside, 0.5 * residual**2, self.delta * (size - 0.5 * self.delta))
            value = (weights * losses).sum(axis=1)
            scale = weights * np.where(inside, 1.0, self.delta / np.maximum(size, self.delta))
        weighted = jacobian * scale[:, None, :]
        return value, np.einsum("pkr,pr->pk", weighted, residual), weighted @ jacobian.transpose(0, 2, 1)


def descend(
    theta: Floats, objective: Objective, weights: Floats, fixed: float | None, steps: int = 600
) -> tuple[Floats, Floats]:
    """theta (problems, 5) -> the same where ``objective`` is lowest near each, and its values (problems,).

    Levenberg 1944 and Marquardt 1963.
    A problem takes a step only if its value falls; its damping is its own. ``fixed`` is E, where it is given.
    """
    theta, free = theta.copy(), np.array([0, 1, 2, 3, 4] if fixed is None else [0, 1, 3, 4])
    if fixed is not None:
        theta[:, 2] = np.log(fixed)
    damping = np.full(len(theta), 1e-3)
    value, gradient, squares = objective.expand(theta, weights)
    for _ in range(steps):
        tried = theta.copy()
        tried[:, free] -= _step(gradient[:, free], squares[:, free[:, None], free], damping)
        with np.errstate(over="ignore", invalid="ignore"):
            new, new_gradient, new_squares = objective.expand(tried, weights)
        better = new <= value
        done = (np.where(better, value - new, 0.0) <= 1e-13 * value) & (better | (damping > 1e8))
        theta[better], value = tried[better], np.where(better, new, value)
        gradient[better], squares[better] = new_gradient[better], new_squares[better]
        damping = np.clip(np.where(better, damping / 5, damping * 4), 1e-14, 1e12)
        if done.all():
            break
    return theta, value


def _step(gradient: Floats, squares: Floats, damping: Floats) -> Floats:
    """The damped step of each problem: gradient (problems, k), squares (problems, k, k) -> (problems, k)."""
    place = np.arange(gradient.shape[1])
    damped = squares.copy()
    damped[:, place, place] += damping[:, None] * (squares[:, place, place] + 1e-12)
    return np.asarray(np.linalg.solve(damped, gradient[..., None])[..., 0], dtype=np.float64)


def surface_of(theta: Floats) -> LossSurface:
    """theta (5,) -> the surface."""
    log_a, log_b, log_e, alpha, beta = (float(value) for value in theta)
    return LossSurface(float(np.exp(log_e)), float(np.exp(log_a)), float(np.exp(log_b)), alpha, beta)
