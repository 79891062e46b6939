"""NTK-aware scaling: the slowest frequency is stretched by the whole factor, the fastest not at all."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.layers import DynamicNTKScaling, LinearScaling, NTKScaling, RotaryEmbedding
from toolkit.layers.rotary.scaling import unscaled


@settings(max_examples=40)
@given(st.integers(2, 64), st.floats(1, 64), st.floats(100, 1e6))
def test_the_slowest_is_interpolated_and_the_fastest_kept(pairs: int, factor: float, base: float) -> None:
    d = 2 * pairs
    inv_freq, attention_factor = NTKScaling(factor).frequencies(d, d, base, 1)
    linear, kept = LinearScaling(factor).frequencies(d, d, base, 1)[0], unscaled(d, base)
    assert attention_factor == 1.0
    assert inv_freq[0] == kept[0]
    assert float(inv_freq[-1]) == pytest.approx(float(linear[-1]), rel=1e-5)
    assert torch.all(inv_freq >= linear * (1 - 1e-5)) and torch.all(inv_freq <= kept * (1 + 1e-6))


def test_dynamic_grows_continuously_from_the_original_length() -> None:
    scaling = DynamicNTKScaling(3, 1000)
    slowest = [float(scaling.frequencies(16, 16, 1e4, n)[0][-1]) for n in (1, 999, 1000, 1001, 2000, 4000)]
    assert slowest[0] == slowest[1] == slowest[2]
    assert slowest[2] > slowest[3] > slowest[4] > slowest[5]
    assert slowest[3] == pytest.approx(slowest[2], rel=0.005)
    # At n = L * m the slowest is stretched by factor * m - (factor - 1).
    assert slowest[0] / slowest[4] == pytest.approx(3 * 2 - 2, rel=1e-5)
    assert slowest[0] / slowest[5] == pytest.approx(3 * 4 - 2, rel=1e-5)


@pytest.mark.parametrize("factor", [1e308, 10**400, float("inf"), float("nan")])
def test_a_factor_out_of_all_range_is_refused(factor: float) -> None:
    for make in (NTKScaling, LinearScaling, lambda factor: DynamicNTKScaling(factor, 16)):
        with pytest.raises(ValueError, match="factor=.*: it must be a number of 1 or more, at most 1e"):
            make(factor)


def test_a_base_stretched_beyond_fp32_is_refused() -> None:
    for scaling in (NTKScaling(1e20), DynamicNTKScaling(1e20, 16)):
        with pytest.raises(ValueError, match=r"factor=1e\+20: it must be smaller: the stretched base=10000 would"):
            RotaryEmbedding(8, scaling=scaling)
    inv_freq, _ = RotaryEmbedding(8, 1e4, NTKScaling(1e15)).frequencies(1)
    assert torch.all(inv_freq > 0) and torch.isfinite(inv_freq).all()


@pytest.mark.parametrize("scaling", [NTKScaling(2), DynamicNTKScaling(2, 16)])
def test_one_pair_is_refused(scaling: NTKScaling | DynamicNTKScaling) -> None:
    with pytest.raises(ValueError, match="rotary_dim=2"):
        RotaryEmbedding(2, scaling=scaling)
    with pytest.raises(ValueError, match="rotary_dim=2"):
        RotaryEmbedding(8, scaling=scaling, fraction=0.25)
