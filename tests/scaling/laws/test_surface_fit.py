"""Surfaces from runs: known ones are found again, published ones reproduced, and how sure they are."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

import toolkit
from toolkit.scaling import LossSurface, fit_loss_surface
from toolkit.scaling.laws.surface_fit import METHODS

KNOWN = LossSurface(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
NAMES = ("E", "A", "B", "alpha", "beta")
CHINCHILLA = Path(toolkit.__file__).parents[2] / "shared" / "data" / "chinchilla.csv"
every_method = pytest.mark.parametrize("method", METHODS)


def runs(
    surface: LossSurface = KNOWN, count: int = 60, noise: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(params, tokens, loss) of runs spread over sizes and tokens."""
    rng = np.random.default_rng(0)
    params, tokens = np.exp(rng.uniform(16, 24, count)), np.exp(rng.uniform(20, 27, count))
    return params, tokens, surface.loss(params, tokens) * np.exp(noise * rng.standard_normal(count))


def numbers(surface: LossSurface) -> list[float]:
    return [getattr(surface, name) for name in NAMES]


@every_method
@pytest.mark.parametrize("irreducible", [None, 1.69])
def test_a_surface_without_noise_is_found_again(method: str, irreducible: float | None) -> None:
    found = fit_loss_surface(*runs(), method, irreducible=irreducible)
    assert numbers(found) == pytest.approx(numbers(KNOWN), rel=1e-6)
    assert found.objective < 1e-20


def test_where_only_parameters_matter_the_projection_leaves_tokens_out() -> None:
    found = fit_loss_surface(*runs(LossSurface(2.0, 50.0, 0.0, 0.3, 0.3)))
    assert [found.E, found.A, found.alpha] == pytest.approx([2.0, 50.0, 0.3], rel=1e-4)
    assert pytest.approx(0.0, abs=1e-3) == found.B


def test_outliers_move_the_squares_and_hardly_the_huber_fit() -> None:
    params, tokens, loss = runs()
    loss[::20] *= 1.3
    robust, squares = (fit_loss_surface(params, tokens, loss, method) for method in ("huber", "projection"))
    assert abs(robust.alpha - KNOWN.alpha) < 0.01 < abs(squares.alpha - KNOWN.alpha)


@every_method
def test_a_fit_is_no_worse_than_the_truth_or_any_neighbour(method: str) -> None:
    data = runs(noise=0.01)
    found = fit_loss_surface(*data, method)

    def objective(surface: LossSurface) -> float:
        predicted = surface.loss(*data[:2])
        if method == "projection":
            return float(((predicted - data[2]) ** 2).sum())
        size = np.abs(np.log(predicted / data[2]))
        return float(np.where(size <= 1e-3, size**2 / 2, 1e-3 * (size - 5e-4)).sum())

    assert found.objective == pytest.approx(objective(found))
    others = [numbers(KNOWN), *(np.array(numbers(found)) * (1 + 1e-3 * np.eye(5)[i]) for i in range(5))]
    assert all(found.objective <= objective(LossSurface(*other)) for other in others)


@every_method
def test_intervals_shrink_with_runs_and_hold_the_truth(method: str) -> None:
    few, many = (fit_loss_surface(*runs(count=count, noise=0.01), method).bootstrap(200) for count in (40, 640))
    low, high = many.interval("alpha")
    assert low < KNOWN.alpha < high
    assert high - low < 0.6 * np.subtract(*few.interval("alpha")[::-1])
    assert many.interval("alpha", 0.5)[0] > low


def test_the_bootstrap_is_its_seeds_and_refits_every_resample() -> None:
    fitted = fit_loss_surface(*runs(noise=0.01), "huber")
    one, again, other = (fitted.bootstrap(5, seed=seed) for seed in (1, 1, 2))
    assert one == again != other
    drawn = np.random.default_rng(1).integers(60, size=(5, 60))
    for row, surface in zip(drawn, one.surfaces, strict=True):
        alone = fit_loss_surface(*(values[row] for values in runs(noise=0.01)), "huber")
        assert numbers(surface) == pytest.approx(numbers(alone), rel=1e-3)


def test_bad_input_is_named() -> None:
    params, tokens, loss = runs(count=6)
    for data, match in (
        ((params[:4], tokens[:4], loss[:4]), "4 runs.*5 or more"),
        ((params, tokens[:5], loss), r"tokens.shape=\(5,\)"),
        ((params, tokens, -loss), "loss="),
    ):
        with pytest.raises(ValueError, match=match):
            fit_loss_surface(*data)
    for settings, match in (
        ({"method": "squares"}, "method="),
        ({"irreducible": -1.0}, "irreducible=-1"),
        ({"delta": 0.0}, "delta=0"),
    ):
        with pytest.raises(ValueError, match=match):
            fit_loss_surface(params, tokens, loss, **settings)
    fitted = fit_loss_surface(params, tokens, loss)
    with pytest.raises(ValueError, match="resamples=1"):
        fitted.bootstrap(1)
    with pytest.raises(ValueError, match="level=1"):
        fitted.bootstrap(2).interval("E", 1.0)


@pytest.fixture(scope="module")
def chinchilla() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The 245 points read off Hoffmann et al.'s figure 4, without the five highest losses."""
    if not CHINCHILLA.exists():
        pytest.skip("the published points are not here")
    rows = list(csv.DictReader(CHINCHILLA.open()))
    params, flops, loss = (
        np.array([float(row[name]) for row in rows]) for name in ("Model Size", "Training FLOP", "loss")
    )
    kept = loss < np.sort(loss)[-5]
    return params[kept], flops[kept] / (6 * params[kept]), loss[kept]


def test_chinchillas_points_give_the_published_optimum(chinchilla: tuple[np.ndarray, ...]) -> None:
    """Besiroglu et al. 2024, to the optimum of their objective."""
    found = fit_loss_surface(*chinchilla, "huber")
    assert len(found.params) == 240
    assert found.objective <= 1.018275e-3
    assert [found.alpha, found.beta, found.E] == pytest.approx([0.3473, 0.3672, 1.8172], abs=5e-4)


@pytest.mark.slow
def test_chinchillas_points_give_the_published_intervals(chinchilla: tuple[np.ndarray, ...]) -> None:
    """4,000 resamples; their 95% intervals, E, alpha and beta within 2%, A 4%, B 8%."""
    resampled = fit_loss_surface(*chinchilla, "huber").bootstrap(4000, seed=42)
    published = {
        "E": (1.769, 1.871, 0.02), "alpha": (0.317, 0.373, 0.02), "beta": (0.331, 0.415, 0.02),
        "A": (285.214, 743.626, 0.04), "B": (1042.357, 5810.344, 0.08),
    }  # fmt: skip
    for name, (low, high, within) in published.items():
        assert resampled.interval(name) == pytest.approx((low, high), rel=within), name
