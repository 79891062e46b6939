"""Damped steps for many problems at once: against scipy, and where loose tolerances stop on Chinchilla's data."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from scipy import optimize
from synthetic_laws import DATA

from toolkit.scaling.laws.descent import descend, expansion, huber
from toolkit.scaling.laws.surface import Floats
from toolkit.scaling.laws.surface_descent import SurfaceObjective

TEX = np.array([[6.0073404, 6.0179186, 0.5267228, 0.33917084, 0.2849083]])
"""ln A, ln B, ln E, alpha, beta in the source of Hoffmann et al.'s paper."""


class Curve:
    """y = exp(a x) + b at given points."""

    x, y = np.linspace(0, 1, 20), np.exp(-1.3 * np.linspace(0, 1, 20)) + 0.4 + 0.1 * np.sin(np.arange(20))

    def expand(self, theta: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
        exponential = np.exp(theta[:, :1] * self.x)
        slopes = np.stack([self.x * exponential, np.ones_like(exponential)], axis=2)
        value, gradient, squares = expansion(exponential + theta[:, 1:] - self.y, slopes, weights, None)
        return value, gradient, squares


def test_each_problem_ends_where_scipy_does_with_its_weights() -> None:
    curve, rng = Curve(), np.random.default_rng(0)
    weights = rng.integers(0, 3, (4, 20)).astype(float)
    found, value = descend(np.array([[0.0, 0.0], [3.0, -1.0], [-5.0, 2.0], [1.0, 1.0]]), curve, weights)
    for theta, least, weight in zip(found, value, weights, strict=True):
        root = np.sqrt(weight)
        oracle = optimize.least_squares(lambda t, w=root: w * (np.exp(t[0] * curve.x) + t[1] - curve.y), [-1, 0])
        np.testing.assert_allclose(theta, oracle.x, rtol=1e-5)
        assert least == pytest.approx(oracle.cost, rel=1e-9)


def test_what_is_not_free_stays() -> None:
    found, _ = descend(np.array([[0.0, 0.25]]), Curve(), np.ones((1, 20)), free=[0])
    assert found[0, 1] == 0.25
    assert found[0, 0] != 0.0


def test_huber_is_the_square_near_zero_and_linear_beyond() -> None:
    residual = np.array([-3.0, -0.5, 0.0, 0.5, 3.0])
    losses, factors = huber(residual, 1.0)
    np.testing.assert_allclose(losses, [2.5, 0.125, 0.0, 0.125, 2.5])
    np.testing.assert_allclose(factors * residual, np.clip(residual, -1, 1))
    np.testing.assert_allclose(huber(residual, None)[0], residual**2 / 2)


@pytest.fixture(scope="module")
def chinchilla() -> SurfaceObjective:
    """Hoffmann's robust objective over the published points, without the five highest losses."""
    if not (DATA / "chinchilla.csv").exists():
        pytest.skip("the published points are not here")
    rows = list(csv.DictReader((DATA / "chinchilla.csv").open()))
    params, flops, loss = (
        np.array([float(row[name]) for row in rows]) for name in ("Model Size", "Training FLOP", "loss")
    )
    kept = loss < np.sort(loss)[-5]
    params, flops, loss = params[kept], flops[kept], loss[kept]
    return SurfaceObjective(np.log(params), np.log(flops / (6 * params)), np.log(loss), 1e-3)


def exponent(theta: Floats) -> float:
    return float(theta[4] / (theta[3] + theta[4]))


def test_the_sum_over_runs_and_their_mean_end_at_one_place(chinchilla: SurfaceObjective) -> None:
    """From the paper's own numbers, to the optimum of Besiroglu et al. 2024's objective, a = 0.5139."""
    ends = [descend(TEX, chinchilla, np.full((1, 240), weight)) for weight in (1.0, 1 / 240)]
    (total, total_value), (mean, mean_value) = ends
    np.testing.assert_allclose(mean, total, rtol=1e-6)
    assert 240 * mean_value[0] == pytest.approx(total_value[0], rel=1e-9)
    assert total_value[0] <= 1.018275e-3
    assert exponent(total[0]) == pytest.approx(0.5139, abs=5e-4)


def test_scipys_default_tolerances_stop_the_mean_at_hoffmanns_exponent(chinchilla: SurfaceObjective) -> None:
    """The trap is real: a mean of losses of 1e-6 falls by less than L-BFGS-B's ftol long before the optimum."""

    def mean(theta: Floats) -> tuple[float, Floats]:
        value, gradient, _ = chinchilla.expand(theta[None], np.full((1, 240), 1 / 240))
        return float(value[0]), gradient[0]

    stopped = optimize.minimize(mean, TEX[0], jac=True, method="L-BFGS-B")
    assert stopped.success
    assert exponent(stopped.x) == pytest.approx(0.45, abs=0.01)
    assert 240 * stopped.fun > 1.1 * 1.018275e-3
    tight = {"ftol": 1e-15, "gtol": 1e-12, "maxiter": 10_000, "maxfun": 100_000}
    followed = optimize.minimize(mean, TEX[0], jac=True, method="L-BFGS-B", options=tight)
    assert exponent(followed.x) == pytest.approx(0.5139, abs=5e-4)
