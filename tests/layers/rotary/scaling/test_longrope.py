"""LongRoPE: a factor for each frequency, and a switch that is strict."""

from __future__ import annotations

import math

import pytest
import torch

from toolkit.layers import LongRoPEScaling, RotaryEmbedding
from toolkit.layers.rotary.scaling import unscaled

SHORT, LONG = [1.0, 1.5, 2.0, 3.0], [2, 3.0, 4.0, 8.0]


@pytest.mark.parametrize(("seq_len", "factors"), [(1, SHORT), (16, SHORT), (17, LONG), (1000, LONG)])
def test_each_frequency_is_divided_by_its_factor_of_the_length(seq_len: int, factors: list[float]) -> None:
    inv_freq, attention_factor = LongRoPEScaling(SHORT, LONG, 16, 4).frequencies(8, 8, 100.0, seq_len)
    torch.testing.assert_close(inv_freq * torch.tensor(factors), unscaled(8, 100.0), rtol=1e-6, atol=0)
    assert attention_factor == pytest.approx(math.sqrt(1 + math.log(4) / math.log(16)), rel=1e-12)


def test_the_attention_factor_given_wins() -> None:
    assert LongRoPEScaling(SHORT, LONG, 16, 4, attention_factor=1).frequencies(8, 8, 100.0, 1)[1] == 1.0
    assert LongRoPEScaling(SHORT, LONG, 16, 1).frequencies(8, 8, 100.0, 1)[1] == 1.0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((3.0, LONG, 16, 4), "short_factors=3.0"),
        ((SHORT, "1234", 16, 4), "long_factors='1234'"),
        ((SHORT, [1, 2, 3, 0], 16, 4), r"long_factors=\[1, 2, 3, 0\]"),
        (([1, 2, 3, None], LONG, 16, 4), "short_factors="),
        ((SHORT, LONG, 1, 4), "original_length=1: .* 2 or more"),
        ((SHORT, LONG, None, 4), "original_length=None"),
        ((SHORT, LONG, 16, 0.5), "^factor=0.5"),
        ((SHORT, LONG, 16, None), "^factor=None"),
        ((SHORT, LONG, 16, 4, 0), "attention_factor=0"),
    ],
)
def test_bad_settings_are_named(arguments: tuple[object, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        LongRoPEScaling(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("short", "long", "fraction", "named"),
    [
        (SHORT[:3], LONG, 1.0, "short_factors=.*4 numbers.*not 3"),
        (SHORT, [*LONG, 1], 1.0, "long_factors=.*4 numbers.*not 5"),
        (SHORT, LONG, 0.5, "short_factors=.*2 numbers.*not 4"),
    ],
)
def test_lists_of_another_length_are_named(short: list[float], long: list[float], fraction: float, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        RotaryEmbedding(8, scaling=LongRoPEScaling(short, long, 16, 4), fraction=fraction)
