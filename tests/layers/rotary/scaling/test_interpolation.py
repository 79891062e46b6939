"""Linear, Llama 3 and proportional scaling by their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.layers import LinearScaling, Llama3Scaling, ProportionalScaling, RotaryEmbedding
from toolkit.layers.rotary.scaling import unscaled


def test_linear_scaling_is_dividing_positions() -> None:
    x, positions = torch.randn(1, 2, 5, 8, dtype=torch.float64), torch.tensor([0, 4, 8, 40, 400])
    scaled = RotaryEmbedding(8, scaling=LinearScaling(4)).rotate(x, positions)
    torch.testing.assert_close(scaled, RotaryEmbedding(8).rotate(x, positions // 4), rtol=0, atol=1e-5)


@settings(max_examples=40)
@given(st.floats(1, 64), st.integers(16, 10_000), st.floats(0.2, 3), st.floats(0.5, 8), st.floats(100, 1e6))
def test_llama3_keeps_fast_divides_slow_and_interpolates_between(
    factor: float, length: int, low: float, width: float, base: float
) -> None:
    inv_freq, attention_factor = Llama3Scaling(factor, length, low, low + width).frequencies(32, 32, base, 1)
    assert attention_factor == 1.0
    for w, kept in zip(inv_freq.tolist(), unscaled(32, base).tolist(), strict=True):
        turns = length * kept / (2 * math.pi)
        t = min(max((turns - low) / width, 0), 1)
        assert w == pytest.approx((1 - t) * kept / factor + t * kept, rel=1e-4)
        if turns > (low + width) * 1.001:
            assert w == kept
        if turns < low * 0.999:
            assert w == pytest.approx(kept / factor, rel=2e-7)


@pytest.mark.parametrize(("fraction", "turning"), [(1.0, 4), (0.5, 2), (0.25, 1), (0.7, 2), (0.74, 2), (0.75, 3)])
def test_proportional_turns_the_first_pairs_at_the_whole_heads_frequencies(fraction: float, turning: int) -> None:
    inv_freq, _ = ProportionalScaling(fraction, 2.0).frequencies(8, 8, 100.0, 1)
    assert torch.equal(inv_freq[:turning], unscaled(8, 100.0)[:turning] / 2)
    assert torch.equal(inv_freq[turning:], torch.zeros(4 - turning))
    x = torch.randn(1, 1, 6, 8)
    out = RotaryEmbedding(8, 100.0, ProportionalScaling(fraction, 2.0)).rotate(x)
    still = [k for k in range(8) if k % 4 >= turning]
    assert torch.equal(out[..., still], x[..., still])
    assert not torch.any(torch.isclose(out[..., 1:, :turning], x[..., 1:, :turning]).all(-1))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"low_freq_factor": 0}, "low_freq_factor=0"),
        ({"low_freq_factor": 4}, "high_freq_factor=4: it must be above low_freq_factor=4"),
        ({"high_freq_factor": "4"}, "high_freq_factor='4'"),
        ({"high_freq_factor": 0.5}, "high_freq_factor=0.5"),
    ],
)
def test_bad_settings_of_llama3_are_named(settings: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Llama3Scaling(8, 8192, **settings)


@pytest.mark.parametrize("fraction", [0, -0.5, 1.5, "half", None])
def test_a_bad_fraction_is_named(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction="):
        ProportionalScaling(fraction)


def test_proportional_must_go_with_the_embedding() -> None:
    with pytest.raises(ValueError, match=r"fraction=0.5: it must be 1.0 with ProportionalScaling\(fraction=0.5\)"):
        RotaryEmbedding(8, scaling=ProportionalScaling(0.5), fraction=0.5)
    with pytest.raises(ValueError, match=r"fraction=0.2: it must be at least 0.25"):
        RotaryEmbedding(8, scaling=ProportionalScaling(0.2))
