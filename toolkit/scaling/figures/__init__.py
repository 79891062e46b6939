"""The figures of reports as PNG files: what they share, and those of every study of equal compute."""

from toolkit.scaling.figures.frontier import hull_line, plot_frontier, plot_isoflop
from toolkit.scaling.figures.style import (
    COLOURS,
    MARKERS,
    blank_figure,
    draw_legend,
    family_looks,
    flops_text,
    panels,
    plain_ticks,
    run_names,
    save_figure,
    tick_text,
)
from toolkit.scaling.report_figure import ReportFigure

__all__ = [
    "COLOURS",
    "MARKERS",
    "ReportFigure",
    "blank_figure",
    "draw_legend",
    "family_looks",
    "flops_text",
    "hull_line",
    "panels",
    "plain_ticks",
    "plot_frontier",
    "plot_isoflop",
    "run_names",
    "save_figure",
    "tick_text",
]
