"""What the report's figures share: a family's look, panels on the Agg canvas, ticks, one legend, one way to save.

One family has one colour (Okabe and Ito's colour-blind-safe set) and one marker in every figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from toolkit.scaling.report_figure import ReportFigure
from toolkit.scaling.results import RunResult

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def family_looks(families: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each family, in the order of the families' names: the same in every figure."""
    count = len(COLOURS)
    return {name: (COLOURS[at % count], MARKERS[at % count]) for at, name in enumerate(sorted(set(families)))}


def blank_figure(width: float, height: float) -> Figure:
    """A figure on the Agg canvas: no display, no pyplot state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Panels side by side that share the loss axis."""
    figure = blank_figure(max(width * count, 4.5), height)
    axes = list(np.atleast_1d(figure.subplots(1, count, sharey=True)))
    for axis in axes:
        axis.grid(True, which="major", color="0.9", lw=0.7)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    return figure, axes


def plain_ticks(axis: Axes) -> None:
    """Label a log axis at 1, 2 and 5 where it spans little, so that it never has a lone tick."""
    low, high = axis.dataLim.intervalx
    if high / low < 1.001:  # one point has no extent to fill the axis with
        axis.update_datalim([(low / 2, 0), (high * 2, 0)], updatey=False)
    if high / low > 1e3:
        return
    steps = (1.0, 2.0, 5.0) if high / low > 12 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    axis.xaxis.set_major_locator(LogLocator(10, subs=steps))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())


def tick_text(value: float) -> str:
    """Short tick text: 50k, 1.5M, 3e11."""
    for limit, unit in ((1e9, ""), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return flops_text(value) if not unit else f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def flops_text(value: float) -> str:
    """3e9 rather than 3e+09."""
    mantissa, mark, exponent = f"{value:.3g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if mark else mantissa


def draw_legend(figure: Figure, looks: Mapping[str, tuple[str, str]], extra: Sequence[tuple[str, str]] = ()) -> None:
    """One legend for all panels, above them."""
    axis = figure.axes[0]
    handles = [
        axis.plot([], [], color=colour, marker=marker, ms=5, lw=1.6, label=family)[0]
        for family, (colour, marker) in looks.items()
    ]
    handles += [axis.plot([], [], marker, color="white", mec="black", ms=10, label=label)[0] for marker, label in extra]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=9)


def run_names(rows: Sequence[RunResult]) -> list[str]:
    """Names of the runs, in the order of the table."""
    return [row.run for row in rows]


def save_figure(figure: Figure, path: Path, caption: str, runs: Iterable[str] = ()) -> ReportFigure:
    """Write the PNG of the ``runs``, its folder made if absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, format="png")
    return ReportFigure(path, caption, runs=tuple(runs))
