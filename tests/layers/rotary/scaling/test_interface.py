"""What all scalings share: they print as written, are hashable, and their laws at factor 1."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.layers import (
    DynamicNTKScaling,
    LinearScaling,
    Llama3Scaling,
    LongRoPEScaling,
    NTKScaling,
    ProportionalScaling,
    YaRNScaling,
)
from toolkit.layers.rotary.scaling import RotaryScaling, unscaled

ALL = [
    LinearScaling(2),
    NTKScaling(2.5),
    DynamicNTKScaling(2, 16),
    YaRNScaling(4, 32),
    YaRNScaling(4, 32, truncate=False, mscale=1.0, mscale_all_dim=0.5),
    LongRoPEScaling([1.0, 1.5, 2.0, 3.0], [2.0, 3.0, 4.0, 8.0], 16, 4),
    Llama3Scaling(8, 64),
    ProportionalScaling(0.5, 2.0),
]


@pytest.mark.parametrize("scaling", ALL, ids=lambda scaling: type(scaling).__name__)
def test_frequencies_are_fp32_positive_factors_of_the_unscaled_and_no_faster(scaling: RotaryScaling) -> None:
    for seq_len in (1, 16, 17, 400):
        inv_freq, factor = scaling.frequencies(8, 8, 100.0, seq_len)
        assert inv_freq.dtype == torch.float32 and inv_freq.shape == (4,)
        assert isinstance(factor, float) and factor > 0
        assert torch.all(inv_freq <= unscaled(8, 100.0) * (1 + 1e-6))


@pytest.mark.parametrize("scaling", ALL, ids=lambda scaling: type(scaling).__name__)
def test_only_those_that_say_so_depend_on_the_length(scaling: RotaryScaling) -> None:
    short, long = (scaling.frequencies(8, 8, 100.0, seq_len)[0] for seq_len in (16, 64))
    assert torch.equal(short, long) != scaling.depends_on_length
    assert scaling.depends_on_length == isinstance(scaling, DynamicNTKScaling | LongRoPEScaling)


def test_they_are_immutable_hashable_and_equal_by_value() -> None:
    assert len({*ALL, *ALL}) == len(ALL)
    assert YaRNScaling(4, 32) == YaRNScaling(4.0, 32) != YaRNScaling(4, 33)
    assert LongRoPEScaling([1], [2], 4, 2) == LongRoPEScaling((1,), (2,), 4, 2)
    with pytest.raises(AttributeError):
        ALL[0].factor = 3  # type: ignore[misc]


@settings(max_examples=60)
@given(st.integers(2, 32), st.floats(2.0, 1e7), st.integers(8, 10_000), st.integers(1, 40_000))
def test_factor_one_changes_nothing(pairs: int, base: float, original_length: int, seq_len: int) -> None:
    rotary_dim, ones = 2 * pairs, [1.0] * pairs
    unchanged = [LinearScaling(1), NTKScaling(1), YaRNScaling(1, original_length), Llama3Scaling(1, original_length)]
    unchanged += [YaRNScaling(1, original_length, truncate=False), ProportionalScaling(1)]
    unchanged += [LongRoPEScaling(ones, ones, original_length, 1)]
    if seq_len <= original_length:
        unchanged += [DynamicNTKScaling(factor, original_length) for factor in (1, 1.7, 8)]
    for scaling in unchanged:
        inv_freq, factor = scaling.frequencies(rotary_dim, rotary_dim, base, seq_len)
        assert factor == 1.0
        assert torch.equal(inv_freq, unscaled(rotary_dim, base)), scaling


def test_dynamic_stretches_beyond_the_original_length_even_at_factor_one() -> None:
    inv_freq, _ = DynamicNTKScaling(1, 16).frequencies(8, 8, 100.0, 32)
    assert torch.equal(inv_freq, NTKScaling(2).frequencies(8, 8, 100.0, 32)[0])


@pytest.mark.parametrize("kind", [LinearScaling, NTKScaling])
@pytest.mark.parametrize("factor", [0.5, 0, -2, float("nan"), float("inf"), "4", None, True, [2]])
def test_a_bad_factor_is_named(kind: type, factor: object) -> None:
    with pytest.raises(ValueError, match="factor="):
        kind(factor)


@pytest.mark.parametrize("kind", [DynamicNTKScaling, YaRNScaling, Llama3Scaling])
def test_a_bad_factor_or_original_length_is_named(kind: type) -> None:
    for factor in (0.99, "4", None):
        with pytest.raises(ValueError, match="^factor="):
            kind(factor, 32)
    for original_length in (0, -1, None, 32.0, "32", True):
        with pytest.raises(ValueError, match="^original_length="):
            kind(2, original_length)
    with pytest.raises(TypeError, match="original_length"):
        kind(2)
