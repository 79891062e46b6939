"""Envelopes of training curves against brute force over made-up runs."""

from __future__ import annotations

import numpy as np
import pytest

from toolkit.scaling.laws import LossSurface, TrainingCurve, compute_envelope

SURFACE = LossSurface(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)


def curve(params: float, points: int = 300) -> TrainingCurve:
    tokens = np.geomspace(1e8, 1e12, points)
    return TrainingCurve(params, tokens, SURFACE.loss(params, tokens))


def test_at_each_budget_the_best_of_all_runs() -> None:
    sizes = (1e7, 1e8, 1e9, 1e10)
    found = compute_envelope([curve(size) for size in sizes], bins=200, window=0.0)
    losses = SURFACE.loss(np.array(sizes)[:, None], found.flops / (6 * np.array(sizes)[:, None]))
    spent = found.flops / (6 * np.array(sizes)[:, None])
    losses[(spent < 1e8 * (1 - 1e-9)) | (spent > 1e12 * (1 + 1e-9))] = np.inf
    inner = slice(1, -1)  # the outermost bins are the first and last point, where rounding decides
    np.testing.assert_allclose(found.params[inner], np.array(sizes)[losses.argmin(axis=0)][inner])
    np.testing.assert_allclose(found.loss[inner], losses.min(axis=0)[inner], rtol=1e-4)
    np.testing.assert_allclose(found.tokens, found.flops / (6 * found.params))


def test_enclosed_means_that_both_neighbours_were_measured() -> None:
    found = compute_envelope([curve(size) for size in (1e7, 1e8, 1e9, 1e10)], bins=200)
    at = found.enclosed
    assert at.any()
    assert set(found.params[at]) <= {1e8, 1e9}
    for column in np.flatnonzero(at):
        for factor in (0.1, 10.0):
            spent = found.flops[column] / (6 * found.params[column] * factor)
            assert 1e8 * (1 - 1e-9) <= spent <= 1e12 * (1 + 1e-9)


def test_smoothing_takes_the_mean_over_a_window_that_grows() -> None:
    tokens, loss = np.arange(1.0, 101.0), np.random.default_rng(0).uniform(2, 3, 100)
    smoothed = TrainingCurve(1e6, tokens, loss).smoothed(0.1)
    for at in (0, 30, 49, 99):
        near = np.abs(tokens - tokens[at]) <= 0.1 * tokens[at] + 1e-12
        assert smoothed[at] == pytest.approx(loss[near].mean())


def test_of_two_runs_of_one_size_the_better_counts() -> None:
    good = curve(1e8)
    worse = TrainingCurve(1e8, good.tokens, good.loss + 0.5)
    both = compute_envelope([curve(1e7), worse, good, curve(1e9)], bins=50)
    alone = compute_envelope([curve(1e7), good, curve(1e9)], bins=50)
    np.testing.assert_array_equal(both.loss, alone.loss)


def test_a_curve_of_lists_is_one_of_arrays() -> None:
    lists = TrainingCurve(1e8, [1e8, 2e8, 4e8], [3.0, 2.9, 2.8])  # type: ignore[arg-type]
    arrays = TrainingCurve(1e8, np.array([1e8, 2e8, 4e8]), np.array([3.0, 2.9, 2.8]))
    np.testing.assert_array_equal(lists.flops, arrays.flops)
    np.testing.assert_array_equal(lists.smoothed(0.5), arrays.smoothed(0.5))


def test_bad_input_is_named() -> None:
    tokens = np.array([1.0, 2.0])
    for arguments, match in (
        ((tokens, np.array([1.0])), "loss.shape"),
        ((tokens[::-1], tokens), r"tokens\[1\]=1.0: it must be above tokens\[0\]=2"),
        ((tokens, np.array([1.0, np.nan])), r"loss\[1\]=nan"),
        ((tokens[None], tokens[None]), "tokens.shape"),
        ((tokens[:1], tokens[:1]), "tokens=1"),
    ):
        with pytest.raises(ValueError, match=match):
            TrainingCurve(1.0, *arguments)
    for params, per_token, match in (
        (0.0, None, "params=0.0"),
        (-1.0, 6.0, "params=-1"),
        (1.0, 0.0, "flops_per_token=0"),
    ):
        with pytest.raises(ValueError, match=match):
            TrainingCurve(params, tokens, tokens, per_token)
    with pytest.raises(ValueError, match="curves='2 sizes'"):
        compute_envelope([curve(1e7), curve(1e8)])
    for settings, match in (({"bins": 1}, "bins=1"), ({"window": 1.0}, "window=1.0")):
        with pytest.raises(ValueError, match=match):
            compute_envelope([curve(1e7), curve(1e8), curve(1e9)], **settings)
