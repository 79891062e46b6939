"""The figure of a study of reach: accuracy against distance, a panel for each pattern."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from toolkit.checks import require
from toolkit.scaling.figures import COLOURS, ReportFigure, blank_figure, save_figure
from toolkit.scaling.reach.arms import Reach
from toolkit.scaling.reach.table import ReachRow

COLUMNS = 3
_LINE, _CUT, _CHANCE = COLOURS[:3]


def plot_reach(
    rows: Sequence[ReachRow], reached: dict[str, Reach], chance: float, nearest: int, path: Path
) -> ReportFigure:
    """Draw each pattern's accuracy by distance, and what its masks let it know.

    Args:
        rows: of the study.
        reached: by arm, in the order of the panels; arms without rows are left out.
        chance: of the task.
        nearest: the shortest distance trained on, where the axis begins.
        path: of the PNG.

    Raises:
        ValueError: if there are no rows.
    """
    arms = [arm for arm in reached if any(row.pattern == arm for row in rows)]
    require(bool(arms), "rows", len(rows), "at least one run's")
    lines = math.ceil(len(arms) / COLUMNS)
    figure = blank_figure(8.4, 0.5 + 2.1 * lines)
    axes = figure.subplots(lines, min(COLUMNS, len(arms)), sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat[len(arms) :]:
        axis.set_visible(False)
    for axis, arm in zip(axes.flat, arms, strict=False):
        _panel(axis, [row for row in rows if row.pattern == arm], reached[arm], chance, nearest)
        axis.set_title(arm, fontsize=9)
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy", fontsize=8)
    for axis in axes.flat[max(0, len(arms) - axes.shape[1]) : len(arms)]:
        axis.set_xlabel("distance (tokens)", fontsize=8)
        axis.tick_params(labelbottom=True)
    caption = (
        "Accuracy against the distance between the pair and the question: thin lines are runs, one for each seed, the "
        "thick one their mean. Grey: distances at which no path leads from the pair to the question. Upright: the cut, "
        "the longest distance up to which all are reached; dashed, where keys are chosen by content, the cut whatever "
        "is chosen. Dotted: chance."
    )
    return save_figure(figure, path, caption)


def _panel(axis: Axes, rows: Sequence[ReachRow], reached: Reach, chance: float, nearest: int) -> None:
    last = len(reached.possible) - 1
    for distance in range(nearest, last + 1):
        if not reached.possible[distance]:
            axis.axvspan(distance - 0.5, distance + 0.5, color="0.9", lw=0)
    if reached.certain_cut < reached.cut:
        axis.axvline(reached.certain_cut + 0.5, color=_CUT, lw=1.2, ls="--")
    if reached.cut < last:
        axis.axvline(reached.cut + 0.5, color=_CUT, lw=1.2)
    axis.axhline(chance, color=_CHANCE, lw=1, ls=":")
    distances = sorted({row.distance for row in rows})
    curves = []
    for seed in sorted({row.seed for row in rows}):
        accuracy = {row.distance: row.accuracy for row in rows if row.seed == seed}
        curves.append([accuracy[distance] for distance in distances])
        axis.plot(distances, curves[-1], color=_LINE, lw=0.7, alpha=0.5)
    axis.plot(distances, np.mean(curves, axis=0), color=_LINE, marker="o", ms=3, lw=1.6)
    axis.set_xlim(nearest - 1, last + 1)
    axis.set_ylim(-0.03, 1.05)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=7)
