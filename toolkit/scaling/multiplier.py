"""The compute multiplier: how much dense compute, or time, buys the loss of a sparse family.

Both at equal FLOPs and at equal seconds: the first says what sparsity is worth, the second whether
this machine's kernels let one keep it. The second is the counterpart of marin's
`effective_speedup`, which converts a loss to compute by the
baseline's own law and then charges for throughput; here the baseline's size is chosen anew for the
clock, and its law is read off between measured runs instead of a fitted power law.

Losses are compared on the same validation windows. Most of the sampling error of their level is therefore shared by
all runs and cancels in the differences that a multiplier is made of; what does not is in no interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from toolkit.checks import require, require_positive
from toolkit.scaling.hull import Frontier
from toolkit.scaling.laws.isoflop import Array, Cell, SeedNoise, cells_of, curve_minima, seed_noise
from toolkit.scaling.results import RunResult

_TAIL = 0.025  # of the 95% interval, on each side


@dataclass(frozen=True)
class Estimate:
    """A multiplier with its 95% interval.

    ``value`` is nan where it cannot be told (the baseline has one budget, so no slope), and inf (or
    0) where it lies beyond the baseline's largest (below its smallest) budget and the baseline's
    loss does not fall there. ``low`` and ``high`` are None where no cell has two seeds.
    """

    value: float
    low: float | None
    high: float | None
    extrapolated: bool  # the value lies outside the baseline's measured range
    interval_extrapolated: bool  # more than 2.5% of the resamples do


@dataclass(frozen=True)
class ComputeMultiplier:
    """What one family's best at one budget is worth in the baseline's compute and in its time."""

    family: str
    baseline: str
    budget: float  # FLOPs
    loss: float  # bits per byte, minimum of the family's isoFLOP curve
    equal_flops: Estimate  # baseline FLOPs for `loss` / budget
    seconds: float  # of the family's best measured cell at this budget
    loss_at_seconds: float  # bits per byte, the best the family reaches in that time
    equal_seconds: Estimate  # baseline seconds for `loss_at_seconds` / seconds


@dataclass(frozen=True)
class Frontiers:
    """One family's loss against FLOPs (a point for each budget) and against seconds (for each cell)."""

    budgets: tuple[float, ...]  # ascending
    flops: Frontier
    seconds: Frontier


def compute_multiplier(
    rows: Sequence[RunResult], family: str, baseline: str = "dense", *, resamples: int = 2000, seed: int = 0
) -> list[ComputeMultiplier]:
    """Tell how much of the baseline's compute, and of its time, buys the family's loss at each budget.

    At equal FLOPs both sides are minima of isoFLOP curves (:mod:`toolkit.scaling.laws.isoflop`). At equal
    seconds both sides are the hull of all cells, size x budget, of loss against seconds, because the
    best size for the clock is not the best size for FLOPs. How a loss is converted to a cost between
    and beyond measured points is told in :mod:`toolkit.scaling.hull`.

    The interval is a parametric bootstrap: each cell's mean is drawn from a normal distribution with
    the pooled seed standard deviation over sqrt(seeds), that deviation itself by its chi-square
    distribution, and the whole analysis is done again; 2.5% and 97.5% percentiles. A draw without an
    answer counts against both ends. The interval covers the noise over seeds; it holds neither the noise
    of the clock nor the few per cent that interpolation and the parabola err by.

    Args:
        rows: finished runs of at least these two families.
        family: the sparse one.
        baseline: the dense one.
        resamples: bootstrap draws.
        seed: of the draws; the same one gives the same interval.

    Returns one entry for each budget of the family, ascending.

    Raises:
        ValueError: no runs of the family or of the baseline, or a loss that is not finite.
    """
    require_positive(resamples=resamples)
    cells, noise = cells_of(rows), seed_noise(rows)
    present = tuple(dict.fromkeys(cell.family for cell in cells))
    require(family in present, "family", family, f"one that has runs: {', '.join(present)}")
    require(baseline in present, "baseline", baseline, f"one that has runs: {', '.join(present)}")
    dense_cells, sparse_cells = ([cell for cell in cells if cell.family == name] for name in (baseline, family))
    generator = np.random.default_rng(seed)
    dense = frontiers(dense_cells, _draw(dense_cells, noise, resamples, generator))
    sparse = frontiers(sparse_cells, _draw(sparse_cells, noise, resamples, generator))
    return [_multiplier(dense, sparse, at, family, baseline) for at in range(len(sparse.budgets))]


