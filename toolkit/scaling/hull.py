"""The frontier of loss against cost: the lower convex hull of measured points, and its inverse.

Why a convex hull. Let L = E + A / N^alpha + B / D^beta with D proportional to C / N (Hoffmann et al.
2022, arXiv 2203.15556). Then log L is a log-sum-exp of functions linear in (log N, log C), hence
jointly convex. The seconds of a run are C x rate(N), close to linear in the same coordinates. So the
lowest log L that can be had for a given log C, or log seconds, is a convex function of it, and every
chord between two measured points lies on it or above. The lowest of the chords, the hull, is the
tightest bound that the measurements give. It is exact for a pure power law (E = 0); chords of L
rather than log L would lie higher. With budgets a factor 3 apart it overstates the cost of a loss by
a few per cent.

Outside the measured range the hull's end is continued by the slope between the two nearest budgets' best.
A convex law flattens, so beyond the largest budget this understates the cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_ROUNDING = 1e-9  # of a log cost: nearer to the range's end than this is not outside it


@dataclass(frozen=True)
class Frontier:
    """Measured points, many draws of their losses at once.

    Attributes:
        cost: (points,), log FLOPs or log seconds, in any order.
        loss: (draws, points), log loss.
        best_cost, best_loss: (draws, budgets), the best point of each budget, budgets ascending: the
            slope between the first two, or the last two, continues the hull outside its range.
    """

    cost: Array
    loss: Array
    best_cost: Array
    best_loss: Array

    def chords(self) -> tuple[Array, Array, Array, Array]:
        """Return x0, y0, x1, y1 of every chord with x0 < x1: x (chords,), y (draws, chords)."""
        left, right = np.nonzero(self.cost[:, None] < self.cost[None, :])
        return self.cost[left], self.loss[:, left], self.cost[right], self.loss[:, right]

    def loss_reached(self, cost: Array) -> Array:
        """Return the lowest log loss on the hull at a log cost of at most ``cost``: (draws,) -> (draws,).

        +inf where ``cost`` is less than that of every point.
        """
        at = cost[:, None]
        measured = np.where(self.cost <= at, self.loss, np.inf).min(axis=1)
        x0, y0, x1, y1 = self.chords()
        chord = np.where((x0 <= at) & (at <= x1), y0 + (at - x0) / (x1 - x0) * (y1 - y0), np.inf)
        return np.minimum(measured, chord.min(axis=1, initial=np.inf))

    def cost_to_reach(self, loss: Array) -> tuple[Array, NDArray[np.bool_]]:
        """Return the lowest log cost at which the hull comes down to log loss ``loss``: (draws,) -> (draws,).

        Also returns whether that cost lies outside the measured range. The cost is nan with fewer
        than two budgets or a nan loss, or where it lies beyond an end of the range at which the better of the two
        nearest budgets' best costs no more than the other; +inf (or -inf) where it lies beyond the range's upper
        (lower) end and the loss does not fall between them.
        """
        start, end = self.cost.min(), self.cost[self.loss.argmin(axis=1)]
        start_loss, end_loss = self.loss[:, self.cost == start].min(axis=1), self.loss.min(axis=1)
        before = start + self._beyond(loss - start_loss, first=0)
        after = end + self._beyond(loss - end_loss, first=-2)
        cost = np.where(start_loss <= loss, before, np.where(end_loss > loss, after, self._crossing(loss)))
        known = np.isfinite(loss) & np.isfinite(self.loss).all(axis=1) & (self.best_cost.shape[1] >= 2)
        outside = (cost < start - _ROUNDING) | (cost > end + _ROUNDING)
        return np.where(known, cost, np.nan), known & outside

    def _crossing(self, loss: Array) -> Array:
        """Lowest log cost (draws,) at which a chord crosses ``loss``; +inf if none does."""
        target = loss[:, None]
        x0, y0, x1, y1 = self.chords()
        crosses = (y0 > target) & (target >= y1)
        at = x0 + (y0 - target) / np.where(crosses, y0 - y1, 1.0) * (x1 - x0)
        return np.where(crosses, at, np.inf).min(axis=1, initial=np.inf)

    def _beyond(self, gap: Array, first: int) -> Array:
        """Log cost (draws,) that changes log loss by ``gap`` at the slope from budget ``first`` to the next.

        Infinite, with the sign that the gap asks for, where the best loss does not fall between them.
        """
        if self.best_cost.shape[1] < 2:
            return np.full(len(gap), np.nan)
        rise = self.best_loss[:, first + 1] - self.best_loss[:, first]
        run = self.best_cost[:, first + 1] - self.best_cost[:, first]
        falls = (run > 0) & (rise < 0)
        untold = (run <= 0) & (rise < 0) & (gap != 0)  # better and no dearer: no slope to go on by
        unreachable = np.where(gap == 0, 0.0, -np.copysign(np.inf, gap))
        return np.where(untold, np.nan, np.where(falls, gap * run / np.where(falls, rise, 1.0), unreachable))
