"""What a family's best costs besides FLOPs: parameters held, memory, seconds; and a named device's roofline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from toolkit.compute import cost, roofline
from toolkit.scaling.laws.isoflop import Cell, cells_of
from toolkit.scaling.multiplier import ComputeMultiplier, Estimate, frontiers
from toolkit.scaling.plan import ModelShape
from toolkit.scaling.results import RunResult


@dataclass(frozen=True)
class FamilyCost:
    """One family's best measured cell at the largest budget that all families were trained on.

    Attributes:
        family: its name.
        best: its cell of the lowest mean loss.
        active, total: parameters that one token uses, and all.
        training_bytes: memory of a training step on one device.
        seconds: of the run's steps, each as long as one by itself.
        same_loss_flops: what the family needs for the minimum of the baseline's isoFLOP curve at this budget, by the
            minima of its own curves, over the budget; None where its measured runs do not reach down, or up, to it.
        same_loss_seconds: what it needs for the loss of the baseline's best cell, by its own cells, over that cell's
            seconds; None likewise.
        same_memory_loss: the lowest loss among its cells at this budget with no more parameters than the baseline's
            best; None where there is no such cell.
    """

    family: str
    best: Cell
    active: int
    total: int
    training_bytes: int
    seconds: float
    same_loss_flops: float | None
    same_loss_seconds: float | None
    same_memory_loss: float | None


def family_costs(rows: Sequence[RunResult], baseline: str) -> list[FamilyCost]:
    """The costs of every family; empty where the families share no budget or there is no baseline.

    Args:
        rows: with finite losses.
        baseline: the dense family.
    """
    cells = cells_of(rows)
    families = list(dict.fromkeys(cell.family for cell in cells))
    if baseline not in families:
        return []
    shared = set.intersection(*({cell.budget for cell in cells if cell.family == family} for family in families))
    if not shared:
        return []
    budget, of_run = max(shared), {row.run: row for row in rows}
    at_budget = {family: [c for c in cells if (c.family, c.budget) == (family, budget)] for family in families}
    reference = _lowest(at_budget[baseline])
    most = of_run[reference.runs[0]].parameters
    return [
        _family_cost(_lowest(at_budget[family]), reference, budget, cells, of_run, most, at_budget[family])
        for family in families
    ]


def _lowest(cells: Sequence[Cell]) -> Cell:
    return min(cells, key=lambda cell: cell.loss)


def _family_cost(
    best: Cell,
    reference: Cell,
    budget: float,
    cells: Sequence[Cell],
    of_run: dict[str, RunResult],
    most: int,
    at_budget: Sequence[Cell],
) -> FamilyCost:
    row = of_run[best.runs[0]]
    mine, other = (
        frontiers([cell for cell in cells if cell.family == family]) for family in (best.family, reference.family)
    )
    minimum = other.flops.loss[:, other.budgets.index(budget)]  # like with like: curves' minima, or measured cells
    flops = _within(*mine.flops.cost_to_reach(minimum))
    seconds = _within(*mine.seconds.cost_to_reach(np.log([reference.loss])))
    small = [cell.loss for cell in at_budget if of_run[cell.runs[0]].parameters <= most]
    return FamilyCost(
        best.family,
        best,
        row.active_parameters,
        row.parameters,
        row.training_bytes,
        best.seconds,
        None if flops is None else flops / budget,
        None if seconds is None else seconds / reference.seconds,
        min(small, default=None),
    )


def _within(log_cost: np.ndarray, outside: np.ndarray) -> float | None:
    """The cost, where it lies within what was measured."""
    return None if outside[0] or not np.isfinite(log_cost[0]) else float(np.exp(log_cost[0]))


@dataclass(frozen=True)
class Projection:
    """One family on a named device, by its roofline.

    Attributes:
        family: its name.
        dim, layers: of the model that is projected.
        seconds: projected, of one step.
        seconds_per_flop: of an ``exact`` FLOP, over the baseline's.
        multiplier: measured at the study's largest budget; None for the baseline.
        effective: that over ``seconds_per_flop``.
    """

    family: str
    dim: int
    layers: int
    seconds: float
    seconds_per_flop: float
    multiplier: Estimate | None
    effective: Estimate | None


def project(
    shape: ModelShape,
    families: Sequence[str],
    baseline: str,
    multipliers: Sequence[ComputeMultiplier],
    device: str,
    dim: int,
    context: int,
    batch_size: int,
    vocab_size: int,
) -> list[Projection]:
    """Charge the multipliers for the roofline of ``device``.

    Args:
        shape, families: what the models are.
        baseline: the dense family.
        multipliers: measured; each family's at its largest budget is taken.
        device: a name of :data:`toolkit.compute.DEVICES`.
        dim, context, batch_size, vocab_size: of the models that are projected.
    """
    measured = {entry.family: entry.equal_flops for entry in sorted(multipliers, key=lambda entry: entry.budget)}
    per_flop, found = {}, []
    for family in [baseline, *(name for name in families if name != baseline)]:
        model = shape.decoder(family, dim, vocab_size)
        seconds = roofline(model, batch_size, context, device).seconds
        per_flop[family] = seconds / (cost(model, context).training_flops["exact"] * batch_size * context)
        slower = per_flop[family] / per_flop[baseline]
        multiplier = measured.get(family)
        effective = None if multiplier is None else _over(multiplier, slower)
        found.append(Projection(family, dim, len(model.blocks), seconds, slower, multiplier, effective))
    return found


def _over(estimate: Estimate, slower: float) -> Estimate:
    low, high = (None if bound is None else bound / slower for bound in (estimate.low, estimate.high))
    return Estimate(estimate.value / slower, low, high, estimate.extrapolated, estimate.interval_extrapolated)
