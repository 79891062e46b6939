"""How a law's exponents move with what is counted as a model's size.

At small scale the embedding and the head are a large part of a model, and whether N holds them decides whether a study
finds Kaplan's exponents or Hoffmann's (Porian et al. 2024, arXiv 2406.19146; Pearce and Song 2024, arXiv 2406.12907).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from toolkit.checks import require
from toolkit.scaling.laws.approaches import Allocation, parabola_allocation
from toolkit.scaling.laws.form_fit import FittedForm, fit_form
from toolkit.scaling.laws.forms import Chinchilla
from toolkit.scaling.laws.runs import Runs, group_of
from toolkit.scaling.laws.surface import Floats
from toolkit.scaling.results import COUNTS, RunResult, size


@dataclass(frozen=True)
class Interval:
    """A number and its percentile interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ConventionExponents:
    """The exponents of one family in one convention.

    Attributes:
        convention: of :data:`toolkit.scaling.results.COUNTS`.
        alpha, beta: of the loss surface in N and tokens.
        exponent: a of N* ~ (N D)^a, beta / (alpha + beta).
        fitted: the surface, by :class:`toolkit.scaling.laws.forms.Chinchilla`.
        allocation: N*(C) at the exact budgets by approach 2: where FLOPs are not proportional to N D, as for counts
            that leave out what is multiplied with, its exponent is another one. None where it cannot be fitted.
        reason: why not; empty otherwise.
    """

    convention: str
    alpha: Interval
    beta: Interval
    exponent: Interval
    fitted: FittedForm
    allocation: Allocation | None
    reason: str


def exponents_by_convention(
    rows: Sequence[RunResult],
    family: str,
    *,
    method: str = "squares",
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    branched: bool = False,
) -> tuple[ConventionExponents, ...]:
    """Fit one family's runs once for each way to count parameters, in the order of ``COUNTS``.

    Losses are bits per byte.

    Args:
        rows: finished runs with finite losses; those of other families are not looked at.
        family: whose exponents are asked for.
        method: of :func:`toolkit.scaling.laws.form_fit.fit_form`.
        resamples, seed: of the bootstrap over cells: the seeds of one budget and dim are drawn together.
        level: of the intervals.
        branched: whether runs of several budgets were begun from one trunk: all of one dim are then drawn together.

    Raises:
        ValueError: if the family has no runs, ``level`` is not between 0 and 1, or as the fit and its bootstrap.
    """
    require(0 < level < 1, "level", level, "between 0 and 1")
    mine = [row for row in rows if row.family == family]
    families = ", ".join(dict.fromkeys(row.family for row in rows))
    require(len(mine) > 0, "family", family, f"one that has runs: {families}")
    groups = [group_of(row, branched) for row in mine]
    return tuple(_exponents(mine, groups, convention, method, resamples, seed, level) for convention in COUNTS)


def _exponents(
    rows: Sequence[RunResult],
    groups: Sequence[str],
    convention: str,
    method: str,
    resamples: int,
    seed: int,
    level: float,
) -> ConventionExponents:
    runs = Runs.of(
        [size(row, convention) for row in rows],
        [row.tokens for row in rows],
        [row.bits_per_byte for row in rows],
        flops=[row.budget for row in rows],
        group=groups,
    )
    fitted = fit_form(Chinchilla(), runs, method=method)
    resampled = fitted.bootstrap(resamples, seed)
    alpha, beta = fitted.theta["alpha"], fitted.theta["beta"]
    alphas, betas = resampled.values("alpha"), resampled.values("beta")
    return ConventionExponents(
        convention,
        _interval(alpha, alphas, level),
        _interval(beta, betas, level),
        _interval(beta / (alpha + beta), betas / (alphas + betas), level),
        fitted,
        *_allocation(runs),
    )


def _interval(value: float, draws: Floats, level: float) -> Interval:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def _allocation(runs: Runs) -> tuple[Allocation | None, str]:
    try:
        return parabola_allocation(runs), ""
    except ValueError as refusal:
        return None, str(refusal)
