"""Predictions are drawn with their intervals and name what they are of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from png import check, pixels

from toolkit.scaling.figures.predictions import Prediction, plot_predictions

MADE = [Prediction("run0", "dense", 2.0, 2.1, 1.9, 2.2), Prediction("run1", "moe", 1.8, 1.9)]


def test_predictions(tmp_path: Path) -> None:
    figure = plot_predictions(MADE, tmp_path / "p.png")
    check(figure)
    assert figure.runs == ("run0", "run1")
    bare = plot_predictions([replace(MADE[0], low=None, high=None), MADE[1]], tmp_path / "bare.png")
    assert pixels(figure.path).tobytes() != pixels(bare.path).tobytes()


def test_without_an_interval_it_is_the_prediction() -> None:
    assert [one.interval for one in MADE] == [(1.9, 2.2), (1.8, 1.8)]


def test_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="predictions"):
        plot_predictions([], tmp_path / "p.png")
