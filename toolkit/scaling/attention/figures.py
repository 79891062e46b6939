"""The figure of a study of attention: loss against context at equal FLOPs and in equal time, for both allocations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from toolkit.checks import require
from toolkit.scaling.attention.arms import ALLOCATIONS, FULL, family_name
from toolkit.scaling.attention.tables import ContextResult
from toolkit.scaling.figures import COLOURS, MARKERS, ReportFigure, blank_figure, save_figure
from toolkit.scaling.routing.figures import run_names
from toolkit.scaling.seeds import SeedMean

_FULL_LOOK: dict[str, Any] = {"color": "black", "marker": "X", "ls": "--", "ms": 5, "lw": 1.3}
_SPENT = {"tokens": "savings spent on tokens", "size": "savings spent on size"}
_SHIFT = 0.03  # of the context, from one arm to the next, so that intervals do not hide each other


def plot_contexts(results: Sequence[ContextResult], arms: Sequence[str], path: Path) -> ReportFigure:
    """Draw bits per byte against context, a line for each arm: equal FLOPs above, equal seconds below.

    Args:
        results: one a context.
        arms: their names, without the allocation.
        path: of the PNG.

    Raises:
        ValueError: if there is no result, or more arms than the figure has colours for.
    """
    require(bool(results), "results", results, "at least one context")
    require(len(arms) < len(COLOURS), "arms", len(arms), f"at most {len(COLOURS) - 1}, one a colour")
    figure = blank_figure(8.0, 6.4)
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    for row, (title, timed) in enumerate((("equal FLOPs", False), ("equal seconds", True))):
        for axis, allocation in zip(axes[row], ALLOCATIONS, strict=True):
            axis.set_title(f"{title}, {_SPENT[allocation]}", fontsize=9)
            _draw(axis, results, FULL, timed, 0, _FULL_LOOK)
            for place, arm in enumerate(arms):
                look = {"color": COLOURS[place], "marker": MARKERS[place], "ms": 4, "lw": 1.3}
                shift = _SHIFT * (place - (len(arms) - 1) / 2)
                _draw(axis, results, family_name(arm, allocation), timed, shift, {**look, "label": arm})
            _finish(axis, [result.context for result in results])
    for axis in axes[:, 0]:
        axis.set_ylabel("bits per byte", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("context (tokens)", fontsize=9)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=9)
    return save_figure(figure, path, _caption(results))


def _draw(
    axis: Axes, results: Sequence[ContextResult], family: str, timed: bool, shift: float, look: dict[str, Any]
) -> None:
    """One family's mean over seeds with its 95% interval at each context where it has one."""
    label = {"label": FULL} if family == FULL else {}
    points = [(result.context * (1 + shift), _mean(result, family, timed)) for result in results]
    known = [(context, mean) for context, mean in points if mean is not None]
    if known:
        bars = [mean.half or 0.0 for _, mean in known]
        at = [context for context, _ in known]
        axis.errorbar(at, [mean.value for _, mean in known], yerr=bars, capsize=2, elinewidth=0.7, **{**label, **look})


def _mean(result: ContextResult, family: str, timed: bool) -> SeedMean | None:
    if timed:
        mine = result.timed.get(family)
        return mine.mean if mine is not None and mine.by_seed else None
    arm = result.at_equal_flops(family)
    return arm.loss if arm is not None else None


def _finish(axis: Axes, contexts: Sequence[int]) -> None:
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(FixedLocator(list(contexts)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.grid(True, color="0.9", lw=0.7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)


def _caption(results: Sequence[ContextResult]) -> str:
    runs = "; ".join(f"at {result.context:,}: {run_names(result.arms)}" for result in results)
    return (
        "Bits per byte of the same validation tokens against the context, mean over seeds with its 95% interval. "
        "Above, every model spends the same FLOPs; below, each is given the time that full attention needs for them, "
        "read off between its runs of several budgets. Left, an arm's savings buy more tokens, right a larger model; "
        f"`full` is in both. Differences by seed, in the tables, are sharper than these intervals. Runs at equal "
        f"FLOPs, {runs}; below, their families' smaller budgets as well, and"
        " beyond their times an extrapolation (\N{DAGGER} in the table)."
    )
