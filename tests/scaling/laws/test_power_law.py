"""Power laws against scipy's regression, and intervals that hold the truth as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from toolkit.scaling.laws import fit_power_law


def test_exponent_intercept_and_errors_are_those_of_linear_regression() -> None:
    rng = np.random.default_rng(0)
    x = np.exp(rng.uniform(40, 48, 12))
    y = 3.0 * x**0.46 * np.exp(0.05 * rng.standard_normal(12))
    found, oracle = fit_power_law(x.tolist(), y.tolist()), stats.linregress(np.log10(x), np.log10(y))
    assert (found.exponent, found.intercept) == pytest.approx((oracle.slope, oracle.intercept))
    assert (found.exponent_error, found.intercept_error) == pytest.approx((oracle.stderr, oracle.intercept_stderr))
    assert found.at(1e20) == pytest.approx(10 ** (oracle.intercept + 20 * oracle.slope))


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng, x, held = np.random.default_rng(0), np.geomspace(1e17, 1e21, 5), 0
    for _ in range(400):
        low, high = fit_power_law(x.tolist(), (x**0.5 * np.exp(rng.standard_normal(5))).tolist()).interval(
            "exponent", 0.8
        )
        held += low < 0.5 < high
    assert held / 400 == pytest.approx(0.8, abs=0.06)


def test_two_points_have_no_errors() -> None:
    found = fit_power_law([1.0, 100.0], [2.0, 20.0])
    assert (found.exponent, found.at(10.0)) == pytest.approx((0.5, 2 * 10**0.5))
    assert np.isnan(found.exponent_error)
    with pytest.raises(ValueError, match="points=2"):
        found.interval("exponent")


def test_bad_input_is_named() -> None:
    for x, y, match in (
        ([1.0, 2.0], [1.0], "y="),
        ([1.0, 1.0], [1.0, 2.0], "x="),
        ([1.0, 2.0], [1.0, 0.0], r"y\[1\]=0.0: it must be positive and finite"),
        ([1.0, 2.0, 3.0], [1.0, np.nan, 3.0], r"y\[1\]=nan"),
        ([1.0, 2.0, np.inf], [1.0, 2.0, 3.0], r"x\[2\]=inf"),
        ([], [], r"x=\[\]: it must be two different values"),
    ):
        with pytest.raises(ValueError, match=match):
            fit_power_law(x, y)
    with pytest.raises(ValueError, match="name='slope'"):
        fit_power_law([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]).interval("slope")
