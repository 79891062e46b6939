"""Many least-squares problems of one kind solved at once by damped steps: a fit's starts, a bootstrap's resamples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from toolkit.scaling.laws.surface import Floats

QUIET = 3
"""A problem is solved once this many steps have left its value where it was since it last fell."""

BLOCK = 256
"""Problems that step together: their arrays stay in the processor's cache, and memory does not grow with resamples."""


class Objective(Protocol):
    """What parameters are fitted by, over runs."""

    def expand(self, theta: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
        """theta (problems, k), weights (problems, runs) -> value (problems,), gradient (problems, k), squares.

        The squares (problems, k, k) are Gauss and Newton's.
        """


def huber(residual: Floats, delta: float | None) -> tuple[Floats, Floats]:
    """The losses of residuals and the factors that reweigh their squares, of the residuals' shape.

    ``delta`` None is half the square. The factors are those of Holland and Welsch 1977.
    """
    if delta is None:
        return 0.5 * residual**2, np.ones_like(residual)
    size = np.abs(residual)
    inside = size <= delta
    losses = np.where(inside, 0.5 * residual**2, delta * (size - 0.5 * delta))
    return losses, np.where(inside, 1.0, delta / np.maximum(size, delta))


def expansion(residual: Floats, jacobian: Floats, weights: Floats, delta: float | None) -> tuple[Floats, ...]:
    """What :meth:`Objective.expand` returns, of residuals (problems, runs) and their slopes (problems, runs, k)."""
    losses, factors = huber(residual, delta)
    weighted = jacobian * (weights * factors)[..., None]
    gradient = np.einsum("prk,pr->pk", weighted, residual)
    return (weights * losses).sum(axis=1), gradient, weighted.transpose(0, 2, 1) @ jacobian


def descend(
    theta: Floats, objective: Objective, weights: Floats, free: Sequence[int] | None = None, steps: int = 600
) -> tuple[Floats, Floats]:
    """theta (problems, k) -> the same where ``objective`` is lowest near each, and its values (problems,).

    Levenberg 1944 and Marquardt 1963. A problem takes a step only if its value falls; its damping is its own. All
    tolerances are relative to the value, so that the sum over runs and their mean end at one place.

    Args:
        theta: where each problem begins.
        objective: of all problems.
        weights: of the runs, (problems, runs), or (1, runs) for all problems alike.
        free: which of theta move; None: all.
        steps: at most.
    """
    moving = np.arange(theta.shape[1]) if free is None else np.asarray(free)
    weights = np.broadcast_to(weights, (len(theta), weights.shape[1]))
    blocks = [slice(start, start + BLOCK) for start in range(0, len(theta), BLOCK)]
    found = [_descend(theta[block].copy(), objective, weights[block], moving, steps) for block in blocks]
    return np.concatenate([ends for ends, _ in found]), np.concatenate([values for _, values in found])


def _descend(
    theta: Floats, objective: Objective, weights: Floats, moving: npt.NDArray[np.int64], steps: int
) -> tuple[Floats, Floats]:
    """One block, moved where it lies."""
    damping, quiet = np.full(len(theta), 1e-3), np.zeros(len(theta), dtype=int)
    value, gradient, squares = objective.expand(theta, weights)
    for _ in range(steps):
        at = np.flatnonzero(quiet < QUIET)
        if not len(at):
            break
        tried = theta[at]
        tried[:, moving] -= _step(gradient[at][:, moving], squares[at][:, moving[:, None], moving], damping[at])
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            new, new_gradient, new_squares = objective.expand(tried, weights[at])
        better = new <= value[at]
        fell = np.where(better, value[at] - new, 0.0) > 1e-13 * value[at]
        quiet[at] = np.where(fell, 0, quiet[at] + (better | (damping[at] > 1e8)))
        damping[at] = np.clip(np.where(better, damping[at] / 5, damping[at] * 4), 1e-13, 1e12)
        taken = at[better]
        theta[taken], value[taken] = tried[better], new[better]
        gradient[taken], squares[taken] = new_gradient[better], new_squares[better]
    return theta, value


def _step(gradient: Floats, squares: Floats, damping: Floats) -> Floats:
    """The damped step of each problem: gradient (problems, k), squares (problems, k, k) -> (problems, k)."""
    place = np.arange(gradient.shape[1])
    damped = squares.copy()
    diagonal = squares[:, place, place]
    # a direction that no run tells of is damped by the smallest number that can be
    damped[:, place, place] += damping[:, None] * np.maximum(diagonal, 1e-12 * diagonal.max(axis=1, keepdims=True))
    damped[:, place, place] += np.finfo(float).tiny
    return np.asarray(np.linalg.solve(damped, gradient[..., None])[..., 0], dtype=np.float64)
