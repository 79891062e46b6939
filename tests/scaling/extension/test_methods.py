"""The methods of extension: what their rules make of frequencies, and that configs carry them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toolkit.layers.rotary import (
    DynamicNTKScaling,
    LinearScaling,
    Llama3Scaling,
    LongRoPEScaling,
    NTKScaling,
    RotaryEmbedding,
    YaRNScaling,
    parse_scaling,
)
from toolkit.models import AttentionConfig
from toolkit.scaling.extension.methods import METHODS, NAMES, Method, Stretch, longrope_factors, methods_named

STRETCH = Stretch(length=128, factor=16.0, rotary_dim=32, base=10_000.0)
STRETCHES = st.builds(
    Stretch,
    length=st.integers(32, 4096),
    factor=st.floats(1, 64),
    rotary_dim=st.integers(2, 32).map(lambda pairs: 2 * pairs),
    base=st.floats(500, 1e6),
)


def embedding(method: Method, stretch: Stretch) -> RotaryEmbedding:
    return RotaryEmbedding(stretch.rotary_dim, stretch.base, method.scaling(stretch))


def test_every_scaling_that_extends_is_among_them() -> None:
    kinds = {type(method.scaling(STRETCH)) for method in METHODS}
    extending = {LinearScaling, NTKScaling, DynamicNTKScaling, YaRNScaling, Llama3Scaling, LongRoPEScaling}
    assert kinds == extending | {type(None)}
    assert len(set(NAMES)) == len(METHODS)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@given(stretch=STRETCHES)
def test_a_config_carries_it_as_text(method: Method, stretch: Stretch) -> None:
    text = method.text(stretch)
    assert AttentionConfig(rope_scaling=text).rope_scaling == text
    assert (None if text is None else parse_scaling(text)) == method.scaling(stretch)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_none_turns_faster_and_the_fixed_ones_serve_the_target(method: Method) -> None:
    """At the longest context the slowest pair is slowed by the whole factor: it turns as far as it did in training."""
    unscaled, _ = RotaryEmbedding(STRETCH.rotary_dim, STRETCH.base).frequencies(1)
    slower, _ = embedding(method, STRETCH).frequencies(round(STRETCH.length * STRETCH.factor))
    assert (slower <= unscaled * (1 + 1e-6)).all()
    expected = 1.0 if method.name == "none" else STRETCH.factor
    assert float(unscaled[-1] / slower[-1]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["none", "dynamic-ntk", "longrope"])
def test_those_that_know_the_length_leave_the_frequencies_up_to_it(name: str) -> None:
    (method,) = (method for method in METHODS if method.name == name)
    unscaled, _ = RotaryEmbedding(STRETCH.rotary_dim, STRETCH.base).frequencies(1)
    torch.testing.assert_close(embedding(method, STRETCH).frequencies(STRETCH.length)[0], unscaled)


@given(stretch=STRETCHES)
def test_longrope_slows_the_pairs_that_have_not_turned_once(stretch: Stretch) -> None:
    factors = longrope_factors(stretch)
    assert len(factors) == stretch.rotary_dim // 2
    assert list(factors) == sorted(factors)
    for pair, factor in enumerate(factors):
        angle = stretch.length * stretch.base ** (-2 * pair / stretch.rotary_dim)
        if abs(angle / (2 * math.pi) - 1) > 1e-5:
            assert factor == (1 if angle > 2 * math.pi else stretch.factor)


def test_names_come_in_the_list_s_order_and_the_baseline_must_be_there() -> None:
    assert methods_named(None) == METHODS
    assert [method.name for method in methods_named(("yarn", "none"))] == ["none", "yarn"]
    with pytest.raises(ValueError, match="methods=.*with 'none' among them"):
        methods_named(("yarn",))
    with pytest.raises(ValueError, match="methods='jarn': it must be one of 'none', 'linear'"):
        methods_named(("none", "jarn"))
    with pytest.raises(ValueError, match="named once each"):
        methods_named(("none", "none"))
