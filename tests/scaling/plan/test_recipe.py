"""Recipes: rates that fall with width, batches that grow by doublings, weight decay that forgets over one share."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.scaling.plan import Family, Grid, IsoFLOP, ModelShape, Recipe, Search, plan_isoflop
from toolkit.training import TrainingConfig

BASE = TrainingConfig(steps=1, context=32, batch_size=8, weight_decay=0.1)
MODEL = ModelShape().decoder("dense", 64, 256)


def training(recipe: Recipe, dim: int = 64, steps: int = 1000, batch_size: int = 8) -> TrainingConfig:
    return recipe.training(BASE, dim, steps, batch_size, seed=3)


@given(st.integers(1, 4096), st.floats(1e-4, 1.0))
def test_inverse_width_keeps_rate_times_width(dim: int, rate: float) -> None:
    recipe = Recipe(learning_rate=rate, base_dim=64)
    assert training(recipe, dim).learning_rate * dim == pytest.approx(rate * 64)
    assert recipe.model(MODEL) == MODEL


def test_mup_keeps_the_peak_and_leaves_the_rest_to_the_models_parametrisation() -> None:
    recipe = Recipe(learning_rate=0.02, base_dim=32, transfer="mup")
    assert {training(recipe, dim).learning_rate for dim in (8, 32, 256)} == {0.02}
    assert recipe.model(MODEL).mup_base_dim == 32


@pytest.mark.parametrize("transfer", ["inverse_width", "mup"])
def test_at_the_base_width_both_are_one_recipe(transfer: str) -> None:
    assert training(Recipe(0.02, 64, transfer), 64).learning_rate == 0.02


@pytest.mark.parametrize("transfer", ["inverse_width", "mup"])
@given(dim=st.integers(8, 512), steps=st.integers(1, 10**6), rate=st.floats(1e-4, 1.0), horizon=st.floats(0.01, 10))
def test_decayed_matrices_forget_over_one_share_of_any_run(
    transfer: str, dim: int, steps: int, rate: float, horizon: float
) -> None:
    """The matrices inside the layers alone decay; their rate is learning_rate * base_dim / dim in both transfers."""
    settings = training(Recipe(rate, 64, transfer, decay_horizon=horizon), dim, steps)
    assert rate * 64 / dim * settings.weight_decay * steps == pytest.approx(1 / horizon)
    assert training(Recipe(rate, 64, transfer), dim, steps).weight_decay == BASE.weight_decay


def test_a_runs_own_settings_are_set_and_the_rest_is_the_bases() -> None:
    settings = training(Recipe(), steps=77, batch_size=16)
    assert (settings.steps, settings.batch_size, settings.seed) == (77, 16, 3)
    assert (settings.context, settings.schedule) == (BASE.context, BASE.schedule)


@given(st.floats(1e4, 1e12), st.sampled_from([0.25, 0.383, 0.5, 1.0]))
def test_the_batch_is_the_base_times_the_nearest_power_of_two(tokens: float, exponent: float) -> None:
    recipe = Recipe(batch_exponent=exponent, batch_tokens=1e4)
    factor = recipe.batch_size(tokens, 8) / 8
    assert math.log2(factor).is_integer()
    wanted = (tokens / 1e4) ** exponent
    assert 1 / math.sqrt(2) <= factor / wanted * (1 + 1e-9)
    assert factor / wanted <= math.sqrt(2) * (1 + 1e-9)


def test_without_an_exponent_and_at_batch_tokens_the_batch_is_the_base() -> None:
    assert Recipe(batch_tokens=1.0).batch_size(1e12, 6) == 6
    assert Recipe(batch_exponent=0.383, batch_tokens=1e8).batch_size(1e8, 6) == 6


def test_fewer_tokens_halve_it_and_what_cannot_be_halved_is_refused() -> None:
    recipe = Recipe(batch_exponent=0.5, batch_tokens=16e6)
    assert [recipe.batch_size(tokens, 6) for tokens in (64e6, 16e6, 4e6)] == [12, 6, 3]
    for base in (6, 1):
        with pytest.raises(ValueError, match=f"batch_size={base}: it must be a multiple of 4"):
            recipe.batch_size(1e6, base)


@pytest.mark.parametrize("transfer", ["inverse_width", "mup"])
def test_the_rate_follows_the_batch_by_its_square_root(transfer: str) -> None:
    """Adam's rule: four times the batch, twice the rate, whatever the width; and back."""
    recipe = Recipe(0.02, 64, transfer)
    for dim in (16, 64, 256):
        base = training(recipe, dim, batch_size=8).learning_rate
        assert training(recipe, dim, batch_size=32).learning_rate == pytest.approx(2 * base)
        assert training(recipe, dim, batch_size=2).learning_rate == pytest.approx(base / 2)
        linear = replace(recipe, rate_exponent=1.0)
        assert training(linear, dim, batch_size=32).learning_rate == pytest.approx(4 * base)
        assert training(replace(recipe, rate_exponent=0.0), dim, batch_size=32).learning_rate == base


