"""The figures are whole PNG files, hold what the table holds, and need no display."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from png import check, pixels
from synthetic_study import run_result, study

from toolkit.scaling.figures import flops_text, plot_expert_load, plot_frontier, plot_isoflop
from toolkit.scaling.multiplier import compute_multiplier


@pytest.mark.parametrize("plot", [plot_isoflop, plot_frontier])
@pytest.mark.parametrize(
    "grid",
    [
        {"seeds": 2, "noise": 0.01},
        {"dims": (64,)},
        {"dims": (32, 64), "dense_budgets": (1e12,), "sparse_budgets": (1e12,)},
    ],
)
def test_figures_of_a_study(tmp_path: Path, plot, grid: dict) -> None:  # type: ignore[no-untyped-def]
    figure = plot(study(**grid), tmp_path / "figures" / "figure.png")
    check(figure)
    assert "all runs of the table" in figure.caption
    assert figure.runs == tuple(row.run for row in study(**grid))


def test_frontier_marks_multipliers(tmp_path: Path) -> None:
    """Finite ones appear; one that is not finite leaves the figure as it was."""
    rows = study()
    plain = plot_frontier(rows, tmp_path / "plain.png")
    marked = plot_frontier(rows, tmp_path / "marked.png", compute_multiplier(rows, "moe"))
    check(marked)
    assert not np.array_equal(pixels(plain.path), pixels(marked.path))
    rows = [run_result("dense", 1e12, 64, 0, 2.0), run_result("moe", 1e12, 64, 0, 1.9)]
    plain = plot_frontier(rows, tmp_path / "plain.png")
    unknown = plot_frontier(rows, tmp_path / "unknown.png", compute_multiplier(rows, "moe"))
    assert np.array_equal(pixels(plain.path), pixels(unknown.path))


def test_no_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one finished run"):
        plot_isoflop([], tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())


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


@pytest.mark.parametrize(("value", "text"), [(3e11, "3e11"), (1e9, "1e9"), (1.25e10, "1.25e10"), (120.0, "120")])
def test_flops_are_written_short(value: float, text: str) -> None:
    assert flops_text(value) == text
    assert float(text) == value
