"""What a law says of the best that each family can do with a budget, and of what that is worth in dense compute.

The best width at a budget is chosen among models that can be built, each trained on as many tokens as its exactly
counted FLOPs allow, not by C = 6 N D, which misses attention and the head of small models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from toolkit.scaling.laws import FittedForm, FormBootstrap, SelectionTable, fit_form
from toolkit.scaling.laws.runs import Runs
from toolkit.scaling.laws.surface import Floats
from toolkit.scaling.multiplier import Estimate
from toolkit.scaling.sparsity.widths import Widths

REACH = 100.0
"""The baseline's compute is looked for from a budget over this to a budget times this."""

POINTS = 241
"""Of that range, evenly spaced in its logarithm."""

TAIL = 0.025  # of a 95% interval, on each side
NEAR = 1e-3  # of a budget: interpolation errs by less, so nearer to the trained ones' end is not outside them


@dataclass(frozen=True)
class LawMultiplier:
    """How much of the baseline's compute buys a family's best loss at a budget, by a law of all runs.

    Attributes:
        family, baseline: names.
        budget: FLOPs.
        loss: the family's best there, in the law's unit.
        dim: the width that reaches it.
        at_edge: that width is the least or the largest that was allowed.
        estimate: baseline FLOPs for that loss / budget, with its 95% interval over resampled cells; inf (or 0) where no
            compute that is looked at brings the baseline there (or all of it is better). ``extrapolated`` where the
            baseline's compute, or the family's budget, is outside those that were trained.
    """

    family: str
    baseline: str
    budget: float
    loss: float
    dim: int
    at_edge: bool
    estimate: Estimate


def best_law(selection: SelectionTable, runs: Runs, widths: Mapping[str, Widths]) -> FittedForm:
    """The form of the lowest cross-validated error among those that tell all families apart, fitted.

    One that expects the same loss of two families, whatever was measured, would call their multiplier 1.

    Raises:
        ValueError: if there is none.
    """
    for row in selection.rows:
        if row.cross_validated is not None:
            law = fit_form(row.form, runs)
            if tells_apart(law, widths):
                return law
    reasons = "; ".join(f"{row.form.title}: {row.reason or 'tells not all families apart'}" for row in selection.rows)
    raise ValueError(f"no form that tells all families apart could be cross-validated ({reasons})")


def tells_apart(law: FittedForm, widths: Mapping[str, Widths]) -> bool:
    """Whether the law has constants for each family, or reads a column by which each differs from every other.

    Such columns are the expansion rate, granularity and total parameters; families that differ in attention alone have
    them in common.
    """
    if law.form.families:
        return True
    each = list(widths.values())
    active, tokens = law.runs.active[0], law.runs.tokens[0]
    experts, granularity = (np.array([mine.architecture[at] for mine in each]) for at in (0, 1))
    total = np.array([active * mine.total[0] / mine.active[0] for mine in each])
    runs = Runs.of(np.full(len(each), active), tokens, 1.0, experts=experts, granularity=granularity, total=total)
    gaps = np.diff(np.sort(np.log(law.predict(runs))))
    return bool((gaps > 1e-9).all())


def law_multipliers(
    law: FittedForm,
    draws: FormBootstrap,
    widths: Mapping[str, Widths],
    baseline: str,
    budgets: Floats,
    trained: Mapping[str, tuple[float, float]],
) -> list[LawMultiplier]:
    """The multipliers of every family but the baseline, at every budget.

    Args:
        law: of all families' runs.
        draws: the law of resampled runs.
        widths: what each family can be built as.
        baseline: the dense family.
        budgets: FLOPs, (budgets,).
        trained: the least and the largest budget of every family's runs.
    """
    grid = np.exp(np.linspace(np.log(budgets.min() / REACH), np.log(budgets.max() * REACH), POINTS))
    dense, _ = best_losses(law, draws, widths[baseline], grid)
    found = []
    for family, mine in widths.items():
        if family == baseline:
            continue
        losses, dims = best_losses(law, draws, mine, budgets)
        needed = np.exp(_compute_for(losses, dense, np.log(grid)))  # (draws, budgets)
        for at, (budget, best) in enumerate(zip(budgets, dims, strict=True)):
            outside = _outside(needed[:, at], trained[baseline]) | _outside(budget, trained[family])
            estimate = _estimate(needed[:, at] / budget, outside)
            at_edge = best in (0, len(mine.dims) - 1)
            loss, dim = float(losses[0, at]), mine.dims[best]
            found.append(LawMultiplier(family, baseline, float(budget), loss, dim, at_edge, estimate))
    return found


def _outside(flops: Floats | float, trained: tuple[float, float]) -> npt.NDArray[np.bool_]:
    """Whether they are less than the least budget that was trained, or more than the largest."""
    least, largest = trained
    return (np.asarray(flops) < least * (1 - NEAR)) | (np.asarray(flops) > largest * (1 + NEAR))


def _estimate(multiplier: Floats, outside: npt.NDArray[np.bool_]) -> Estimate:
    """Draws (1 + draws,), the law's own first, as an estimate; by order statistics, since draws may be infinite."""
    low, high = np.quantile(multiplier[1:], [TAIL, 1 - TAIL], method="inverted_cdf")
    return Estimate(float(multiplier[0]), float(low), float(high), bool(outside[0]), bool(outside[1:].mean() > TAIL))


def best_losses(
    law: FittedForm, draws: FormBootstrap, widths: Widths, budgets: Floats
) -> tuple[Floats, npt.NDArray[np.int_]]:
    """The lowest loss over the widths, (1 + draws, budgets), the law's own first; and where it is, (budgets,)."""
    lowest, where = [], []
    for budget in budgets:  # one by one: all of them, at every width, for every draw would fill the memory
        runs = widths.runs(np.array([budget]))
        mine = law.predict(runs)
        lowest.append(np.concatenate([mine[None], draws.predict(runs)]).min(axis=1))
        where.append(mine.argmin())
    return np.stack(lowest, axis=1), np.array(where)


def _compute_for(losses: Floats, frontier: Floats, log_grid: Floats) -> Floats:
    """Log compute at which each draw's frontier (draws, points) comes down to its losses (draws, budgets).

    Infinite where the whole grid lies above a loss, minus infinity where it lies below.
    """
    falling = np.minimum.accumulate(frontier, axis=1)
    pairs = zip(losses, falling, strict=True)
    return np.array([np.interp(-wanted, -line, log_grid, left=-np.inf, right=np.inf) for wanted, line in pairs])
