"""Plans a study: which models, on how many tokens, so that every run spends its budget and no more."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from toolkit.checks import require
from toolkit.compute import Cost, Memory, cost, memory
from toolkit.models import DecoderConfig
from toolkit.parallel import ParallelConfig
from toolkit.scaling.plan.grid import Grid
from toolkit.scaling.plan.recipe import Recipe
from toolkit.scaling.plan.shape import Shape
from toolkit.training.config import TrainingConfig
from toolkit.training.precision import resolve_precision

TOLERANCE = 0.01
"""A run's planned FLOPs may differ from its budget by this share."""

WIDTHS = 3
"""Of one family at one budget: as many as a parabola takes."""

USUAL_TOKENS_PER_PARAMETER = (5.0, 100.0)
"""About Hoffmann et al.'s 20: what the best model of a budget is likely to be trained on."""


@dataclass(frozen=True)
class PlannedRun:
    """One run: what is trained, for how long, and what it will cost.

    ``mark`` is what else its name must say; ``stage`` what it is for: ``"search"``, ``"grid"`` or ``"prediction"``.
    """

    family: str
    budget: float
    dim: int
    seed: int
    model: DecoderConfig
    training: TrainingConfig
    cost: Cost = field(repr=False)
    mark: str = ""
    stage: str = "grid"

    @property
    def name(self) -> str:
        """Unique in a study."""
        return f"{self.family}-dim{self.dim}-flops{_scientific(self.budget)}{self.mark}-seed{self.seed}"

    @property
    def tokens(self) -> int:
        """Tokens it will be trained on."""
        return self.training.steps * self.training.tokens_per_step

    @property
    def flops(self) -> dict[str, float]:
        """Planned training FLOPs of the whole run, by convention."""
        return {name: self.tokens * flops for name, flops in self.cost.training_flops.items()}

    def memory(self, parallel: ParallelConfig | None = None) -> Memory:
        """Bytes of training on one of the devices of ``parallel``, by default the only one."""
        parallel = ParallelConfig() if parallel is None else parallel
        precision = resolve_precision(self.training.precision, "auto")
        precision = "32-true" if precision == "64-true" else precision
        batch, recompute = parallel.local_batch(self.training.batch_size), self.training.recompute
        return memory(self.model, batch, self.training.context, precision, parallel, recompute)


def plan_isoflop(
    grid: Grid, shape: Shape, vocab_size: int, base: TrainingConfig, rates: Mapping[str, float] | None = None
) -> list[PlannedRun]:
    """Every run of the grid, budget by budget, seeds outermost so that a cut-short study is a whole one.

    Args:
        grid: budgets, widths, families, seeds and recipe.
        shape: how a width and a family make a model.
        vocab_size: of the tokenizer.
        base: settings all runs share; ``steps``, ``learning_rate`` and ``seed`` are set by the plan, ``batch_size``
            and ``weight_decay`` where the recipe asks for it.
        rates: learning rates, at the recipe's base_dim, of families that have one of their own.

    Raises:
        ValueError: if a family is not the shape's, a budget is too small for one step, or no whole number of steps
            spends it within 1%.
    """
    runs = [
        plan_run(flops, family, dim, seed, shape, vocab_size, base, grid.recipe.at_rate((rates or {}).get(family)))
        for seed in range(grid.seeds)
        for flops, dim, family in grid.cells(shape.families)
    ]
    names = [run.name for run in runs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    require(not repeated, "budgets", repeated, "a grid that names no cell twice")
    return runs


def plan_run(
    budget: float, family: str, dim: int, seed: int, shape: Shape, vocab_size: int, base: TrainingConfig, recipe: Recipe
) -> PlannedRun:
    """The run of one family, width and seed that spends ``budget`` FLOPs.

    Raises:
        ValueError: as :func:`plan_isoflop`.
    """
    model = recipe.model(shape.decoder(family, dim, vocab_size))
    price = cost(model, base.context)
    token = price.training_flops["exact"]
    batch_size = recipe.batch_size(budget / token, base.batch_size)
    step = token * batch_size * base.context
    require(
        budget >= step, "flops", budget,
        f"at least {step:.4g}, one step of {family} at dim={dim} with {batch_size * base.context} tokens",
    )  # fmt: skip
    steps = round(budget / step)
    require(
        abs(steps * step / budget - 1) <= TOLERANCE, "flops", budget,
        f"within {TOLERANCE:.0%} of a whole number of steps: {family} at dim={dim} spends {step:.4g} a step; "
        f"take a larger budget or a smaller batch_size",
    )  # fmt: skip
    training = recipe.training(base, model.dim, steps, batch_size, seed)
    return PlannedRun(family, budget, dim, seed, model, training, price)


def data_warnings(runs: Sequence[PlannedRun], unique_tokens: int) -> list[str]:
    """One sentence for each budget that needs more tokens than there are; empty if none does."""
    lines = []
    for budget in sorted({run.budget for run in runs}):
        need = max(run.tokens for run in runs if run.budget == budget)
        if need > unique_tokens:
            lines.append(
                f"budget {_scientific(budget)} needs {need:,} tokens but the corpus has {unique_tokens:,}: "
                f"{need / unique_tokens:.2f} epochs over the same text"
            )
    return lines


def grid_warnings(runs: Sequence[PlannedRun]) -> list[str]:
    """One sentence for each budget whose best size the grid will not show; empty if it may at every budget.

    It will not where a family has fewer than three widths, which no parabola goes through, or where the tokens for each
    active parameter are below 5 in every model, or above 100: all are then too large, or too small.
    """
    lines = []
    for budget in sorted({run.budget for run in runs}):
        mine = [run for run in runs if run.budget == budget]
        lines += [f"budget {_scientific(budget)} {problem}" for problem in (*_few_widths(mine), *_one_sided(mine))]
    return lines


def _few_widths(runs: Sequence[PlannedRun]) -> list[str]:
    widths: dict[str, set[int]] = {}
    for run in runs:
        widths.setdefault(run.family, set()).add(run.dim)
    few = [f"{len(dims)} of {family}" for family, dims in widths.items() if len(dims) < WIDTHS]
    return [f"has fewer than {WIDTHS} widths, too few for the minimum of a curve: {', '.join(few)}"] if few else []


def _one_sided(runs: Sequence[PlannedRun]) -> list[str]:
    ratios = [run.tokens / run.cost.total_active_parameters for run in runs]
    low, high = USUAL_TOKENS_PER_PARAMETER
    told = f"{min(ratios):.3g} to {max(ratios):.3g} tokens for each active parameter"
    if max(ratios) < low:
        return [f"trains every model on {told}, all below {low:g}: the best size is likely below all widths"]
    if min(ratios) > high:
        return [f"trains every model on {told}, all above {high:g}: the best size is likely above all widths"]
    return []


def _scientific(value: float) -> str:
    """3e+11 as 3e11."""
    return re.sub(r"e\+0*", "e", f"{value:g}")
