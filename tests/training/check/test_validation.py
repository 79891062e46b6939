"""The noise of validation, in closed form: what seeds make of it, what the windows, and what that allows to find."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from toolkit.training.check import Validation, check_validation, window_variance


def validation(bits: float, step: int = 100, windows: int = 8) -> Validation:
    """All windows alike."""
    return Validation(step, np.full(windows, 10 * bits * math.log(2)), np.full(windows, 10.0))


def courses(*scatter: float) -> list[list[Validation]]:
    """Three trials whose standard deviations are these, after 25, 50 and 100 steps or the last of them."""
    steps = (25, 50, 100)[-len(scatter) :]
    return [[validation(1 + k * sd, step) for sd, step in zip(scatter, steps, strict=True)] for k in (-1, 0, 1)]


def test_noise_beside_the_effect_sought() -> None:
    """t of 2 degrees of freedom is 4.3027 (any table); sd 0.01, two runs of each kind: 4.3027 x 0.01 x 1."""
    trials = courses(0.01)
    assert [check_validation(trials, effect, 2).status for effect in (0.05, 0.03, 0.01)] == ["pass", "warn", "fail"]
    assert "difference of 0.0430" in check_validation(trials, 0.01, 2).figure
    assert "difference of 0.0215" in check_validation(trials, 0.01, 8).figure
    broken = [*trials, [validation(math.nan)]]
    assert check_validation(broken, 1.0, 2).status == "fail"


def test_scatter_that_still_falls_is_an_upper_bound() -> None:
    """It warns where it would fail, but not if the run is no longer than the trials or the scatter does not fall."""
    falling, steady = courses(0.04, 0.02, 0.01), courses(0.01, 0.02, 0.01)
    found = check_validation(falling, 0.01, 2, 1000)
    assert found.status == "warn"
    assert "0.0400 after 25, 0.0200 after 50" in found.figure
    assert "after 100 of 1,000 steps" in found.figure
    assert "a difference of 0.0430 is found at most" in found.figure
    assert check_validation(falling, 0.05, 2, 1000).status == "pass"
    assert check_validation(falling, 0.01, 2, 100).status == "fail"
    assert check_validation(falling, 0.01, 2).status == "fail"
    assert check_validation(steady, 0.01, 2, 1000).status == "fail"


def made(seeds: float, windows: float, count: int, trials: int = 8) -> list[Validation]:
    """Bits per byte = 2 + the window's difficulty + the seed's shift + noise of one seed on one window."""
    rng = np.random.default_rng(0)
    bits = 2 + rng.normal(0, 1, count) + rng.normal(0, seeds, (trials, 1)) + rng.normal(0, windows, (trials, count))
    return [Validation(9, each * 100 * math.log(2), np.full(count, 100.0)) for each in bits]


@pytest.mark.parametrize("count", [64, 256])
def test_the_windows_part_is_the_noise_within_pairs_over_their_number(count: int) -> None:
    """sd^2 / windows; neither what all seeds share of a window nor what all windows share of a seed is in it."""
    for seeds in (0.0, 0.5):
        assert window_variance(made(seeds, 0.3, count)) == pytest.approx(0.3**2 / count, rel=0.15)
    assert window_variance(made(0.5, 0.0, count)) == pytest.approx(0, abs=1e-20)


def test_the_finding_says_whose_noise_dominates() -> None:
    few, many = (check_validation([[each] for each in made(0.02, 0.3, count)], 0.1, 4) for count in (16, 4096))
    assert "that of 16 windows, which dominate: take more of them" in few.figure
    assert "so seeds dominate" in many.figure


def test_windows_that_alone_are_too_few_fail_however_the_scatter_falls() -> None:
    last = made(0.0, 1.0, 16)
    earlier = [replace(each, step=4, nll=each.nll + k * 50) for k, each in enumerate(last)]
    falling: Sequence[Any] = list(zip(earlier, last, strict=True))
    assert check_validation(falling, 0.01, 4, 1000).status == "fail"


def test_one_trial_tells_nothing() -> None:
    with pytest.raises(ValueError, match="courses=1: it must be of two trials"):
        check_validation([[validation(1.0)]], 0.1, 2)
    with pytest.raises(ValueError, match="of one validation at least"):
        check_validation([[], []], 0.1, 2)
