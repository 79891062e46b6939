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


@st.composite
def two_lengths(draw: st.DrawFn) -> tuple[TrainingConfig, TrainingConfig]:
    """WSD runs of one warmup in steps, the second at least as long."""
    warmup, share = draw(st.integers(0, 50)), draw(st.floats(0, 0.9))
    least = math.ceil((warmup + 1) / (1 - share))
    lengths = sorted(draw(st.tuples(st.integers(least, 900), st.integers(least, 900))))
    settings = {"schedule": "wsd", "warmup_steps": warmup, "decay_share": share, "final_share": draw(st.floats(0, 1))}
    short, long = (TrainingConfig(steps=steps, **settings) for steps in lengths)
    return short, long


@given(two_lengths())
def test_with_the_warmup_in_steps_a_run_is_a_longer_one_until_it_decays(
    runs: tuple[TrainingConfig, TrainingConfig],
) -> None:
    short, long = runs
    assert short.until_decay == long.until_decay
    assert short.decay_start <= long.decay_start
    shared = range(short.decay_start + 1)  # at its start the decay has not lowered the rate yet
    assert [learning_rate_factor(step, short) for step in shared] == [
        learning_rate_factor(step, long) for step in shared
    ]


@given(two_lengths())
def test_it_is_continuous_where_its_parts_meet(runs: tuple[TrainingConfig, TrainingConfig]) -> None:
    """Extended to any real step, either side's line gives the peak at both seams, and the stable part is flat."""
    config, _ = runs
    start = config.decay_start
    assert {learning_rate_factor(step, config) for step in range(max(config.warmup - 1, 0), start + 1)} == {1.0}
    if config.warmup > 1:
        before = learning_rate_factor(config.warmup - 2, config)
        assert 1.0 - before == pytest.approx(1 / config.warmup)
    if config.decay:
        after = learning_rate_factor(start + 1, config)
        assert 1.0 - after == pytest.approx((1 - config.final_share) / config.decay)


def test_without_warmup_it_starts_at_the_peak() -> None:
    assert learning_rate_factor(0, TrainingConfig(steps=10, warmup_share=0.0)) == 1.0
