"""Figures of a study of context extension: loss by position, and passkeys over length and depth."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from toolkit.scaling.extension.summary import ExtensionSummary
from toolkit.scaling.extension.table import AS_IS, TUNED
from toolkit.scaling.figures import COLOURS, MARKERS, blank_figure

STAGES = (AS_IS, TUNED)
_SMALL = {"fontsize": 9}


def draw_positions(summary: ExtensionSummary, tuned_at: int | None = None) -> Figure:
    """Loss by position in the longest context, a line for each method: as is, and after the fine-tune.

    Args:
        summary: of the study.
        tuned_at: context of the fine-tune, marked.
    """
    figure = blank_figure(9.6, 4.2)
    axes = figure.subplots(1, 2, sharey=True)
    longest, trained = summary.lengths[-1], summary.lengths[0]
    for axis, stage in zip(axes, STAGES, strict=True):
        for method, colour, marker in zip(summary.methods, COLOURS, MARKERS, strict=False):
            buckets = summary.by_position(method, stage, longest)
            middle = [(low + high) / 2 for low, high, _ in buckets]
            axis.plot(middle, [loss for *_, loss in buckets], color=colour, marker=marker, ms=4, lw=1.3, label=method)
        axis.axvline(trained, color="0.5", lw=1, ls="--")
        if stage == TUNED and tuned_at is not None:
            axis.axvline(tuned_at, color="0.5", lw=1, ls=":")
        _length_axis(axis, summary.lengths)
        axis.set_xlabel("position in the context (tokens)", **_SMALL)
        axis.set_title(stage, fontsize=10)
        axis.grid(True, color="0.93", lw=0.7)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("bits per byte", **_SMALL)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=8)
    return figure


def draw_passkeys(summary: ExtensionSummary) -> Figure:
    """The share of whole passkeys found, over length and depth: a row of panels for each stage, a panel a method."""
    methods = summary.methods
    figure = blank_figure(1.2 + 1.55 * len(methods), 4.4)
    axes = np.atleast_2d(figure.subplots(2, len(methods), sharex=True, sharey=True, squeeze=False))
    image = None
    for stage, line in zip(STAGES, axes, strict=True):
        for method, axis in zip(methods, line, strict=True):
            depths, grid = summary.passkey_grid(method, stage)
            image = axis.imshow(grid, vmin=0, vmax=1, cmap="viridis", aspect="auto", origin="upper")
            _write_cells(axis, grid)
            axis.set_xticks(range(len(summary.lengths)), [str(length) for length in summary.lengths], rotation=90)
            axis.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths])
            axis.tick_params(labelsize=7)
            if stage == AS_IS:
                axis.set_title(method, fontsize=9)
        line[0].set_ylabel(f"{stage}\ndepth (0: start)", fontsize=8)
    figure.supxlabel("length (tokens)", fontsize=9)
    if image is not None:
        figure.colorbar(image, ax=axes, label="whole passkeys found", pad=0.01)
    return figure


def _write_cells(axis: Axes, grid: np.ndarray) -> None:
    for (row, column), value in np.ndenumerate(grid):
        if np.isfinite(value):
            colour = "black" if value > 0.6 else "white"
            axis.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=6, color=colour)


def _length_axis(axis: Axes, lengths: list[int]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(lengths)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(labelsize=8)
