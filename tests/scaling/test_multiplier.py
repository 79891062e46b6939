"""Known truth: losses from a Chinchilla surface, and a sparse family that is dense with k x the compute."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest
from synthetic_study import run_result, study

from toolkit.scaling.multiplier import compute_multiplier
from toolkit.scaling.results import RunResult


@pytest.mark.parametrize("gain", [0.8, 1.0, 1.5, 2.5])
@pytest.mark.parametrize("slowdown", [1.0, 2.0])
def test_known_gain_is_recovered(gain: float, slowdown: float) -> None:
    rows = study(gain, slowdown, sparse_budgets=(1e12,))
    (found,) = compute_multiplier(rows, "moe")
    assert found.equal_flops.value == pytest.approx(gain, rel=0.04)
    assert found.equal_seconds.value == pytest.approx(gain / slowdown, rel=0.06)
    assert not found.equal_flops.extrapolated


def test_dense_against_itself_is_one() -> None:
    rows = [row for row in study() if row.family == "dense"]
    for found in compute_multiplier(rows, "dense"):
        assert found.equal_flops.value == pytest.approx(1)
        assert found.equal_seconds.value == pytest.approx(1)
        assert not found.equal_flops.extrapolated
        assert not found.equal_seconds.extrapolated


def test_seconds_frontier_is_not_tied_to_the_best_size_for_flops() -> None:
    """Narrow models are much faster here: a dense model chosen for FLOPs alone would look slower."""
    rows = study(gain=1.0, slowdown=1.0)
    fast_narrow = [
        row if row.family == "moe" else replace(row, seconds=row.seconds * (row.dim / 128) ** 1.5) for row in rows
    ]
    found = compute_multiplier(fast_narrow, "moe")[1]
    dense_of_same_shape = {(row.budget, row.dim): row.seconds for row in fast_narrow if row.family == "dense"}
    best = min((row for row in rows if row.family == "moe" and row.budget == 1e12), key=lambda row: row.bits_per_byte)
    same_shape = dense_of_same_shape[(1e12, best.dim)] / best.seconds
    assert found.equal_flops.value == pytest.approx(1)
    assert found.equal_seconds.value < same_shape * 0.97


def test_one_seed_gives_no_interval() -> None:
    for found in compute_multiplier(study(), "moe"):
        assert found.equal_flops.low is found.equal_flops.high is None
        assert found.equal_seconds.low is found.equal_seconds.high is None
        assert math.isfinite(found.equal_flops.value)


def test_beyond_dense_budgets_is_flagged() -> None:
    rows = study(gain=4.0, dense_budgets=(3e11, 1e12), sparse_budgets=(1e12,))
    (found,) = compute_multiplier(rows, "moe")
    assert found.equal_flops.extrapolated
    # the last slope continued flatters dense: the true gain is larger
    assert 2.5 < found.equal_flops.value < 4.0


def test_worse_than_the_smallest_dense_budget_is_flagged() -> None:
    rows = study(gain=0.5, sparse_budgets=(3e11,))
    (found,) = compute_multiplier(rows, "moe")
    assert found.equal_flops.extrapolated
    assert found.equal_flops.value == pytest.approx(0.5, rel=0.15)


def test_interval_that_needs_extrapolation_is_flagged() -> None:
    known_noise = [run_result("other", 1e12, 64, seed, 2.0 + 0.02 * seed) for seed in range(9)]
    rows = [*study(gain=2.9, sparse_budgets=(1e12,)), *known_noise]
    (found,) = compute_multiplier(rows, "moe")
    assert not found.equal_flops.extrapolated
    assert found.equal_flops.interval_extrapolated
    (inside,) = compute_multiplier(study(gain=1.5, seeds=2, noise=0.001, sparse_budgets=(1e12,)), "moe")
    assert not inside.equal_flops.interval_extrapolated


def test_one_dense_budget_tells_nothing() -> None:
    (found,) = compute_multiplier(study(dense_budgets=(1e12,), sparse_budgets=(1e12,), seeds=2), "moe")
    assert math.isnan(found.equal_flops.value)
    assert math.isnan(found.equal_seconds.value)
    assert (found.equal_flops.low, found.equal_flops.high) == (0, math.inf)


def test_one_size_uses_the_measured_cells() -> None:
    rows = study(gain=2.0, slowdown=1.0, dims=(64,))
    found = compute_multiplier(rows, "moe")[1]
    assert found.equal_flops.value == pytest.approx(2.0, rel=0.05)
    assert found.equal_seconds.value == pytest.approx(2.0, rel=0.05)


def test_loss_that_dense_never_reaches() -> None:
    """Dense loss rises with compute, so no trend leads down to the sparse loss."""
    rows = [run_result("dense", 1e12, 64, 0, 2.0), run_result("dense", 2e12, 64, 0, 2.1)]
    (found,) = compute_multiplier([*rows, run_result("moe", 1e12, 64, 0, 1.9)], "moe")
    assert found.equal_flops.value == math.inf
    assert found.equal_flops.extrapolated


def test_interval_is_deterministic_and_quick() -> None:
    rows = study(seeds=3, noise=0.015)
    start = time.perf_counter()
    first = compute_multiplier(rows, "moe", seed=7)
    assert time.perf_counter() - start < 10
    assert first == compute_multiplier(rows, "moe", seed=7)
    assert first != compute_multiplier(rows, "moe", seed=8)
    for found in first:
        assert found.equal_flops.low is not None and found.equal_flops.high is not None
        assert found.equal_flops.low < found.equal_flops.value < found.equal_flops.high


def test_few_degrees_of_freedom_widen_the_interval() -> None:
    """The same deviation, known from 1 against from 20 degrees of freedom."""
    base = study(sparse_budgets=(1e12,))
    replicas = [run_result("dense", 1e12, 64, 1, base_loss(base) + math.sqrt(2) * 0.01)]
    known = [
        run_result("other", 1e12, 8 + cell, seed, 3.0 + seed * math.sqrt(2) * 0.01)
        for cell in range(19)
        for seed in range(2)
    ]
    (uncertain,) = compute_multiplier([*base, *replicas], "moe")
    (certain,) = compute_multiplier([*base, *replicas, *known], "moe")
    assert width(uncertain.equal_flops) > 2 * width(certain.equal_flops)


def base_loss(rows: list[RunResult]) -> float:
    return next(row.bits_per_byte for row in rows if (row.family, row.budget, row.dim) == ("dense", 1e12, 64))


def width(estimate) -> float:  # type: ignore[no-untyped-def]
    return math.log(estimate.high) - math.log(estimate.low)


@pytest.mark.parametrize("which", ["equal_flops", "equal_seconds"])
def test_interval_covers_the_truth(which: str) -> None:
    """At 95% nominal, 100 studies: fewer than 85 or so would be the wrong noise, not chance."""
    truth = {"equal_flops": 1.5, "equal_seconds": 0.75}[which]
    covered = 0
    for trial in range(100):
        rng = np.random.default_rng(trial)
        rows = study(seeds=2, noise=0.012, sparse_budgets=(1e12,), rng=rng)
        estimate = getattr(compute_multiplier(rows, "moe", resamples=300)[0], which)
        covered += estimate.low <= truth <= estimate.high
    assert covered >= 85


def test_unknown_family_is_refused() -> None:
    with pytest.raises(ValueError, match=r"family='sparse'.*dense, moe"):
        compute_multiplier(study(), "sparse")
    with pytest.raises(ValueError, match="baseline='big'"):
        compute_multiplier(study(), "moe", "big")
    with pytest.raises(ValueError, match="resamples=0"):
        compute_multiplier(study(), "moe", resamples=0)
