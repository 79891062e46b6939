"""Curves over training are whole pictures that name their runs, and a family keeps its colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from png import check, pixels

from toolkit.scaling.figures.course import plot_balance_over_time, plot_expert_load, plot_training
from toolkit.scaling.run_records import BalanceCurve, LossCurve

FLOPS = np.geomspace(1e9, 1e11, 20)
LOSSES = [
    LossCurve("a", "dense", 1e11, FLOPS, FLOPS**-0.1, FLOPS[9::10], FLOPS[9::10] ** -0.05),
    LossCurve("b", "moe", 1e12, 2 * FLOPS, FLOPS**-0.11, FLOPS[19:], FLOPS[19:] ** -0.06),
]
SHARE = np.linspace(0, 1, 20)
BALANCE = [BalanceCurve("b", "moe", SHARE, 1 - SHARE / 2, 0.9 + SHARE / 20)]


def test_training(tmp_path: Path) -> None:
    figure = plot_training(LOSSES, tmp_path / "training.png")
    check(figure)
    assert figure.runs == ("a", "b")


def test_balance_in_the_colours_of_the_study(tmp_path: Path) -> None:
    """With "dense" before it, "moe" has the second colour."""
    alone = plot_balance_over_time(BALANCE, tmp_path / "alone.png")
    among = plot_balance_over_time(BALANCE, tmp_path / "among.png", ["dense", "moe"])
    check(alone)
    check(among)
    assert alone.runs == among.runs == ("b",)
    assert pixels(alone.path).tobytes() != pixels(among.path).tobytes()


def test_no_curves_are_refused(tmp_path: Path) -> None:
    for plot in (plot_training, plot_balance_over_time):
        with pytest.raises(ValueError, match="curves"):
            plot([], tmp_path / "figure.png")


def shares(records: int, experts: int) -> np.ndarray:
    return np.random.default_rng(0).dirichlet(np.ones(experts), size=records)


def test_expert_load(tmp_path: Path) -> None:
    load = {"layers.0": shares(30, 8), "layers.1": shares(30, 4)}
    figure = plot_expert_load(load, np.arange(30) ** 2, tmp_path / "load.png", "moe-seed0")
    check(figure)
    assert "moe-seed0" in figure.caption
    assert figure.runs == ("moe-seed0",)


@pytest.mark.parametrize(
    ("load", "message"),
    [
        ({}, "at least one layer"),
        ({"a": shares(29, 8)}, r"load\['a'\]\.shape=\(29, 8\)"),
        ({"a": shares(30, 8)[0]}, "shape"),
        ({"a": 2 * shares(30, 8)}, "sum to 1"),
    ],
)
def test_bad_load_is_refused(tmp_path: Path, load: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot_expert_load(load, np.arange(30), tmp_path / "load.png", "run")
