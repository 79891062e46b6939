"""A loss surface: its best split of a budget, by brute force and by the literature's figures."""

from __future__ import annotations

import numpy as np
import pytest

from toolkit.scaling import LossSurface

HOFFMANN = LossSurface(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)


def test_the_optimum_is_the_lowest_of_all_splits() -> None:
    best = HOFFMANN.optimum(1e20)
    params = best.params * np.linspace(0.5, 2, 100_001)
    losses = HOFFMANN.loss(params, 1e20 / 6 / params)
    assert best.loss <= losses.min()
    assert params[losses.argmin()] == pytest.approx(best.params, rel=1e-3)
    assert best.params * best.tokens * 6 == pytest.approx(1e20)


@pytest.mark.parametrize(
    ("flops", "params", "tokens", "loss"), [(1e18, 8.058e7, 2.068e9, 3.5353), (1e20, 6.449e8, 2.585e10, 2.5998)]
)
def test_optima_of_hoffmanns_rounded_law(flops: float, params: float, tokens: float, loss: float) -> None:
    best = HOFFMANN.optimum(flops)
    assert (best.params, best.tokens) == pytest.approx((params, tokens), rel=1e-3)
    assert best.loss == pytest.approx(loss, abs=1e-4)


def test_the_exponent_is_that_of_the_best_size() -> None:
    one, two = HOFFMANN.optimum(1e18), HOFFMANN.optimum(1e22)
    assert np.log(two.params / one.params) / np.log(1e4) == pytest.approx(HOFFMANN.exponent)


def test_other_flops_a_parameter_and_token_move_the_product_alone() -> None:
    assert HOFFMANN.optimum(1e20, flops_per=12).params == pytest.approx(HOFFMANN.optimum(5e19).params)


def test_what_has_no_optimum_is_refused() -> None:
    with pytest.raises(ValueError, match="flops=0"):
        HOFFMANN.optimum(0)
    with pytest.raises(ValueError, match="B=0"):
        LossSurface(1.0, 1.0, 0.0, 0.3, 0.3).optimum(1e18)
