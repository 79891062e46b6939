"""The search for each family's learning rate, at a small budget that comes on top of the grid's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from toolkit.checks import require
from toolkit.scaling.laws.isoflop import curve_minima, finite_runs
from toolkit.scaling.plan import PlannedRun, Recipe, Shape, plan_run
from toolkit.scaling.results import RunResult
from toolkit.training.config import TrainingConfig


@dataclass(frozen=True)
class FoundRate:
    """What a search found for one family.

    Attributes:
        family: its name.
        rate: peak learning rate at the recipe's base_dim.
        tried: the rates, ascending.
        losses: bits per byte at each, mean over seeds; inf where every run diverged.
        vertex: the rate is a parabola's vertex, of loss in log rate through the best rate and its neighbours, rather
            than one that was tried.
        at_edge: the best rate tried is the least or the largest, so that a better one may lie beyond.
    """

    family: str
    rate: float
    tried: tuple[float, ...]
    losses: tuple[float, ...]
    vertex: bool
    at_edge: bool


def plan_search(
    recipe: Recipe, shape: Shape, families: Sequence[str], vocab_size: int, base: TrainingConfig
) -> list[PlannedRun]:
    """The runs of the recipe's search; none where it has none.

    Raises:
        ValueError: as :func:`toolkit.scaling.plan.plan_isoflop`.
    """
    search = recipe.search
    if search is None:
        return []
    return [
        _marked(
            plan_run(search.flops, family, recipe.base_dim, seed, shape, vocab_size, base, recipe.at_rate(rate)), rate
        )
        for seed in range(search.seeds)
        for family in families
        for rate in rates_tried(recipe)
    ]


def rates_tried(recipe: Recipe) -> list[float]:
    """The learning rates of the recipe's search, ascending."""
    return [factor * recipe.learning_rate for factor in recipe.search.factors] if recipe.search else []


def _marked(run: PlannedRun, rate: float) -> PlannedRun:
    """The run under a name that tells its rate: the grid may have the same cell."""
    return replace(run, mark=f"-rate{rate:.3g}".replace("e-0", "e-"), stage="search")


def found_rates(recipe: Recipe, runs: Sequence[PlannedRun], rows: Sequence[RunResult]) -> dict[str, FoundRate]:
    """The best learning rate of each family, by the search's finished runs.

    The loss at a rate is the mean of its runs that did not diverge. The three losses around the lowest give a parabola
    in log rate, whose vertex is taken where it lies between the neighbours.

    Raises:
        ValueError: if a family's runs have not all finished, or all diverged.
    """
    families = list(dict.fromkeys(run.family for run in runs))
    losses = {row.run: row.bits_per_byte for row in finite_runs(rows)[0]}
    finished = {row.run for row in rows}
    missing = [run.name for run in runs if run.name not in finished]
    require(
        not missing, "rows", f"{len(missing)} runs of the search missing", "a finished run for each that was planned"
    )
    return {family: _best(family, recipe, [run for run in runs if run.family == family], losses) for family in families}


def _best(family: str, recipe: Recipe, runs: Sequence[PlannedRun], losses: dict[str, float]) -> FoundRate:
    tried = rates_tried(recipe)
    at_rate = [[losses[run.name] for run in runs if run.name in losses and _is(run, rate)] for rate in tried]
    means = np.array([np.mean(each) if each else np.inf for each in at_rate])
    require(bool(np.isfinite(means).any()), "rows", f"every run of {family!r}", "a learning rate that does not diverge")
    best = int(means.argmin())
    around = slice(max(best - 1, 0), best + 2)
    rate, vertex = tried[best], False
    if 0 < best < len(tried) - 1 and np.isfinite(means[around]).all():
        log_rate, _, taken = curve_minima(np.log(tried[around]), means[None, around])
        rate, vertex = (float(np.exp(log_rate[0])), True) if taken[0] else (rate, False)
    at_edge = best in (0, len(tried) - 1)
    return FoundRate(family, rate, tuple(tried), tuple(float(mean) for mean in means), vertex, at_edge)


def _is(run: PlannedRun, rate: float) -> bool:
    return run.mark == _marked(run, rate).mark
