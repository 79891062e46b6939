"""The figures of equal compute: isoFLOP curves, and the best loss against compute and against seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator

from toolkit.checks import require
from toolkit.scaling.figures.style import (
    draw_legend,
    family_looks,
    flops_text,
    panels,
    plain_ticks,
    run_names,
    save_figure,
)
from toolkit.scaling.laws.isoflop import Array, Cell, IsoFLOPMinimum, cells_of, isoflop_minima
from toolkit.scaling.multiplier import ComputeMultiplier, Estimate, frontiers
from toolkit.scaling.report_figure import ReportFigure
from toolkit.scaling.results import RunResult

_STYLE: dict[str, Any] = {"fontsize": 9}


def plot_isoflop(rows: Sequence[RunResult], path: Path) -> ReportFigure:
    """Draw loss against active parameters, a panel for each budget: runs, cell means, parabola, minimum.

    Raises:
        ValueError: no rows, or a loss that is not finite.
    """
    minima, cells = _analysed(rows)
    looks = family_looks(cell.family for cell in cells)
    budgets = sorted({minimum.budget for minimum in minima})
    figure, axes = panels(len(budgets), width=3.4, height=3.6)
    for axis, budget in zip(axes, budgets, strict=True):
        axis.set_title(f"{flops_text(budget)} FLOPs", fontsize=10)
        axis.set_xscale("log")
        for family, (colour, marker) in looks.items():
            members = [cell for cell in cells if (cell.family, cell.budget) == (family, budget)]
            runs = [row for row in rows if (row.family, row.budget) == (family, budget)]
            for minimum in minima:
                if (minimum.family, minimum.budget) == (family, budget):
                    _draw_curve(axis, runs, members, minimum, (colour, marker))
        plain_ticks(axis)
        axis.set_xlabel("active parameters", **_STYLE)
    axes[0].set_ylabel("validation loss (bits per byte)", **_STYLE)
    draw_legend(figure, looks, extra=[("*", "minimum of the curve")])
    caption = (
        "IsoFLOP curves: all runs of the table. Small filled points are runs, one for each seed, hollow ones "
        "their means; the line is the parabola through the means, the star the minimum taken from it (or "
        "the best mean, where the parabola has no minimum within the sizes)."
    )
    return save_figure(figure, path, caption, run_names(rows))


def plot_frontier(rows: Sequence[RunResult], path: Path, multipliers: Sequence[ComputeMultiplier] = ()) -> ReportFigure:
    """Draw the best loss against compute (left) and against seconds (right), a line for each family.

    Each of ``multipliers`` is drawn as a dotted line from the sparse family's best to the baseline's
    cost of the same loss.

    Raises:
        ValueError: no rows, or a loss that is not finite.
    """
    minima, cells = _analysed(rows)
    looks = family_looks(cell.family for cell in cells)
    figure, (by_flops, by_seconds) = panels(2, width=4.2, height=3.8)
    by_flops.set_xscale("log")
    by_seconds.set_xscale("log")
    for family, (colour, marker) in looks.items():
        members = [cell for cell in cells if cell.family == family]
        best = [minimum for minimum in minima if minimum.family == family]
        look: dict[str, Any] = {"color": colour, "marker": marker}
        by_flops.plot([point.budget for point in best], [point.loss for point in best], ms=6, lw=1.6, **look)
        points = [cell.seconds for cell in members], [cell.loss for cell in members]
        by_seconds.plot(*points, ls="none", ms=5, alpha=0.5, mew=0, **look)
        by_seconds.plot(*hull_line(members), color=colour, lw=1.6)
    for multiplier in multipliers:
        colour = looks[multiplier.family][0]
        _draw_multiplier(by_flops, multiplier.budget, multiplier.loss, multiplier.equal_flops, colour)
        reached = multiplier.seconds, multiplier.loss_at_seconds
        _draw_multiplier(by_seconds, *reached, multiplier.equal_seconds, colour)
    by_flops.set_xlabel("training compute (FLOPs)", **_STYLE)
    by_seconds.set_xlabel("training time on this machine (s)", **_STYLE)
    by_flops.set_ylabel("validation loss (bits per byte)", **_STYLE)
    for axis, title in ((by_flops, "equal FLOPs"), (by_seconds, "equal seconds")):
        axis.set_title(title, fontsize=10)
        plain_ticks(axis)
    budgets = sorted({minimum.budget for minimum in minima})
    by_flops.xaxis.set_major_locator(FixedLocator(budgets))
    draw_legend(figure, looks)
    caption = (
        "Best loss against compute and against time: all runs of the table. Left, the minimum of each "
        "isoFLOP curve. Right, every size and budget (mean over seeds) and, as a line, the best that the "
        "family reaches in a given time (lower convex hull in log loss and log seconds)."
        + (" Dotted: from a family's best to the dense cost of the same loss." if multipliers else "")
    )
    return save_figure(figure, path, caption, run_names(rows))


def _analysed(rows: Sequence[RunResult]) -> tuple[list[IsoFLOPMinimum], list[Cell]]:
    require(bool(rows), "rows", rows, "at least one finished run")
    return isoflop_minima(rows), cells_of(rows)


def _draw_curve(
    axis: Axes,
    runs: Sequence[RunResult],
    cells: Sequence[Cell],
    minimum: IsoFLOPMinimum,
    colour_marker: tuple[str, str],
) -> None:
    """Draw one family at one budget into a panel."""
    colour, marker = colour_marker
    look: dict[str, Any] = {"color": colour, "marker": marker, "ls": "none"}
    sizes = np.array([cell.size for cell in cells], dtype=np.float64)
    axis.plot(sizes, [cell.loss for cell in cells], ms=7, mfc="white", mew=1.2, zorder=3, **look)
    points = [row.active_parameters for row in runs], [row.bits_per_byte for row in runs]
    axis.plot(*points, ms=3, mew=0, zorder=4, **look)
    if minimum.coefficients is not None:
        x = np.linspace(np.log(sizes[0]), np.log(sizes[-1]), 100)
        style = "-" if minimum.method == "parabola" else ":"
        axis.plot(np.exp(x), np.polyval(minimum.coefficients, x), style, color=colour, lw=1.3)
    axis.plot(minimum.size, minimum.loss, "*", color=colour, ms=12, mec="black", mew=0.7, zorder=6)


def hull_line(cells: list[Cell]) -> tuple[Array, Array]:
    """Seconds and loss (points,) along the hull of one family's cells."""
    frontier = frontiers(cells).seconds
    lowest = frontier.cost[frontier.loss[0].argmin()]  # more time reached nothing better
    cost = np.linspace(frontier.cost.min(), lowest, 400)
    loss = [float(frontier.loss_reached(np.array([at]))[0]) for at in cost]
    return np.exp(cost), np.exp(loss)


def _draw_multiplier(axis: Axes, cost: float, loss: float, estimate: Estimate, colour: str) -> None:
    """Mark one multiplier; one that is not finite has no place on the axis."""
    if not 0 < estimate.value < np.inf:
        return
    end = cost * estimate.value
    axis.plot([cost, end], [loss, loss], ":", color=colour, lw=1.4, zorder=1)
    axis.plot(end, loss, "|", color=colour, ms=8, mew=1.4)
    right = estimate.value >= 1
    axis.annotate(
        f"{estimate.value:.2g}\N{MULTIPLICATION SIGN}",
        (end, loss),
        xytext=(4 if right else -4, 0),
        textcoords="offset points",
        ha="left" if right else "right",
        va="center",
        fontsize=8,
        color=colour,
    )
