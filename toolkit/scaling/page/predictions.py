"""Interactive figures that hold a prediction beside what was measured: fitted laws, and attention's reach."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import plotly.graph_objects as go

from toolkit.checks import require
from toolkit.scaling.figures.predictions import Prediction
from toolkit.scaling.page.style import MUTED, bars, blank, cycle, label, look
from toolkit.scaling.reach.table import ReachRow


def predicted_against_measured(predictions: Sequence[Prediction], quantity: str = "bits per byte") -> go.Figure:
    """Each prediction with its interval against the measurement; on the diagonal both are the same.

    Raises:
        ValueError: no predictions.
    """
    require(bool(predictions), "predictions", predictions, "at least one")
    figure, drawn = blank(height=480), [each for one in predictions for each in (one.measured, *one.interval)]
    ends = [min(drawn), max(drawn)]
    diagonal = {"mode": "lines", "line": {"color": MUTED, "dash": "dot"}, "hoverinfo": "skip", "showlegend": False}
    figure.add_scatter(x=ends, y=ends, **diagonal)
    for group, style in look(one.group for one in predictions).items():
        mine = [one for one in predictions if one.group == group]
        values = [one.predicted for one in mine]
        low, high = zip(*(one.interval for one in mine), strict=True)
        text = [
            f"<b>{label(one.name)}</b><br>measured {one.measured:.4f}<br>predicted {one.predicted:.4f}" for one in mine
        ]
        figure.add_scatter(
            x=[one.measured for one in mine],
            y=values,
            error_y=bars(values, low, high),
            mode="markers",
            marker={"size": 9, **style},
            name=label(group),
            hovertext=text,
            hoverinfo="text",
        )
    figure.update_xaxes(title_text=f"measured ({quantity})")
    figure.update_yaxes(title_text=f"predicted ({quantity})")
    return figure


def reach(rows: Sequence[ReachRow], chance: float | None = None) -> go.Figure:
    """Accuracy against the distance to what is asked for, a line for each attention pattern: mean over seeds.

    A click in the legend takes a pattern away, a double click leaves it alone. Filled where some path of the masks
    leads there, hollow where none does.

    Args:
        rows: of a study of reach.
        chance: accuracy of guessing, dotted.

    Raises:
        ValueError: no rows.
    """
    require(bool(rows), "rows", rows, "at least one run's")
    figure, patterns = blank(height=460), list(dict.fromkeys(row.pattern for row in rows))
    for pattern, line in zip(patterns, cycle(len(patterns)), strict=True):
        mine = [row for row in rows if row.pattern == pattern]
        distances = sorted({row.distance for row in mine})
        accuracy = [fmean(row.accuracy for row in mine if row.distance == distance) for distance in distances]
        reached = {row.distance: row.reached for row in mine}
        symbols = ["circle" if reached[distance] else "circle-open" for distance in distances]
        figure.add_scatter(
            x=distances,
            y=accuracy,
            mode="lines+markers",
            line=line,
            marker={"symbol": symbols, "size": 7},
            name=label(pattern),
            hovertemplate=f"<b>{label(pattern)}</b><br>distance %{{x}}: %{{y:.1%}}<extra></extra>",
        )
    if chance is not None:
        figure.add_hline(y=chance, line_dash="dot", line_color=MUTED)
    figure.update_xaxes(title_text="distance (tokens)")
    figure.update_yaxes(title_text="accuracy", range=[-0.02, 1.04], tickformat=".0%")
    return figure
