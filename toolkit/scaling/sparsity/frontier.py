"""What a law says of the best that each family can do with a budget, and of what that is worth in dense compute.

The best width at a budget is chosen among models that can be built, each trained on as many tokens as its exactly
counted FLOPs allow, not by C = 6 N D, which misses attention and the head of small models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from toolkit.scaling.laws import FittedForm, FormBootstrap
from toolkit.scaling.laws.surface import Floats
from toolkit.scaling.multiplier import Estimate
from toolkit.scaling.sparsity.widths import Widths

REACH = 100.0
"""The baseline's compute is looked for from a budget over this to a budget times this."""

POINTS = 241
"""Of that range, evenly spaced in its logarithm."""

TAIL = 0.025  # of a 95% interval, on each side


@dataclass(frozen=True)
class LawMultiplier:
    """How much of the baseline's compute buys a family's best loss at a budget, by a law of all runs.

    Attributes:
        family, baseline: names.
        budget: FLOPs.
        loss: the family's best there, in the law's unit.
        dim: the width that reaches it.
        estimate: baseline FLOPs for that loss / budget, with its 95% interval over resampled cells;
            ``extrapolated`` where the baseline's compute is beyond the budgets that were trained.
    """

    family: str
    baseline: str
    budget: float
    loss: float
    dim: int
    estimate: Estimate


def law_multipliers(
    law: FittedForm,
    draws: FormBootstrap,
    widths: Mapping[str, Widths],
    baseline: str,
    budgets: Floats,
    trained: tuple[float, float],
) -> list[LawMultiplier]:
    """The multipliers of every family but the baseline, at every budget.

    Args:
        law: of all families' runs.
        draws: the law of resampled runs.
        widths: what each family can be built as.
        baseline: the dense family.
        budgets: FLOPs, (budgets,).
        trained: the least and the largest budget of the baseline's runs.
    """
    grid = np.exp(np.linspace(np.log(budgets.min() / REACH), np.log(budgets.max() * REACH), POINTS))
    dense, _ = best_losses(law, draws, widths[baseline], grid)
    found = []
    for family, mine in widths.items():
        if family == baseline:
            continue
        losses, dims = best_losses(law, draws, mine, budgets)
        needed = np.exp(_compute_for(losses, dense, np.log(grid)))  # (draws, budgets)
        for at, budget in enumerate(budgets):
            multiplier = needed[:, at] / budget
            outside = (needed[:, at] < trained[0]) | (needed[:, at] > trained[1])
            low, high = np.quantile(multiplier[1:], [TAIL, 1 - TAIL])
            estimate = Estimate(
                float(multiplier[0]), float(low), float(high), bool(outside[0]), bool(outside[1:].mean() > TAIL)
            )
            loss, dim = float(losses[0, at]), mine.dims[dims[at]]
            found.append(LawMultiplier(family, baseline, float(budget), loss, dim, estimate))
    return found


def best_losses(
    law: FittedForm, draws: FormBootstrap, widths: Widths, budgets: Floats
) -> tuple[Floats, np.ndarray[tuple[int], np.dtype[np.int_]]]:
    """The lowest loss over the widths, (1 + draws, budgets), the law's own first; and where it is, (budgets,)."""
    runs = widths.runs(budgets)
    shape = len(budgets), len(widths.dims)
    mine = law.predict(runs).reshape(shape)
    drawn = draws.predict(runs).reshape(-1, *shape)
    return np.concatenate([mine[None], drawn]).min(axis=2), mine.argmin(axis=1)


def _compute_for(losses: Floats, frontier: Floats, log_grid: Floats) -> Floats:
    """Log compute at which each draw's frontier (draws, points) comes down to its losses (draws, budgets).

    Beyond the grid it is the grid's end.
    """
    falling = np.minimum.accumulate(frontier, axis=1)
    return np.array(
        [np.interp(-wanted, -line, log_grid) for wanted, line in zip(losses, falling, strict=True)], dtype=np.float64
    )