def frontiers(cells: Sequence[Cell], losses: Array | None = None) -> Frontiers:
    """Build both frontiers of one family.

    Args:
        cells: of one family, in the order of :func:`toolkit.scaling.laws.isoflop.cells_of`.
        losses: (draws, cells), bits per byte; by default the cells' own, one draw.
    """
    losses = np.array([[cell.loss for cell in cells]]) if losses is None else losses
    log_seconds = np.log([cell.seconds for cell in cells])
    grouped = groupby(range(len(cells)), key=lambda index: cells[index].budget)
    columns = {budget: np.array(list(members)) for budget, members in grouped}
    minima = [_curve_loss([cells[at] for at in members], losses[:, members]) for members in columns.values()]
    lowest = np.stack([members[losses[:, members].argmin(axis=1)] for members in columns.values()], axis=1)
    log_budgets = np.log(list(columns))
    with np.errstate(invalid="ignore"):  # a vertex below 0 becomes nan: no answer
        log_minima = np.log(np.stack(minima, axis=1))
    log_losses = np.log(losses)
    return Frontiers(
        budgets=tuple(columns),
        flops=Frontier(log_budgets, log_minima, np.broadcast_to(log_budgets, log_minima.shape), log_minima),
        seconds=Frontier(log_seconds, log_losses, log_seconds[lowest], np.take_along_axis(log_losses, lowest, axis=1)),
    )


def _curve_loss(cells: list[Cell], losses: Array) -> Array:
    """Lowest loss (draws,) of the isoFLOP curve of one budget."""
    return curve_minima(np.log([cell.size for cell in cells]), losses)[1]


def _draw(cells: list[Cell], noise: SeedNoise | None, resamples: int, generator: np.random.Generator) -> Array:
    """Draw cell means (1 + resamples, cells): first as measured, then noisy if the noise is known.

    A draw with a loss not above 0 (at one degree of freedom the deviation may be drawn very large)
    has no logarithm and becomes nan as a whole.
    """
    means = np.array([[cell.loss for cell in cells]])
    if noise is None:
        return means
    freedom = noise.degrees_of_freedom
    scale = np.sqrt(freedom / generator.chisquare(freedom, (resamples, 1)))
    error = noise.sd / np.sqrt([cell.seeds for cell in cells])
    drawn = means + scale * error * generator.standard_normal((resamples, len(cells)))
    drawn[(drawn <= 0).any(axis=1)] = np.nan
    return np.concatenate([means, drawn])


def _multiplier(dense: Frontiers, sparse: Frontiers, at: int, family: str, baseline: str) -> ComputeMultiplier:
    """Read off both multipliers at the sparse family's budget number ``at``."""
    loss = sparse.flops.loss[:, at]
    log_seconds = sparse.seconds.best_cost[:, at]
    loss_at_seconds = sparse.seconds.loss_reached(log_seconds)
    log_flops_needed, flops_outside = dense.flops.cost_to_reach(loss)
    log_seconds_needed, seconds_outside = dense.seconds.cost_to_reach(loss_at_seconds)
    return ComputeMultiplier(
        family=family,
        baseline=baseline,
        budget=sparse.budgets[at],
        loss=float(np.exp(loss[0])),
        equal_flops=_estimate(log_flops_needed - np.log(sparse.budgets[at]), flops_outside),
        seconds=float(np.exp(log_seconds[0])),
        loss_at_seconds=float(np.exp(loss_at_seconds[0])),
        equal_seconds=_estimate(log_seconds_needed - log_seconds, seconds_outside),
    )


def _estimate(log_multiplier: Array, outside: NDArray[np.bool_]) -> Estimate:
    """Turn the draws (draws,), the first of which is the measurement, into an estimate."""
    with np.errstate(over="ignore"):
        value, *draws = np.exp(log_multiplier)
    if not draws:
        return Estimate(float(value), None, None, bool(outside[0]), False)
    # an order statistic, not an interpolation between two: draws may be infinite
    low = np.quantile(np.nan_to_num(draws, nan=0.0, posinf=np.inf), _TAIL, method="inverted_cdf")
    high = np.quantile(np.nan_to_num(draws, nan=np.inf, posinf=np.inf), 1 - _TAIL, method="inverted_cdf")
    beyond = bool(outside[1:].mean() > _TAIL)
    return Estimate(float(value), float(low), float(high), bool(outside[0]), beyond)
