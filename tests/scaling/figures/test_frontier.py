"""The figures are whole PNG files, hold what the table holds, and need no display."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from png import check, pixels
from synthetic_study import run_result, study

from toolkit.scaling.figures import plot_frontier, plot_isoflop
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
