"""What the learning rate does over a run: up, along, down, and never above its peak."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.training import TrainingConfig, learning_rate_factor


@st.composite
def configs(draw: st.DrawFn) -> TrainingConfig:
    warmup_share = draw(st.floats(0, 1))
    return TrainingConfig(
        steps=draw(st.integers(1, 400)),
        schedule=draw(st.sampled_from(["cosine", "wsd"])),
        warmup_share=warmup_share,
        decay_share=draw(st.floats(0, 1 - warmup_share)),
        final_share=draw(st.floats(0, 1)),
    )


@given(configs())
def test_it_stays_between_0_and_1_and_moves_no_faster_than_its_ramps(config: TrainingConfig) -> None:
    factors = [learning_rate_factor(step, config) for step in range(config.steps + 1)]
    assert all(0 <= factor <= 1 for factor in factors)
    warmup = round(config.warmup_share * config.steps)
    decay = round(config.decay_share * config.steps) if config.schedule == "wsd" else config.steps - warmup
    steepest = max(1 / max(warmup, 1), math.pi / 2 / max(decay, 1))
    assert all(abs(b - a) <= steepest + 1e-12 for a, b in pairwise(factors))
    rising, falling = factors[: max(warmup, 1)], factors[max(warmup - 1, 0) :]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)


@given(configs())
def test_warmup_reaches_the_peak_in_equal_steps(config: TrainingConfig) -> None:
    warmup = round(config.warmup_share * config.steps)
    for step in range(warmup):
        assert learning_rate_factor(step, config) == pytest.approx((step + 1) / warmup)
    if warmup:
        assert learning_rate_factor(warmup - 1, config) == 1.0


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
@pytest.mark.parametrize("final_share", [0.0, 0.1, 1.0])
def test_the_end_is_the_final_share(schedule: str, final_share: float) -> None:
    config = TrainingConfig(steps=200, schedule=schedule, final_share=final_share)
    assert learning_rate_factor(200, config) == pytest.approx(final_share)
    # a run that goes on past its plan, by a step that rounding added, stays there
    assert learning_rate_factor(250, config) == pytest.approx(final_share)
    assert learning_rate_factor(199, config) - final_share <= 1 / 40 + 1e-9


@pytest.mark.parametrize("step", [20, 65, 110, 199])
def test_cosine_is_half_a_cosine(step: int) -> None:
    config = TrainingConfig(steps=200, warmup_share=0.1, final_share=0.2)
    angle = math.pi * (step - 20) / 180
    assert learning_rate_factor(step, config) == pytest.approx(0.2 + 0.8 * (1 + math.cos(angle)) / 2)


def test_wsd_is_flat_and_then_linear() -> None:
    config = TrainingConfig(steps=100, schedule="wsd", warmup_share=0.1, decay_share=0.2, final_share=0.5)
    assert {learning_rate_factor(step, config) for step in range(10, 81)} == {1.0}
    assert [learning_rate_factor(80 + i, config) for i in range(21)] == pytest.approx([1 - i / 40 for i in range(21)])


def test_without_warmup_it_starts_at_the_peak() -> None:
    assert learning_rate_factor(0, TrainingConfig(steps=10, warmup_share=0.0)) == 1.0
