"""How the interactive figures look: one template, log axes with plain ticks, error bars that may be missing."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from matplotlib.ticker import MaxNLocator
from plotly.subplots import make_subplots

from toolkit.checks import require
from toolkit.scaling.claims import number
from toolkit.scaling.figures import COLOURS, MARKERS, family_looks, tick_text
from toolkit.scaling.laws.isoflop import Cell

LOSS = "validation loss (bits per byte)"

_NAMES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x")
SYMBOLS = dict(zip(MARKERS, _NAMES, strict=True))
"""Plotly's name of each of matplotlib's markers that the figures use."""

MUTED = "#8a8f98"
"""Of lines that only guide the eye: visible on white and on black."""


def blank(
    columns: int = 1, rows: int = 1, *, titles: Sequence[str] = (), height: int = 430, shared: str | bool = False
) -> go.Figure:
    """An empty figure of panels in the reports' look.

    Args:
        columns, rows: of panels.
        titles: of the panels, row by row.
        height: pixels; the width is the page's.
        shared: the panels' vertical axis, as ``make_subplots`` takes it: ``True`` for one a row, ``"all"`` for one.
    """
    names, gap = list(titles) or None, 0.05 if columns > 1 else 0
    figure = make_subplots(rows, columns, subplot_titles=names, shared_yaxes=shared, horizontal_spacing=gap)
    figure.update_layout(
        template="none",
        height=height,
        font={"family": "system-ui, sans-serif", "size": 12},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 62, "r": 18, "t": 48 if titles else 30, "b": 48},
        legend=_LEGEND,
        hovermode="closest",
        hoverlabel={"align": "left"},
    )
    figure.update_xaxes(**_AXIS)
    figure.update_yaxes(**_AXIS)
    figure.update_annotations(font_size=13)
    return figure


_LEGEND: dict[str, Any] = {
    "orientation": "h",
    "x": 0,
    "y": -0.2,
    "yanchor": "top",
    "groupclick": "togglegroup",
    "itemsizing": "constant",
}

_AXIS: dict[str, Any] = {
    "gridcolor": "rgba(128,128,128,0.18)",
    "zeroline": False,
    "showline": True,
    "linecolor": "rgba(128,128,128,0.5)",
    "ticks": "outside",
    "tickcolor": "rgba(128,128,128,0.5)",
    "ticklen": 4,
    "title_standoff": 8,
}


def log_axis(values: Iterable[float], text: Callable[[float], str] = tick_text) -> dict[str, Any]:
    """Settings of a logarithmic axis over ``values``: plain numbers, 1, 2 and 5 or evenly apart where it spans little.

    The axis is a little longer than the values, so that no marker is cut. What is not positive and finite has no place
    on it.

    Raises:
        ValueError: no value has one.
    """
    known = [math.log10(value) for value in values if 0 < value < math.inf]
    require(bool(known), "values", values, "positive and finite, at least one of them")
    low, high = min(known), max(known)
    room = max(0.06 * (high - low), 0.04)
    low, high = low - room, high + room
    shown = [tick for tick in _log_ticks(low, high) if tick > 0 and low <= math.log10(tick) <= high]
    return {
        "type": "log",
        "range": [low, high],
        "tickvals": shown,
        "ticktext": [text(tick) for tick in shown],
        "tickangle": 0,
    }


def _log_ticks(low: float, high: float) -> list[float]:
    """Where a logarithmic axis from 10^low to 10^high has its numbers, and some beyond."""
    span = high - low
    if span < 0.35:
        return [float(tick) for tick in MaxNLocator(6).tick_values(10**low, 10**high)]
    places = (1.0,) if span > 3 else (1.0, 2.0, 5.0) if span > 1.08 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    return [place * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for place in places]


def look(families: Iterable[str]) -> Mapping[str, dict[str, Any]]:
    """Colour and symbol of each family, those of :func:`toolkit.scaling.figures.family_looks`."""
    return {
        family: {"color": on_any_ground(colour), "symbol": SYMBOLS[marker]}
        for family, (colour, marker) in family_looks(families).items()
    }


def on_any_ground(colour: str) -> str:
    """The colour, but for black, which a dark page would hide."""
    return MUTED if colour == "#000000" else colour


def bars(values: Sequence[float], low: Sequence[float], high: Sequence[float]) -> dict[str, Any]:
    """Error bars from ``low`` to ``high``; none where either is nan."""
    known = [not (math.isnan(a) or math.isnan(b)) for a, b in zip(low, high, strict=True)]
    up = [b - v if k else 0.0 for v, b, k in zip(values, high, known, strict=True)]
    down = [v - a if k else 0.0 for v, a, k in zip(values, low, known, strict=True)]
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.2, "width": 4}


def faded(colour: str, opacity: float) -> str:
    """``#rrggbb`` with an opacity, as CSS has it."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"


def band(x: Sequence[float], low: Sequence[float], high: Sequence[float], colour: str, **settings: Any) -> go.Scatter:
    """The area between ``low`` and ``high`` over ``x``."""
    around = [*x, *reversed(x)], [*high, *reversed(low)]
    fill = faded(colour, 0.15)
    return go.Scatter(
        x=around[0],
        y=around[1],
        fill="toself",
        fillcolor=fill,
        line_width=0,
        hoverinfo="skip",
        mode="lines",
        showlegend=False,
        **settings,
    )


def cycle(count: int) -> list[dict[str, Any]]:
    """Line looks of so many things that are no families: colours, then the same dashed, then dotted."""
    dashes = ("solid", "dash", "dot")
    return [
        {"color": on_any_ground(COLOURS[at % len(COLOURS)]), "dash": dashes[at // len(COLOURS) % len(dashes)]}
        for at in range(count)
    ]


def label(text: str) -> str:
    """Text as plotly shows it: what it is given it reads as HTML of a few tags.

    >>> label("a<b> & c")
    'a&lt;b&gt; &amp; c'
    """
    return html.escape(text, quote=False)


def cell_text(cell: Cell, half: float = 0.0) -> str:
    """What the pointer shows of a cell: what was trained, its loss and half its interval, its size and time."""
    interval = f" ± {half:.4f}" if half else ""
    return (
        f"<b>{label(cell.family)}, dim {cell.dim}, {number(cell.budget)} FLOPs</b><br>{cell.loss:.4f}{interval} bits "
        f"per byte, mean of {cell.seeds}<br>{cell.size:,} active parameters<br>{cell.seconds:.1f} s"
    )
