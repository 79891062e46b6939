"""Surfaces from runs: known ones are found again, published ones reproduced, and how sure they are."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import toolkit
from toolkit.scaling import LossSurface, fit_loss_surface
from toolkit.scaling.laws import SurfaceBootstrap
from toolkit.scaling.laws.resampling import resampled
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
    data = runs(noise=0.01)
    fitted = fit_loss_surface(*data, "huber")
    one, again, other = (fitted.bootstrap(5, seed=seed) for seed in (1, 1, 2))
    assert one == again != other
    weights = resampled(fitted.group, 5, np.random.default_rng(1)).astype(int)
    for row, surface in zip(weights, one.surfaces, strict=True):
        alone = fit_loss_surface(*(np.repeat(values, row) for values in data), "huber")
        assert numbers(surface) == pytest.approx(numbers(alone), rel=1e-3)


def spread(*data: np.ndarray, group: list[str] | None = None) -> float:
    return float(fit_loss_surface(*data, group=group).bootstrap(400).values("alpha").std())


def test_runs_of_a_group_are_drawn_together() -> None:
    """Copies in one group tell nothing new; as runs of their own they would seem to halve the variance."""
    data = runs(noise=0.01)
    twice = tuple(np.tile(values, 2) for values in data)
    together = spread(*twice, group=[str(at % 60) for at in range(120)])
    assert together == pytest.approx(spread(*data), rel=0.15)
    assert spread(*twice) == pytest.approx(together / np.sqrt(2), rel=0.2)


def line(params: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return params, tokens, KNOWN.loss(params, tokens)


SIZES = np.geomspace(1e7, 1e10, 12)


@every_method
@pytest.mark.parametrize(
    ("data", "match"),
    [
        (tuple(np.tile(values, 5) for values in runs(count=4)), "params and tokens='4 different points': it must be 5"),
        (line(np.full(12, 1e8), 20 * SIZES), "params='1 different values': it must be 3 or more"),
        (line(np.tile([1e8, 1e9], 6), 20 * SIZES), "params='2 different values': it must be 3 or more"),
        (line(SIZES, np.tile([1e9, 1e10], 6)), "tokens='2 different values': it must be 3 or more"),
        (line(SIZES, 20 * SIZES), "tokens / params='1 different values': it must be 2 or more"),
        ((SIZES, SIZES[::-1], np.full(12, 3.0)), "loss=3.0: it must be not the same in every run"),
    ],
)
def test_runs_that_cannot_tell_the_surface_are_refused(data: tuple[np.ndarray, ...], match: str, method: str) -> None:
    with pytest.raises(ValueError, match=match):
        fit_loss_surface(*data, method)


def test_an_irreducible_loss_is_below_all_losses_and_takes_one_run_less() -> None:
    data = runs(count=12)
    lowest = float(data[2].min())
    for given in (lowest, 5.0, 0.0):
        with pytest.raises(ValueError, match=f"irreducible={given}: it must be None, or above 0 and below the lowest"):
            fit_loss_surface(*data, irreducible=given)
    few = runs(count=4)
    assert numbers(fit_loss_surface(*few, irreducible=1.69)) == pytest.approx(numbers(KNOWN), rel=1e-4)


def test_a_sound_fit_has_no_cautions() -> None:
    for method in METHODS:
        assert fit_loss_surface(*runs(noise=0.01), method).cautions == ()


@pytest.mark.parametrize(
    ("surface", "said"),
    [
        (LossSurface(2.0, 50.0, 0.0, 0.3, 0.3), "B is at 0"),
        (LossSurface(0.0, 50.0, 60.0, 0.05, 0.1), "E is at 0"),
    ],
)
def test_a_term_that_is_not_there_is_cautioned_of(surface: LossSurface, said: str) -> None:
    assert any(line.startswith(said) for line in fit_loss_surface(*runs(surface)).cautions)


def test_a_given_irreducible_loss_is_no_finding() -> None:
    found = fit_loss_surface(*runs(LossSurface(0.0, 50.0, 60.0, 0.2, 0.25)), irreducible=1e-9)
    assert found.cautions == ()


def test_exponents_of_the_wrong_sign_or_beyond_the_grid_are_cautioned_of() -> None:
    fitted = fit_loss_surface(*runs())
    for numbers_, said in (
        ({"alpha": -0.1, "A": 0.1}, "alpha = -0.1 is not above 0"),
        ({"beta": 0.0, "B": 0.1}, "beta = 0 is not above 0"),
        ({"alpha": 1.6, "A": 1e10}, "alpha = 1.6 is beyond 1.5"),
    ):
        (line,) = replace(fitted, **numbers_).cautions
        assert line.startswith(said)


def test_the_optimum_of_a_budget_has_an_interval() -> None:
    resampled = fit_loss_surface(*runs(noise=0.01)).bootstrap(200)
    for name in ("params", "tokens", "loss"):
        low, high = resampled.optimum_interval(1e20, name)
        optima = [getattr(surface.optimum(1e20), name) for surface in resampled.surfaces]
        assert low < getattr(KNOWN.optimum(1e20), name) < high
        assert np.mean([low <= value <= high for value in optima]) == pytest.approx(0.95, abs=0.011)
    assert resampled.optimum_interval(1e20, "loss", 0.5)[0] > low
    twice = resampled.optimum_interval(2e20, "params", flops_per=12)
    assert twice == pytest.approx(resampled.optimum_interval(1e20, "params"))
    with pytest.raises(ValueError, match="name='E'"):
        resampled.optimum_interval(1e20, "E")
    flat = SurfaceBootstrap((KNOWN, LossSurface(1.0, 1.0, 1.0, -0.1, 0.3)))
    with pytest.raises(ValueError, match="surfaces='1 of 2 without one'"):
        flat.optimum_interval(1e20, "params")


def test_bad_input_is_named() -> None:
    params, tokens, loss = runs(count=6)
    for data, match in (
        ((params[:4], tokens[:4], loss[:4]), "4 runs.*5 or more"),
        ((params, tokens[:5], loss), r"tokens.shape=\(5,\)"),
        ((params, tokens, -loss), r"loss\[0\]=-"),
        (([*params[:5], np.nan], tokens, loss), r"params\[5\]=nan: it must be positive and finite"),
    ):
        with pytest.raises(ValueError, match=match):
            fit_loss_surface(*data)
    for settings, match in (
        ({"method": "squares"}, "method="),
        ({"irreducible": -1.0}, "irreducible=-1"),
        ({"delta": 0.0}, "delta=0"),
        ({"group": ["one"]}, r"group.shape=\(1,\)"),
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


def test_chinchillas_points_give_the_published_intervals(chinchilla: tuple[np.ndarray, ...]) -> None:
    """4,000 resamples; their 95% intervals, E, alpha and beta within 2%, A 4%, B 8%."""
    resampled = fit_loss_surface(*chinchilla, "huber").bootstrap(4000, seed=42)
    published = {
        "E": (1.769, 1.871, 0.02), "alpha": (0.317, 0.373, 0.02), "beta": (0.331, 0.415, 0.02),
        "A": (285.214, 743.626, 0.04), "B": (1042.357, 5810.344, 0.08),
    }  # fmt: skip
    for name, (low, high, within) in published.items():
        assert resampled.interval(name) == pytest.approx((low, high), rel=within), name
