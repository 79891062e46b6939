"""Intervals over seeds against scipy's own tests, and Holm's correction against its definition."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from synthetic_study import run_result

from toolkit.scaling import RunResult
from toolkit.scaling.seeds import holm, mean_over_seeds, paired_difference


def runs(family: str, losses: dict[int, float]) -> list[RunResult]:
    return [run_result(family, 1e10, 24, seed, loss) for seed, loss in losses.items()]


@pytest.mark.parametrize("count", [2, 3, 5, 12])
def test_a_mean_has_scipy_s_interval(count: int) -> None:
    values = np.random.default_rng(count).normal(2.5, 0.03, count)
    found, theirs = mean_over_seeds(values.tolist()), stats.ttest_1samp(values, 0)
    low, high = theirs.confidence_interval(0.95)
    assert found.half is not None
    assert (found.value - found.half, found.value + found.half) == pytest.approx((low, high), rel=1e-12)
    assert found.p_value == pytest.approx(theirs.pvalue, rel=1e-9)
    assert found.seeds == count


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_difference_is_paired_by_seed(count: int) -> None:
    rng = np.random.default_rng(count)
    mine, theirs = rng.normal(2.5, 0.1, count), rng.normal(2.6, 0.1, count)
    order = rng.permutation(count)
    found = paired_difference(
        runs("a", dict(enumerate(mine))), runs("b", {int(seed): float(theirs[seed]) for seed in order})
    )
    oracle = stats.ttest_rel(mine, theirs)
    low, high = oracle.confidence_interval(0.95)
    assert found.half is not None
    assert (found.value - found.half, found.value + found.half) == pytest.approx((low, high), rel=1e-9)
    assert found.p_value == pytest.approx(oracle.pvalue, rel=1e-9)


def test_seeds_that_only_one_has_are_left_out() -> None:
    found = paired_difference(runs("a", {0: 2.0, 1: 2.1, 7: 9.0}), runs("b", {1: 2.0, 0: 1.8, 5: 9.0}))
    assert found.seeds == 2
    assert found.value == pytest.approx(0.15)
    assert paired_difference(runs("a", {0: 2.0}), runs("b", {1: 2.0})).seeds == 0


def test_what_all_seeds_share_cancels() -> None:
    luck = {0: 0.0, 1: 0.3, 2: -0.2}
    found = paired_difference(
        runs("a", {seed: 2.5 + each for seed, each in luck.items()}),
        runs("b", {seed: 2.4 + each for seed, each in luck.items()}),
    )
    assert found.value == pytest.approx(0.1)
    assert found.half == pytest.approx(0.0, abs=1e-12)
    assert found.side == 1


def test_one_seed_or_none_has_no_interval() -> None:
    one, none = mean_over_seeds([2.5]), mean_over_seeds([])
    assert (one.value, one.half, one.p_value, one.side) == (2.5, None, None, 0)
    assert math.isnan(none.value)
    assert (none.half, none.seeds, none.side) == (None, 0, 0)


@pytest.mark.parametrize(("values", "side"), [((0.1, 0.13), 0), ((0.1, 0.101), 1), ((-0.1, -0.101), -1), ((0, 0), 0)])
def test_the_side_is_where_the_whole_interval_lies(values: tuple[float, ...], side: int) -> None:
    found = mean_over_seeds(values)
    assert found.half is not None
    assert found.side == side == (found.value - found.half > 0) - (found.value + found.half < 0)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_refutes_what_the_closed_test_does(p_values: list[float]) -> None:
    """A hypothesis falls where every set that holds it does by Bonferroni: Holm's is the short cut to that."""
    everyone = range(len(p_values))
    sets = [each for size in range(1, len(p_values) + 1) for each in itertools.combinations(everyone, size)]

    def falls(each: tuple[int, ...]) -> bool:
        return min(p_values[index] for index in each) <= (1 - 0.95) / len(each)

    assert holm(p_values) == [all(falls(each) for each in sets if at in each) for at in everyone]
