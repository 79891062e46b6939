"""Figures of a study of routing: losses with their intervals, and balance over the schedule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from toolkit.checks import require
from toolkit.scaling.comparison import ArmResult
from toolkit.scaling.figures import COLOURS, MARKERS, ReportFigure, blank_figure, save_figure

_PLAIN, _BASELINE = COLOURS[:2]


def plot_losses(arms: Sequence[ArmResult], baseline: str, path: Path) -> ReportFigure:
    """Draw bits per byte of each arm, best at the top: runs, their mean and its 95% interval.

    Raises:
        ValueError: if there is no arm.
    """
    require(bool(arms), "arms", arms, "at least one with finished runs")
    ranked = sorted(arms, key=lambda arm: -arm.loss.value)
    figure = blank_figure(7.2, 1.2 + 0.26 * len(ranked))
    axis = figure.subplots()
    for place, arm in enumerate(ranked):
        colour = _BASELINE if arm.family == baseline else _PLAIN
        losses = [row.bits_per_byte for row in arm.rows]
        axis.plot(losses, [place] * len(losses), "o", color=colour, ms=3, mew=0, alpha=0.5)
        axis.errorbar(arm.loss.value, place, xerr=arm.loss.half, fmt="D", color=colour, ms=5, mfc="white", capsize=3)
        if arm.family == baseline:
            axis.axvline(arm.loss.value, color=_BASELINE, lw=0.8, ls=":")
    axis.set_yticks(range(len(ranked)), [arm.family for arm in ranked], fontsize=8)
    axis.set_xlabel("validation loss (bits per byte)", fontsize=9)
    axis.grid(True, axis="x", color="0.9", lw=0.7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    caption = (
        "Bits per byte of every arm that is causal in evaluation: points are runs, one for each seed, diamonds their "
        f"mean with its 95% interval; `{baseline}` dotted. Differences by seed, in the table, are sharper than these "
        f"intervals. Runs: {run_names(arms)}."
    )
    return save_figure(figure, path, caption)


def plot_balance(arms: Sequence[ArmResult], path: Path) -> ReportFigure:
    """Draw MaxVio over the schedule, a line for each arm: mean over its layers and seeds.

    Raises:
        ValueError: if there is no arm, or more than the figure has colours for.
    """
    require(0 < len(arms) <= len(COLOURS), "arms", len(arms), f"1 to {len(COLOURS)} arms with a router")
    figure = blank_figure(7.2, 3.8)
    axis = figure.subplots()
    for arm, colour, marker in zip(arms, COLOURS, MARKERS, strict=False):
        curves = [course.curves["max_violation"] for _, course in arm.courses]
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        share = np.array(steps) / arm.rows[0].steps
        mean = np.mean([[curve[step] for step in steps] for curve in curves], axis=0)
        axis.plot(share, mean, color=colour, marker=marker, ms=4, markevery=0.1, lw=1.3, label=arm.family)
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("share of the schedule", fontsize=9)
    axis.set_ylabel("MaxVio of the batch", fontsize=9)
    axis.grid(True, which="both", color="0.93", lw=0.7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    caption = (
        "MaxVio of one batch (the busiest expert's load over the mean load, less 1) over the schedule, mean over "
        f"layers and seeds. Runs: {run_names(arms)}."
    )
    return save_figure(figure, path, caption)


def run_names(arms: Sequence[ArmResult]) -> str:
    """Every run of the arms: the name of each arm's first, and its further seeds."""
    return "; ".join(f"`{arm.rows[0].run}`" + "".join(f", {row.seed}" for row in arm.rows[1:]) for arm in arms)
