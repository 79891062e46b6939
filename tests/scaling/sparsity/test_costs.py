"""Costs beside FLOPs: identical families cost the same, gains and slowdowns come out, what is not reached is None."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from synthetic_study import study

from toolkit.compute import cost, roofline
from toolkit.scaling.multiplier import ComputeMultiplier, Estimate
from toolkit.scaling.plan import Family, ModelShape
from toolkit.scaling.results import RunResult
from toolkit.scaling.sparsity.costs import FamilyCost, family_costs, project

BUDGETS = (3e11, 1e12)
SHAPE = ModelShape((Family("dense"), Family("moe", 32, 4)), layers=2, head_dim=32)
MEASURED = Estimate(1.5, 1.2, 1.8, False, True)


def costs(rows: Sequence[RunResult]) -> dict[str, FamilyCost]:
    return {entry.family: entry for entry in family_costs(rows, "dense")}


def test_a_family_like_the_baseline_costs_what_it_does() -> None:
    """By one measure on both sides: a curve's minimum lies below its best cell, and must not look like a gain."""
    found = costs(study(gain=1.0, slowdown=1.0, dense_budgets=BUDGETS, dims=(24, 64, 160)))
    assert found["dense"].same_loss_flops == pytest.approx(1.0)
    assert found["moe"].same_loss_flops == pytest.approx(1.0)
    assert found["moe"].same_loss_seconds == found["dense"].same_loss_seconds == pytest.approx(1.0)
    assert found["moe"].same_memory_loss == found["dense"].best.loss


def test_the_same_loss_takes_one_gainth_of_the_flops_and_so_much_longer_as_steps_are() -> None:
    even = costs(study(gain=1.0, slowdown=1.0, dense_budgets=BUDGETS))["moe"]
    found = costs(study(gain=2.0, slowdown=3.0, dense_budgets=BUDGETS))["moe"]
    assert found.same_loss_flops == pytest.approx(1 / 2, rel=0.05)  # interpolated between budgets
    slow = costs(study(gain=1.0, slowdown=3.0, dense_budgets=BUDGETS))["moe"]
    assert slow.same_loss_flops == even.same_loss_flops
    assert slow.same_loss_seconds == pytest.approx(3 * even.same_loss_seconds)  # type: ignore[operator]


@pytest.mark.parametrize("gain", [0.5, 5.0])
def test_a_loss_that_measured_runs_do_not_enclose_has_no_cost(gain: float) -> None:
    found = costs(study(gain=gain, slowdown=1.0, dense_budgets=BUDGETS))["moe"]
    assert (found.same_loss_flops, found.same_loss_seconds) == (None, None)


def test_the_same_memory_is_the_lowest_loss_of_the_models_that_fit() -> None:
    rows = study(seeds=2, noise=0.01)
    found = costs(rows)
    budget = 1e12  # the largest of both
    best = found["dense"].best
    assert best.budget == budget
    room = next(row.parameters for row in rows if row.run == best.runs[0])
    cells: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        if row.budget == budget and row.parameters <= room:
            cells.setdefault((row.family, row.dim), []).append(row.bits_per_byte)
    for family, entry in found.items():
        means = [sum(losses) / len(losses) for (name, _), losses in cells.items() if name == family]
        assert entry.same_memory_loss == pytest.approx(min(means))


def test_a_family_all_of_whose_models_are_larger_has_no_loss_in_that_memory() -> None:
    rows = [replace(row, parameters=10**9) if row.family == "moe" else row for row in study()]
    assert costs(rows)["moe"].same_memory_loss is None


def test_its_numbers_are_those_of_its_best_cells_runs() -> None:
    rows = [replace(row, training_bytes=7 * row.dim, parameters=11 * row.dim) for row in study(seeds=2)]
    for family, entry in costs(rows).items():
        mine = [row for row in rows if row.family == family and row.budget == 1e12]
        lowest = min(mine, key=lambda row: row.bits_per_byte)
        assert entry.best.dim == lowest.dim
        assert (entry.total, entry.training_bytes) == (11 * lowest.dim, 7 * lowest.dim)
        assert (entry.active, entry.seconds) == (lowest.active_parameters, pytest.approx(lowest.seconds))


def test_nothing_where_there_is_nothing_to_compare() -> None:
    assert family_costs([], "dense") == []
    assert family_costs([row for row in study() if row.family == "moe"], "dense") == []
    assert family_costs(study(dense_budgets=(3e12,), sparse_budgets=(3e11,)), "dense") == []


def test_multipliers_are_charged_for_the_time_of_a_flop() -> None:
    measured = [
        ComputeMultiplier("moe", "dense", budget, 2.0, equal, 1.0, 2.0, equal)
        for budget, equal in ((1e12, MEASURED), (3e11, Estimate(9.0, None, None, False, False)))
    ]
    dense, moe = project(SHAPE, SHAPE.families, "dense", measured, "H100", 256, 128, 2, 512)
    per_flop = {}
    for entry in (dense, moe):
        model = SHAPE.decoder(entry.family, 256, 512)
        assert entry.seconds == roofline(model, 2, 128, "H100").seconds
        per_flop[entry.family] = entry.seconds / (cost(model, 128).training_flops["exact"] * 2 * 128)
        assert (entry.dim, entry.layers) == (256, 2)
    slower = per_flop["moe"] / per_flop["dense"]
    assert moe.seconds_per_flop == pytest.approx(slower)
    assert slower > 1  # the same products, and more weights to move
    assert moe.multiplier == MEASURED  # of the largest budget
    assert moe.effective is not None
    bounds = (moe.effective.value, moe.effective.low, moe.effective.high)
    assert bounds == pytest.approx((1.5 / slower, 1.2 / slower, 1.8 / slower))
    assert (moe.effective.extrapolated, moe.effective.interval_extrapolated) == (False, True)
    assert (dense.seconds_per_flop, dense.multiplier, dense.effective) == (1.0, None, None)


def test_without_an_interval_there_is_none_after_the_charge() -> None:
    measured = [
        ComputeMultiplier("moe", "dense", 1e12, 2.0, Estimate(2.0, None, None, True, False), 1.0, 2.0, MEASURED)
    ]
    moe = project(SHAPE, SHAPE.families, "dense", measured, "A100", 64, 64, 1, 64)[1]
    assert moe.effective is not None
    assert (moe.effective.low, moe.effective.high, moe.effective.extrapolated) == (None, None, True)
