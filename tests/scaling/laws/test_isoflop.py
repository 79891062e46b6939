"""IsoFLOP minima against closed forms and known curves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from synthetic_study import run_result, surface

from toolkit.scaling.laws.isoflop import cells_of, curve_minima, finite_runs, isoflop_minima, parabola, seed_noise


def test_parabola_is_recovered_exactly() -> None:
    x = np.log([1e4, 3e4, 1e5, 5e5])
    coefficients = np.array([[0.1, -2.2, 14.0], [0.3, -6.0, 33.0]])
    losses = coefficients @ np.stack([x**2, x, np.ones_like(x)])
    np.testing.assert_allclose(parabola(x, losses), coefficients, rtol=1e-9)
    size, loss, taken = curve_minima(x, losses)
    np.testing.assert_allclose(size, [11.0, 10.0], rtol=1e-9)
    np.testing.assert_allclose(loss, [14 - 0.1 * 121, 33 - 0.3 * 100], rtol=1e-9)
    assert taken.all()


def test_parabola_is_the_least_squares_one() -> None:
    rng = np.random.default_rng(0)
    x, losses = np.sort(rng.uniform(9, 13, 7)), rng.uniform(2, 3, (5, 7))
    for mine, curve in zip(parabola(x, losses), losses, strict=True):
        np.testing.assert_allclose(mine, np.polyfit(x, curve, 2), rtol=1e-6)


def test_minimum_of_a_known_surface() -> None:
    """The vertex is near the optimum that the surface's closed form gives."""
    dims = (32, 48, 64, 96, 128)
    rows = [run_result("dense", 1e12, dim, 0, surface(24 * dim**2, 1e12)) for dim in dims]
    (minimum,) = isoflop_minima(rows)
    sizes = np.geomspace(1e3, 1e7, 100_000)
    losses = surface(sizes, 1e12)  # type: ignore[arg-type]
    assert minimum.method == "parabola"
    assert not minimum.at_edge
    assert minimum.loss == pytest.approx(losses.min(), abs=2e-3)
    assert math.log(minimum.size) == pytest.approx(math.log(sizes[losses.argmin()]), abs=0.15)


def test_vertex_can_lie_below_every_cell() -> None:
    x = np.log([1e4, 1e5, 1e6])
    size, loss, taken = curve_minima(x, np.array([[2.0, 1.9, 1.91]]))
    assert taken[0]
    assert loss[0] < 1.9
    assert x[1] < size[0] < x[2]


@pytest.mark.parametrize(
    ("losses", "method", "at_edge", "dim"),
    [
        ((2.0,), "best cell", True, 16),
        ((2.0, 1.9), "best cell", True, 32),
        ((1.0, 2.0, 1.5), "best cell", True, 16),  # not convex
        ((2.0, 1.9, 1.81), "best cell", True, 64),  # vertex outside the grid
        ((2.0, 1.5, 1.4), "parabola", True, 64),  # vertex inside, but the last cell is the lowest
        ((2.0, 1.5, 1.9), "parabola", False, 32),
    ],
)
def test_fallback_is_named(losses: tuple[float, ...], method: str, at_edge: bool, dim: int) -> None:
    rows = [run_result("dense", 1e12, 16 * 2**i, 0, loss) for i, loss in enumerate(losses)]
    (minimum,) = isoflop_minima(rows)
    assert (minimum.method, minimum.at_edge, minimum.best.dim) == (method, at_edge, dim)
    assert minimum.sizes == len(losses)
    if method == "best cell":
        assert minimum.loss == min(losses)
        assert minimum.size == minimum.best.size
        assert minimum.seconds == minimum.best.seconds


def test_seconds_are_interpolated_at_the_vertex() -> None:
    """Seconds = size^2 is a straight line in log-log, so the interpolation is exact."""
    sizes = (10**4, 10**5, 10**6)
    rows = [
        run_result("dense", 1e12, dim, 0, loss, seconds=size**2.0, size=size)
        for dim, (size, loss) in enumerate(zip(sizes, (2.0, 1.5, 1.7), strict=True))
    ]
    (minimum,) = isoflop_minima(rows)
    assert minimum.method == "parabola"
    assert minimum.seconds == pytest.approx(minimum.size**2)


def test_cells_average_seeds_and_keep_their_runs() -> None:
    rows = [run_result("moe", 1e12, 64, seed, 2.0 + seed, seconds=1.0 + seed) for seed in (0, 2)]
    rows += [run_result("dense", 2e12, 64, 0, 1.0), run_result("dense", 1e12, 64, 0, 1.0)]
    cells = cells_of(rows)
    assert [(cell.family, cell.budget) for cell in cells] == [("moe", 1e12), ("dense", 1e12), ("dense", 2e12)]
    assert (cells[0].loss, cells[0].seconds, cells[0].seeds) == (3.0, 2.0, 2)
    assert cells[0].runs == ("moe-dim64-flops1e+12-seed0", "moe-dim64-flops1e+12-seed2")


def test_seed_noise_is_the_pooled_deviation() -> None:
    groups = {16: (2.0, 2.2, 2.1), 32: (1.0, 1.4), 64: (5.0,)}
    rows = [
        run_result("dense", 1e12, dim, seed, loss) for dim, losses in groups.items() for seed, loss in enumerate(losses)
    ]
    noise = seed_noise(rows)
    assert noise is not None
    assert noise.degrees_of_freedom == 3
    pooled = (2 * np.var([2.0, 2.2, 2.1], ddof=1) + 1 * np.var([1.0, 1.4], ddof=1)) / 3
    assert noise.sd == pytest.approx(math.sqrt(pooled))


def test_one_seed_has_no_noise() -> None:
    assert seed_noise([run_result("dense", 1e12, dim, 0, 2.0) for dim in (16, 32)]) is None


def test_diverged_runs_are_refused_or_parted() -> None:
    rows = [run_result("dense", 1e12, 16, 0, 2.0), run_result("dense", 1e12, 32, 0, math.nan)]
    with pytest.raises(ValueError, match="dense-dim32-flops1e"):
        cells_of(rows)
    assert finite_runs(rows) == (rows[:1], rows[1:])


def test_seeds_of_different_size_are_refused() -> None:
    rows = [run_result("dense", 1e12, 16, seed, 2.0, size=1000 + seed) for seed in range(2)]
    with pytest.raises(ValueError, match="active_parameters"):
        isoflop_minima(rows)
