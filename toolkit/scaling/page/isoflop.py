"""The interactive isoFLOP figure: runs, means with intervals, parabolas, and what a fitted law says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from scipy import stats

from toolkit.checks import require
from toolkit.scaling.figures import flops_text
from toolkit.scaling.laws.isoflop import Array, IsoFLOPMinimum, SeedNoise, cells_of, isoflop_minima, seed_noise
from toolkit.scaling.page.style import LOSS, band, blank, cell_text, label, log_axis, look
from toolkit.scaling.results import RunResult

_PANELS = 3  # budgets beside each other
_ROOM = 0.08  # above and below the losses, as a share of their span


@dataclass(frozen=True)
class FittedCurve:
    """A law's loss along one family's isoFLOP curve, with how sure it is.

    Attributes:
        family, budget: whose runs it stands among.
        size: active parameters, (points,), ascending.
        loss: bits per byte, (points,).
        low, high: the ends of its interval, (points,); None without one.
        name: of the law, for the legend.
    """

    family: str
    budget: float
    size: Array
    loss: Array
    low: Array | None = None
    high: Array | None = None
    name: str = "surface fit"


def isoflop(rows: Sequence[RunResult], curves: Sequence[FittedCurve] = ()) -> go.Figure:
    """Loss against active parameters, a panel for each budget: runs, means with intervals, parabola, minimum, laws.

    The means' bars are 95% intervals from the seed noise pooled over all cells (Student's t); none with one seed. The
    vertical axis is that of the runs and minima: a law's interval may leave it. :func:`reading` says all this.

    Raises:
        ValueError: no rows, or a loss that is not finite.
    """
    require(bool(rows), "rows", rows, "at least one finished run")
    minima, noise = isoflop_minima(rows), seed_noise(rows)
    budgets = sorted({row.budget for row in rows})
    columns = min(_PANELS, len(budgets))
    lines = math.ceil(len(budgets) / columns)
    titles = [f"{flops_text(budget)} FLOPs" for budget in budgets]
    figure = blank(columns, lines, titles=titles, height=90 + 330 * lines, shared="all")
    named: set[str] = set()
    for at, budget in enumerate(budgets):
        place = {"row": at // columns + 1, "col": at % columns + 1}
        here = [row for row in rows if row.budget == budget]
        for curve in (curve for curve in curves if curve.budget == budget):
            _draw_law(figure, curve, look(row.family for row in rows)[curve.family]["color"], place)
        for minimum in (minimum for minimum in minima if minimum.budget == budget):
            mine = [row for row in here if row.family == minimum.family]
            colours = look(row.family for row in rows)[minimum.family]
            _draw_isoflop(figure, mine, minimum, noise, {**colours, "named": minimum.family in named}, place)
            named.add(minimum.family)
        figure.update_xaxes(log_axis(row.active_parameters for row in here), title_text="active parameters", **place)
    figure.update_yaxes(range=_loss_range(rows, minima, noise))
    figure.update_yaxes(title_text=LOSS, col=1)
    return figure


def reading(rows: Sequence[RunResult], curves: Sequence[FittedCurve] = ()) -> str:
    """How to read what only the interactive figure has: sentences for the end of its caption."""
    noise, found = seed_noise(rows), []
    if noise is not None:
        found.append(
            "bars are 95% intervals of the means, from the noise over seeds pooled over all cells "
            f"({noise.degrees_of_freedom} degrees of freedom)"
        )
    if curves:
        names = ", ".join(dict.fromkeys(curve.name for curve in curves))
        found.append(f"dashed lines are the fitted law ({names})")
    if any(curve.low is not None for curve in curves):
        found.append("bands are its intervals, cut where they leave the axis, which is that of the runs")
    found.append("a dotted parabola has its minimum outside the sizes or none")
    return f" In the interactive figure {'; '.join(found)}."


def _loss_range(
    rows: Sequence[RunResult], minima: Sequence[IsoFLOPMinimum], noise: SeedNoise | None
) -> tuple[float, float]:
    """Ends of the vertical axis: all runs, means with their bars and minima, and some room."""
    points = [row.bits_per_byte for row in rows] + [minimum.loss for minimum in minima]
    for cell in cells_of(rows):
        half = _half(noise, cell.seeds)
        points += [cell.loss - half, cell.loss + half]
    low, high = min(points), max(points)
    room = _ROOM * (high - low) or _ROOM * high
    return low - room, high + room


def _draw_isoflop(
    figure: go.Figure,
    rows: Sequence[RunResult],
    minimum: IsoFLOPMinimum,
    noise: SeedNoise | None,
    style: dict[str, Any],
    place: dict[str, int],
) -> None:
    """One family at one budget."""
    cells, colour = cells_of(rows), style["color"]
    group = {"legendgroup": minimum.family, "name": label(minimum.family)}
    half = [_half(noise, cell.seeds) for cell in cells]
    bar = {"type": "data", "array": half, "color": colour, "thickness": 1.2, "width": 4}
    means = {"color": "rgba(0,0,0,0)", "size": 10, "symbol": style["symbol"], "line": {"color": colour, "width": 1.6}}
    figure.add_scatter(
        x=[row.active_parameters for row in rows],
        y=[row.bits_per_byte for row in rows],
        mode="markers",
        marker={"color": colour, "size": 5, "symbol": style["symbol"]},
        showlegend=not style["named"],
        hovertext=[_run_text(row) for row in rows],
        hoverinfo="text",
        **group,
        **place,
    )
    figure.add_scatter(
        x=[cell.size for cell in cells],
        y=[cell.loss for cell in cells],
        mode="markers",
        marker=means,
        error_y=bar if noise is not None else None,
        showlegend=False,
        hovertext=[cell_text(cell, each) for cell, each in zip(cells, half, strict=True)],
        hoverinfo="text",
        **group,
        **place,
    )
    _draw_minimum(figure, minimum, (cells[0].size, cells[-1].size), colour, {**group, **place})


def _draw_minimum(
    figure: go.Figure, minimum: IsoFLOPMinimum, sizes: tuple[float, float], colour: str, place: dict[str, Any]
) -> None:
    """The curve between the smallest and the largest of the ``sizes``, where one was fitted, and its minimum."""
    if minimum.coefficients is not None:
        x = np.linspace(math.log(sizes[0]), math.log(sizes[1]), 60)
        dash = "solid" if minimum.method == "parabola" else "dot"
        figure.add_scatter(
            x=np.exp(x),
            y=np.polyval(minimum.coefficients, x),
            mode="lines",
            line={"color": colour, "dash": dash},
            showlegend=False,
            hoverinfo="skip",
            **place,
        )
    found = f"{minimum.size:,.0f} active parameters<br>{minimum.loss:.4f} bits per byte"
    text = f"<b>minimum of {label(minimum.family)}</b> ({minimum.method})<br>{found}"
    star = {"symbol": "star", "size": 14, "color": colour, "line": {"color": "white", "width": 1}}
    figure.add_scatter(
        x=[minimum.size],
        y=[minimum.loss],
        mode="markers",
        marker=star,
        showlegend=False,
        hovertext=text,
        hoverinfo="text",
        **place,
    )


def _draw_law(figure: go.Figure, curve: FittedCurve, colour: str, place: dict[str, int]) -> None:
    """A law's curve with its band."""
    group = {"legendgroup": curve.name, "name": label(curve.name)}
    if curve.low is not None and curve.high is not None:
        figure.add_trace(band(list(curve.size), list(curve.low), list(curve.high), colour, **group), **place)
    first = not any(trace.legendgroup == curve.name and trace.showlegend for trace in figure.data)
    figure.add_scatter(
        x=curve.size,
        y=curve.loss,
        mode="lines",
        line={"color": colour, "dash": "dash", "width": 1.2},
        showlegend=first,
        **group,
        **place,
    )


def _half(noise: SeedNoise | None, seeds: int) -> float:
    """Half the 95% interval of a mean over so many seeds; 0 where the noise is unknown."""
    if noise is None:
        return 0.0
    return float(stats.t.ppf(0.975, noise.degrees_of_freedom)) * noise.sd / math.sqrt(seeds)


def _run_text(row: RunResult) -> str:
    return (
        f"<b>{label(row.run)}</b><br>{row.bits_per_byte:.4f} bits per byte<br>{row.active_parameters:,} of "
        f"{row.parameters:,} parameters active<br>{row.tokens:,} tokens, {row.seconds:.1f} s"
    )
