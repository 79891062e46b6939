"""YaRN by its definition: which frequencies are kept and which interpolated, and every way to its attention factor."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.layers import RotaryEmbedding, YaRNScaling
from toolkit.layers.rotary.scaling import unscaled


@settings(max_examples=40)
@given(st.floats(1, 64), st.integers(64, 30_000), st.floats(1000, 1e6), st.booleans())
def test_fast_are_kept_slow_interpolated_and_the_rest_lies_between(
    factor: float, length: int, base: float, truncate: bool
) -> None:
    inv_freq, _ = YaRNScaling(factor, length, truncate=truncate).frequencies(64, 64, base, 1)
    kept = unscaled(64, base)
    turns = length * kept / (2 * math.pi)
    assert torch.all(inv_freq <= kept) and torch.all(inv_freq >= kept / factor * (1 - 1e-6))
    assert torch.equal(inv_freq[0], kept[0])  # no ramp starts before the first
    spread = 2 * math.log(base) / 64  # the ramp's ends may be whole indices: one further out
    fast, slow = turns > 32 * math.exp(spread * 1.001), turns < math.exp(-spread * 1.001)
    assert torch.equal(inv_freq[fast], kept[fast])
    torch.testing.assert_close(inv_freq[slow], kept[slow] / factor, rtol=1e-6, atol=0)


def test_the_ramp_is_linear_in_the_index_and_ends_where_the_turns_are_counted() -> None:
    scaling, d, base, length = YaRNScaling(8, 4096, 20, 2, truncate=False), 64, 10_000.0, 4096
    kept = unscaled(d, base)
    gamma = (kept - scaling.frequencies(d, d, base, 1)[0]) / (kept - kept / 8)
    low, high = (d * math.log(length / (2 * math.pi * r)) / (2 * math.log(base)) for r in (20, 2))
    expected = ((torch.arange(32) - low) / (high - low)).clamp(0, 1)
    torch.testing.assert_close(gamma, expected, rtol=0, atol=1e-5)
    whole = YaRNScaling(8, 4096, 20, 2).frequencies(d, d, base, 1)[0]
    expected = ((torch.arange(32) - math.floor(low)) / (math.ceil(high) - math.floor(low))).clamp(0, 1)
    torch.testing.assert_close((kept - whole) / (kept - kept / 8), expected, rtol=0, atol=1e-5)


def test_equal_betas_are_a_step() -> None:
    inv_freq, _ = YaRNScaling(8, 4096, 4, 4, truncate=False).frequencies(64, 64, 10_000.0, 1)
    kept = unscaled(64, 10_000.0)
    fast = 4096 * kept / (2 * math.pi) > 4
    torch.testing.assert_close(inv_freq, torch.where(fast, kept, kept / 8), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 0.1 * math.log(40) + 1),
        ({"attention_factor": 1.0}, 1.0),
        ({"attention_factor": 0.7, "mscale": 1.0, "mscale_all_dim": 0.5}, 0.7),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),
        ({"mscale": 0.7, "mscale_all_dim": 0.3}, (0.07 * math.log(40) + 1) / (0.03 * math.log(40) + 1)),
        ({"mscale": 0.7}, 0.1 * math.log(40) + 1),  # alone it says nothing
        ({"mscale_all_dim": 0.7}, 0.1 * math.log(40) + 1),
        ({"mscale": 0.7, "mscale_all_dim": 0}, 0.1 * math.log(40) + 1),
    ],
)
def test_the_attention_factor(settings: dict[str, float], expected: float) -> None:
    assert YaRNScaling(40, 4096, **settings).frequencies(64, 64, 1e4, 1)[1] == pytest.approx(expected, rel=1e-12)


def test_the_attention_factor_multiplies_cos_and_sin_so_scores_by_its_square() -> None:
    q, k = torch.randn(2, 1, 1, 5, 8, dtype=torch.float64)
    plain = RotaryEmbedding(8, scaling=YaRNScaling(4, 256, attention_factor=1.0))
    sharp = RotaryEmbedding(8, scaling=YaRNScaling(4, 256, attention_factor=1.5))
    (q1, k1), (q2, k2) = plain(q, k), sharp(q, k)
    torch.testing.assert_close(q2 @ k2.mT, 2.25 * (q1 @ k1.mT))


def test_the_softmax_scale_multiplier() -> None:
    assert YaRNScaling(40, 4096, mscale=1.0).softmax_scale_multiplier == 1.0
    expected = (0.0707 * math.log(40) + 1) ** 2
    for mscale in (None, 0.3):
        scaling = YaRNScaling(40, 4096, mscale=mscale, mscale_all_dim=0.707)
        assert scaling.softmax_scale_multiplier == pytest.approx(expected, rel=1e-12)
    assert YaRNScaling(1, 4096, mscale_all_dim=0.707).softmax_scale_multiplier == 1.0


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"beta_fast": 0}, "beta_fast=0"),
        ({"beta_slow": -1}, "beta_slow=-1"),
        ({"beta_fast": 1, "beta_slow": 2}, "beta_fast=1: it must be at least beta_slow=2"),
        ({"truncate": 0}, "truncate=0"),
        ({"mscale": -1}, "mscale=-1"),
        ({"mscale_all_dim": "1"}, "mscale_all_dim='1'"),
        ({"attention_factor": 0}, "attention_factor=0"),
        ({"attention_factor": float("nan")}, "attention_factor=nan"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        YaRNScaling(4, 256, **settings)


@pytest.mark.parametrize(
    ("base", "length", "named"),
    [(1.0, 256, "base=1.0"), (0.5, 256, "base=0.5"), (1e4, 1, "original_length=1"), (2.0, 10**9, "original_length=10")],
)
def test_where_no_frequency_turns_between_the_betas_it_is_refused(base: float, length: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        RotaryEmbedding(16, base, YaRNScaling(4, length))
