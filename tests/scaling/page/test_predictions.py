"""Predictions stand at what was measured with their bars; reach is the mean over seeds."""

from __future__ import annotations

import numpy as np
import pytest

from toolkit.scaling.figures.predictions import Prediction
from toolkit.scaling.page.predictions import predicted_against_measured, reach
from toolkit.scaling.reach.table import ReachRow


def row(pattern: str, seed: int, distance: int, accuracy: float, reached: bool = True) -> ReachRow:
    return ReachRow(pattern, seed, distance, accuracy, 400, reached, reached, True, 100, 1e9, 1.0, 2.0)


def test_predicted_against_measured() -> None:
    made = [Prediction("run0", "dense", 2.0, 2.1, 1.9, 2.2), Prediction("run1", "moe", 1.8, 1.9)]
    diagonal, dense, moe = predicted_against_measured(made).data
    assert list(diagonal.x) == list(diagonal.y) == [1.8, 2.2]
    assert (dense.x[0], dense.y[0]) == (2.1, 2.0)
    np.testing.assert_allclose([dense.error_y.array[0], dense.error_y.arrayminus[0]], [0.2, 0.1])
    assert (moe.error_y.array[0], moe.error_y.arrayminus[0]) == (0, 0)


def test_reach_is_the_mean_over_seeds() -> None:
    rows = [row("full", seed, distance, accuracy) for seed, distance, accuracy in ((0, 9, 0.9), (1, 9, 0.7), (0, 3, 1))]
    rows += [row("sliding", 0, 3, 1.0), row("sliding", 0, 9, 0.1, reached=False)]
    full, sliding = reach(rows, chance=0.1).data
    assert list(full.x) == [3, 9]
    np.testing.assert_allclose(full.y, [1, 0.8])
    assert list(sliding.marker.symbol) == ["circle", "circle-open"]


def test_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="predictions"):
        predicted_against_measured([])
    with pytest.raises(ValueError, match="rows"):
        reach([])