def test_a_larger_batch_forgets_over_the_same_share() -> None:
    recipe = Recipe(0.02, 64, decay_horizon=0.5)
    for batch_size in (4, 8, 64):
        settings = training(recipe, 32, 100, batch_size)
        assert settings.learning_rate * settings.weight_decay * 100 == pytest.approx(2)


def test_a_plan_s_rates_follow_its_batches() -> None:
    """Hundred times the FLOPs are ten times the batch here, to the nearest power of two, and the rate its root."""
    recipe = Recipe(0.02, 64, batch_exponent=0.5, batch_tokens=1e5)
    shape = ModelShape((Family("dense"),), layers=1)
    small, large = plan_isoflop(
        Grid((IsoFLOP(1e11, (32,)), IsoFLOP(1e13, (32,))), seeds=1, recipe=recipe), shape, 256, BASE
    )
    batches = large.training.batch_size / small.training.batch_size
    assert batches in (8, 16)
    assert large.training.learning_rate / small.training.learning_rate == pytest.approx(math.sqrt(batches))


def test_at_rate_changes_the_rate_alone() -> None:
    recipe = Recipe(0.02, 32, "mup", decay_horizon=0.5)
    assert recipe.at_rate(None) == recipe
    assert recipe.at_rate(0.5) == Recipe(0.5, 32, "mup", decay_horizon=0.5)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"learning_rate": 0.0}, "learning_rate=0.0: it must be positive"),
        ({"base_dim": 0}, "base_dim=0: it must be positive"),
        ({"batch_tokens": -1.0}, "batch_tokens=-1.0: it must be positive"),
        ({"transfer": "sp"}, "transfer='sp': it must be one of 'inverse_width', 'mup'"),
        ({"batch_exponent": 1.1}, "batch_exponent=1.1: it must be between 0 and 1"),
        ({"batch_exponent": -0.1}, "batch_exponent=-0.1"),
        ({"rate_exponent": 1.5}, "rate_exponent=1.5: it must be between 0 and 1"),
        ({"decay_horizon": 0.0}, "decay_horizon=0.0: it must be positive, or None"),
    ],
)
def test_a_recipe_out_of_range_is_refused(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Recipe(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"flops": 0.0}, "flops=0.0"),
        ({"seeds": 0}, "seeds=0"),
        ({"factors": (0.5, 1.0)}, "factors="),
        ({"factors": (1.0, 0.5, 2.0)}, "factors="),
        ({"factors": (0.5, 1.0, 1.0)}, "factors="),
        ({"factors": (0.0, 1.0, 2.0)}, "factors="),
    ],
)
def test_a_search_out_of_range_is_refused(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Search(**{"flops": 1e9, **settings})  # type: ignore[arg-type]


def test_a_report_is_told_what_the_rate_batch_and_decay_are() -> None:
    assert Recipe(0.01, 64).describe() == "Peak learning rate 0.64 / dim for every parameter."
    told = Recipe(0.02, 32, "mup", batch_exponent=0.383, decay_horizon=0.1).describe()
    assert told.startswith("Peak learning rate 0.02, in matrices inside the layers times 32 / dim (muP)")
    assert "batch grows as tokens to the 0.383, the rate as the batch to the 0.5" in told
    assert "weights forget over 0.1 of a run" in told
