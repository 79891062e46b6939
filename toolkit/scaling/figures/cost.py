"""The report's figures of what a family is worth and what it takes: multipliers, loss against all parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from toolkit.checks import require
from toolkit.scaling.claims import number
from toolkit.scaling.figures.style import (
    draw_legend,
    family_looks,
    flops_text,
    panels,
    plain_ticks,
    run_names,
    save_figure,
    tick_text,
)
from toolkit.scaling.laws.isoflop import cells_of
from toolkit.scaling.multiplier import ComputeMultiplier, Estimate
from toolkit.scaling.report_figure import ReportFigure
from toolkit.scaling.results import RunResult

KINDS = {"equal_flops": "equal FLOPs", "equal_seconds": "equal seconds"}
"""The two multipliers of an entry, and what they are called."""

_BEYOND = 10.0  # an interval without an end is drawn to this many times the largest number there is


def plot_multipliers(entries: Sequence[ComputeMultiplier], path: Path, runs: Iterable[str] = ()) -> ReportFigure:
    """Draw the multiplier against compute at equal FLOPs (left) and equal seconds (right), with 95% intervals.

    A multiplier that is not finite has no place on the axis; the caption names it.

    Raises:
        ValueError: no entries.
    """
    require(bool(entries), "entries", entries, "at least one family's multiplier")
    figure, axes = panels(2, width=4.2, height=3.6)
    looks = family_looks(family for entry in entries for family in (entry.family, entry.baseline))
    for axis, (kind, title) in zip(axes, KINDS.items(), strict=True):
        for family, (colour, marker) in looks.items():  # the baseline is the dotted line and keeps its colour
            mine = finite_entries([entry for entry in entries if entry.family == family], kind)
            _draw_multipliers(axis, mine, kind, {"color": colour, "marker": marker})
        if not finite_entries(entries, kind):
            axis.text(0.5, 0.6, "not finite", transform=axis.transAxes, ha="center", color="0.4", fontsize=9)
        axis.axhline(1, color="0.4", lw=1, ls=":")
        axis.set_title(title, fontsize=10)
        axis.set_xscale("log")
        axis.set_yscale("log")
        _budget_ticks(axis, [entry.budget for entry in entries])
        axis.set_xlabel("training compute (FLOPs)", fontsize=9)
    _multiplier_ticks(axes[0])
    axes[0].set_ylabel("compute multiplier", fontsize=9)
    baseline = entries[0].baseline
    draw_legend(figure, {family: look for family, look in looks.items() if family != baseline})
    caption = (
        f"How many times a family's FLOPs, or seconds, `{baseline}` needs for the family's loss, against compute; "
        f"dotted, 1. Bars are 95% intervals from the noise over seeds.{_left_out(entries)}"
    )
    return save_figure(figure, path, caption, runs)


def finite_entries(entries: Iterable[ComputeMultiplier], kind: str) -> list[ComputeMultiplier]:
    """Those whose multiplier of that kind has a place on a logarithmic axis, by budget."""
    found = [entry for entry in entries if 0 < getattr(entry, kind).value < math.inf]
    return sorted(found, key=lambda entry: entry.budget)


def interval_ends(estimates: Iterable[Estimate]) -> tuple[list[float], list[float]]:
    """Lower and upper ends of intervals as they are drawn: nan where there is none, far beyond the others for infinity.

    >>> interval_ends([Estimate(2.0, 1.0, float("inf"), False, True), Estimate(3.0, None, None, False, False)])
    ([1.0, nan], [30.0, nan])
    """
    known = list(estimates)
    finite = [each for one in known for each in (one.value, one.high) if each is not None and math.isfinite(each)]
    top = _BEYOND * max(finite, default=1.0)
    low = [math.nan if one.low is None else max(one.low, one.value / top) for one in known]
    return low, [math.nan if one.high is None else min(one.high, top) for one in known]


def _draw_multipliers(axis: Axes, entries: Sequence[ComputeMultiplier], kind: str, look: dict[str, Any]) -> None:
    """One family's line with its bars."""
    estimates = [getattr(entry, kind) for entry in entries]
    low, high = interval_ends(estimates)
    values = [estimate.value for estimate in estimates]
    bars = [
        [0.0 if math.isnan(end) else abs(value - end) for value, end in zip(values, side, strict=True)]
        for side in (low, high)
    ]
    axis.errorbar([entry.budget for entry in entries], values, yerr=bars, capsize=3, ms=6, lw=1.6, elinewidth=1, **look)


def _left_out(entries: Sequence[ComputeMultiplier]) -> str:
    """A sentence on the multipliers that are not drawn; empty if all are."""
    missing = [
        f"`{entry.family}` at {number(entry.budget)} FLOPs and {title}"
        for entry in entries
        for kind, title in KINDS.items()
        if not 0 < getattr(entry, kind).value < math.inf
    ]
    return f" Not finite and not drawn: {'; '.join(missing)}." if missing else ""


def plot_total_parameters(rows: Sequence[RunResult], path: Path) -> ReportFigure:
    """Draw loss against every parameter, used or not, a panel for each budget: what a family reaches for its memory.

    Raises:
        ValueError: no rows, or a loss that is not finite.
    """
    require(bool(rows), "rows", rows, "at least one finished run")
    budgets = sorted({row.budget for row in rows})
    figure, axes = panels(len(budgets), width=3.4, height=3.4)
    looks = family_looks(row.family for row in rows)
    for axis, budget in zip(axes, budgets, strict=True):
        axis.set_title(f"{flops_text(budget)} FLOPs", fontsize=10)
        axis.set_xscale("log")
        for family, (colour, marker) in looks.items():
            mine = [row for row in rows if (row.family, row.budget) == (family, budget)]
            totals = {row.dim: row.parameters for row in mine}
            cells = cells_of(mine)
            points = [totals[cell.dim] for cell in cells], [cell.loss for cell in cells]
            axis.plot(*points, color=colour, marker=marker, ms=6, lw=1.4)
        plain_ticks(axis)
        axis.set_xlabel("parameters in all", fontsize=9)
    axes[0].set_ylabel("validation loss (bits per byte)", fontsize=9)
    draw_legend(figure, looks)
    caption = (
        "Loss against every parameter, used by a token or not, mean over seeds: what a family reaches for the memory "
        "its weights take. All runs of the table."
    )
    return save_figure(figure, path, caption, run_names(rows))


def _budget_ticks(axis: Axes, budgets: Iterable[float]) -> None:
    """Ticks at the budgets, all of them in sight whatever is drawn."""
    known = sorted(set(budgets))
    axis.set_xlim(known[0] / 1.2, known[-1] * 1.2)
    axis.xaxis.set_major_locator(FixedLocator(known))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: flops_text(value)))
    axis.xaxis.set_minor_locator(NullLocator())


def _multiplier_ticks(axis: Axes) -> None:
    axis.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))
    axis.yaxis.set_minor_formatter(NullFormatter())
