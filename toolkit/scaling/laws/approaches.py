"""How a budget is best split, N*(C) and D*(C) as power laws, without a loss surface: Hoffmann's first two approaches.

*Approach 1* takes the envelope of training curves, *approach 2* the minima of parabolas through isoFLOP curves. The
third is :func:`toolkit.scaling.laws.surface_fit.fit_loss_surface`.

Approach 2 is biased even where nothing is noisy: an isoFLOP curve is lopsided unless alpha = beta, and the wider the
sizes, the further a parabola's vertex is from its minimum. Where the sizes lie about the optimum by the same factors at
every budget, the vertex is off by one factor too: the exponent stays exact and the intercept is wrong. Where their
centre drifts with the budget, so is the exponent (arXiv 2603.22339). On the Chinchilla surface, with 15 sizes within a
factor of 16, log10 D* starts at -0.578092 in place of -0.555357: 5% fewer tokens. :func:`parabola_bias` tells it for
any surface and grid.

Source: Hoffmann et al. 2022 (arXiv 2203.15556), sections 3.1 and 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from toolkit.checks import require, require_positive
from toolkit.scaling.laws.envelope import TrainingCurve, compute_envelope
from toolkit.scaling.laws.isoflop import parabola
from toolkit.scaling.laws.power_law import PowerLaw, fit_power_law
from toolkit.scaling.laws.runs import Runs
from toolkit.scaling.laws.surface import PER_PARAMETER, Floats, LossSurface, Optimum


@dataclass(frozen=True)
class Allocation:
    """How the best size and the tokens grow with the budget.

    Attributes:
        params, tokens: N*(C) and D*(C), C in FLOPs.
        optima: the points they go through.
        left_out: budgets, or sizes for approach 1, without a minimum that the measurements enclose, and the reason.
    """

    params: PowerLaw
    tokens: PowerLaw
    optima: tuple[Optimum, ...] = field(repr=False)
    left_out: tuple[tuple[float, str], ...]


def envelope_allocation(curves: Sequence[TrainingCurve], *, bins: int = 1500, window: float = 0.05) -> Allocation:
    """Approach 1: which size has the least loss at each budget along its training.

    Each size counts once, at the geometric middle of the budgets it is best for. Hoffmann et al. count every one of
    their bins, which repeats a size the more often the longer its turn is, and would make the errors too small by far.
    They are still somewhat too small: with 19 sizes on the Chinchilla surface and noise of 0.3% in each point, the 95%
    interval of N*'s exponent held the truth in 88% of 60 draws.

    Args:
        curves: of models trained far enough to be overtaken by the next larger one. Their losses should be those of
            finished runs: a learning rate that is still to fall hides part of what a longer run has reached.
        bins: budgets, evenly spaced in their logarithms.
        window: of the smoothing, as a share of the tokens seen so far.

    Raises:
        ValueError: as :func:`toolkit.scaling.laws.envelope.compute_envelope`, or if fewer than two sizes are best
            between two others.
    """
    found = compute_envelope(curves, bins=bins, window=window)
    sizes = [float(value) for value in np.unique(found.params[found.enclosed])]
    optima = []
    for value in sizes:
        won = found.enclosed & (found.params == value)
        flops, tokens, loss = (
            float(np.exp(np.log(values[won]).mean())) for values in (found.flops, found.tokens, found.loss)
        )
        optima.append(Optimum(flops, value, tokens, loss))
    reason = "at no budget the best between two others"
    left_out = [(size, reason) for size in sorted({curve.params for curve in curves} - set(sizes))]
    require(len(optima) >= 2, "curves", f"{len(optima)} sizes best between two others", "of two such sizes or more")
    return _allocation(optima, left_out)


def parabola_allocation(runs: Runs) -> Allocation:
    """Approach 2: parabolas of loss in ln N and in ln D at each budget, and power laws through their minima.

    Biased, see the module. A budget is left out, with the reason, where it has fewer than three sizes, its parabola
    does not open upwards, or the vertex is beyond the sizes measured.

    Args:
        runs: of one family, of a few budgets (``flops``), three sizes or more at each.

    Raises:
        ValueError: if the runs are of several families, or fewer than two budgets are left.
    """
    require(len(runs.families) == 1, "family", runs.families, "one")
    optima: list[Optimum] = []
    left_out: list[tuple[float, str]] = []
    budgets = runs.budgets
    for budget in np.unique(budgets).tolist():
        try:
            optima.append(_optimum(budget, runs.where(budgets == budget)))
        except ValueError as refusal:
            left_out.append((budget, str(refusal)))
    reasons = "".join(f"; {budget:g}: {reason}" for budget, reason in left_out)
    found = f"{len(optima)} budgets whose sizes enclose a minimum{reasons}"
    require(len(optima) >= 2, "runs", found, "of two such or more")
    return _allocation(optima, left_out)


def _optimum(budget: float, curve: Runs) -> Optimum:
    """Of one isoFLOP curve."""
    params, loss = _vertex("sizes", curve.active, curve.loss)
    tokens, _ = _vertex("token counts", curve.tokens, curve.loss)
    return Optimum(budget, params, tokens, loss)


def _vertex(name: str, x: Floats, loss: Floats) -> tuple[float, float]:
    """x and the loss at the vertex of the parabola of loss in ln x.

    Raises:
        ValueError: if there are fewer than three x, or there is no minimum within them.
    """
    log_x, values = np.log(x), len(np.unique(x))
    require(values >= 3, "runs", f"{values} {name} at one budget", "three or more")
    require(bool(np.ptp(loss) > 0), "loss", float(loss[0]), "not the same at every size")
    a, b, c = parabola(log_x, loss[None])[0]
    require(bool(a > 0), "runs", f"a parabola over {name} that opens downwards", "of losses with a minimum")
    vertex = float(np.exp(-b / (2 * a)))
    right = f"within the {name} measured, {x.min():.4g} to {x.max():.4g}"
    require(bool(x.min() <= vertex <= x.max()), "vertex", float(f"{vertex:.4g}"), right)
    return vertex, float(c - b**2 / (4 * a))


def _allocation(optima: Sequence[Optimum], left_out: Sequence[tuple[float, str]]) -> Allocation:
    flops = [optimum.flops for optimum in optima]
    params = fit_power_law(flops, [optimum.params for optimum in optima])
    tokens = fit_power_law(flops, [optimum.tokens for optimum in optima])
    return Allocation(params, tokens, tuple(optima), tuple(left_out))


@dataclass(frozen=True)
class AllocationBias:
    """Found minus true, of a noiseless surface.

    Attributes:
        found: by approach 2.
        params_exponent, params_intercept, tokens_exponent, tokens_intercept: of N*(C) and D*(C); intercepts in log10.
    """

    found: Allocation = field(repr=False)
    params_exponent: float
    params_intercept: float
    tokens_exponent: float
    tokens_intercept: float


def parabola_bias(
    surface: LossSurface, budgets: Sequence[float], width: float = 16.0, points: int = 15
) -> AllocationBias:
    """How far approach 2 is off on a surface without noise.

    Args:
        surface: the truth, with C = 6 N D.
        budgets: FLOPs, two or more.
        width: sizes are within this factor of the optimum, on either side.
        points: sizes at each budget, evenly spaced in their logarithms.

    Raises:
        ValueError: if a number is out of its range, or as :func:`parabola_allocation`.
    """
    require(width > 1, "width", width, "above 1")
    require_positive(points=points)
    around = np.geomspace(1 / width, width, points)
    params = np.concatenate([surface.optimum(budget).params * around for budget in budgets])
    flops = np.repeat(np.asarray(budgets, dtype=np.float64), points)
    tokens = flops / (PER_PARAMETER * params)
    found = parabola_allocation(Runs.of(params, tokens, surface.loss(params, tokens), flops=flops))
    at_one = surface.optimum(1.0)
    return AllocationBias(
        found,
        params_exponent=found.params.exponent - surface.exponent,
        params_intercept=found.params.intercept - float(np.log10(at_one.params)),
        tokens_exponent=found.tokens.exponent - (1 - surface.exponent),
        tokens_intercept=found.tokens.intercept - float(np.log10(at_one.tokens)),
    )
