"""The report's figures, drawn from the table of runs: isoFLOP curves, frontiers, expert load.

One family has one colour (Okabe and Ito's colour-blind-safe set) and one marker in every figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from toolkit.checks import require
from toolkit.scaling.laws.isoflop import Array, Cell, IsoFLOPMinimum, cells_of, isoflop_minima
from toolkit.scaling.multiplier import ComputeMultiplier, Estimate, frontiers
from toolkit.scaling.report_figure import ReportFigure
from toolkit.scaling.results import RunResult

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
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


def plot_expert_load(load: Mapping[str, Array], steps: Array, path: Path, run: str) -> ReportFigure:
    """Draw each expert's share of the assignments over training, a heat map for each MoE layer.

    Args:
        load: for each layer's name, shares (records, experts); each record sums to 1.
        steps: (records,), ascending, the training step of each record.
        path: of the PNG.
        run: the name of the run shown.

    Raises:
        ValueError: no layers, shapes that do not fit, or records that do not sum to 1.
    """
    require(bool(load), "load", dict(load), "at least one layer's record")
    for name, shares in load.items():
        require(
            shares.ndim == 2 and len(shares) == len(steps) >= 2,
            f"load[{name!r}].shape",
            shares.shape,
            f"(records, experts) with records = len(steps) = {len(steps)}, at least 2",
        )
        require(np.allclose(shares.sum(axis=1), 1, atol=1e-3), f"load[{name!r}]", shares, "shares that sum to 1")
    figure = blank_figure(7.2, 0.8 + sum(max(1.0, 0.2 * shares.shape[1]) for shares in load.values()))
    axes = np.atleast_1d(figure.subplots(len(load), 1, sharex=True))
    for axis, (name, shares) in zip(axes, load.items(), strict=True):
        _draw_load(figure, axis, name, shares, np.asarray(steps, dtype=np.float64))
    axes[-1].set_xlabel("training step", **_STYLE)
    caption = (
        f"Expert load over training in run `{run}`: each expert's share of the token assignments. White is "
        "perfect balance, 1/E with E experts, marked on the colour bar."
    )
    return save_figure(figure, path, caption, [run])


def run_names(rows: Sequence[RunResult]) -> list[str]:
    """Names of the runs, in the order of the table."""
    return [row.run for row in rows]


def _analysed(rows: Sequence[RunResult]) -> tuple[list[IsoFLOPMinimum], list[Cell]]:
    require(bool(rows), "rows", rows, "at least one finished run")
    return isoflop_minima(rows), cells_of(rows)


def family_looks(families: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each family, in the order of the families' names: the same in every figure."""
    count = len(COLOURS)
    return {name: (COLOURS[at % count], MARKERS[at % count]) for at, name in enumerate(sorted(set(families)))}


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


def _draw_load(figure: Figure, axis: Axes, name: str, shares: Array, steps: Array) -> None:
    """Draw one layer's heat map with its colour bar."""
    experts = shares.shape[1]
    middle = (steps[1:] + steps[:-1]) / 2
    edges = np.concatenate([[2 * steps[0] - middle[0]], middle, [2 * steps[-1] - middle[-1]]])
    balance = 1 / experts
    norm = TwoSlopeNorm(balance, vmin=0, vmax=max(2 * balance, float(shares.max())))
    image = axis.pcolormesh(edges, np.arange(experts + 1) - 0.5, shares.T, cmap="RdBu_r", norm=norm)
    axis.set_title(name, fontsize=9, loc="left")
    axis.set_ylabel("expert", **_STYLE)
    axis.yaxis.set_major_locator(MaxNLocator(min(8, experts), integer=True))
    axis.tick_params(labelsize=8)
    bar = figure.colorbar(image, ax=axis, pad=0.015, ticks=[0, balance, norm.vmax])
    bar.ax.set_yticklabels(["0", f"1/E = {balance:.3g}", f"{norm.vmax:.2g}"], fontsize=8)
    bar.set_label("share", **_STYLE)


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


def save_figure(figure: Figure, path: Path, caption: str, runs: Iterable[str] = ()) -> ReportFigure:
    """Write the PNG of the ``runs``, its folder made if absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, format="png")
    return ReportFigure(path, caption, runs=tuple(runs))
