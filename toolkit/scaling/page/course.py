"""Interactive figures over the course of training: losses by FLOPs, balance, and each expert's load."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from toolkit.checks import require
from toolkit.scaling.figures import flops_text
from toolkit.scaling.page.style import blank, label, log_axis, look
from toolkit.scaling.run_records import BalanceCurve, Floats, LossCurve

_DIGITS = 4  # significant, of what is drawn by the hundred: a page holds every record of every run


def training(curves: Sequence[LossCurve]) -> go.Figure:
    """Training loss (nats per token, of one batch) and validation loss against FLOPs spent, a line for each run.

    The families' colours; runs of larger budgets are drawn stronger.

    Raises:
        ValueError: no curves.
    """
    require(bool(curves), "curves", curves, "at least one run's")
    titles = ("training batch (nats per token)", "validation (bits per byte)")
    figure = blank(2, titles=titles, height=440)
    budgets, looks = sorted({curve.budget for curve in curves}), look(curve.family for curve in curves)
    named: set[str] = set()
    for curve in sorted(curves, key=lambda curve: (curve.family, -curve.budget)):
        strength = 0.25 + 0.6 * (budgets.index(curve.budget) + 1) / len(budgets)
        style = {"name": label(curve.family), "legendgroup": curve.family, "opacity": strength}
        style |= {"hovertemplate": f"{label(curve.run)}<br>%{{x:.3g}} FLOPs: %{{y:.3f}}<extra></extra>"}
        colour, first = looks[curve.family]["color"], curve.family not in named
        named.add(curve.family)
        both = ((curve.flops, curve.train_loss), (curve.validated_at, curve.bits_per_byte))
        for column, (flops, losses) in enumerate(both, start=1):
            drawn: dict[str, Any] = {
                "x": _rounded(flops),
                "y": _rounded(losses),
                "line": {"color": colour, "width": 1.2},
            }
            drawn |= {"mode": "lines" if column == 1 else "lines+markers", "marker": looks[curve.family]}
            drawn |= {"showlegend": first and column == 1}
            figure.add_scatter(**drawn, **style, row=1, col=column)
    for column, (x, y) in enumerate((("flops", "train_loss"), ("validated_at", "bits_per_byte")), start=1):
        figure.update_xaxes(log_axis(_all(curves, x), flops_text), row=1, col=column)
        figure.update_yaxes(log_axis(_all(curves, y)), row=1, col=column)
    figure.update_xaxes(title_text="training compute spent (FLOPs)")
    return figure


def _all(curves: Sequence[LossCurve], name: str) -> list[float]:
    """The values of every curve."""
    return [value for curve in curves for value in getattr(curve, name)]


def balance(curves: Sequence[BalanceCurve], families: Iterable[str] = ()) -> go.Figure:
    """MaxVio and the loads' entropy over the schedule, a line for each run; even loads are 0 and 1.

    Args:
        curves: of the runs with a router.
        families: all of the study, so that each has the colour it has elsewhere; by default those of the curves.

    Raises:
        ValueError: no curves.
    """
    require(bool(curves), "curves", curves, "at least one run with a router")
    figure = blank(2, titles=("MaxVio of one batch", "entropy of the loads / log experts"), height=400)
    looks, named = look([*families, *(curve.family for curve in curves)]), set[str]()
    for curve in curves:
        style: dict[str, Any] = {
            "name": label(curve.family),
            "legendgroup": curve.family,
            "mode": "lines",
            "opacity": 0.6,
        }
        style |= {"line": {"color": looks[curve.family]["color"], "width": 1.2}, "x": _rounded(curve.share)}
        style |= {"hovertemplate": f"{label(curve.run)}<br>at %{{x:.0%}}: %{{y:.3f}}<extra></extra>"}
        for column, values in enumerate((curve.max_violation, curve.load_entropy), start=1):
            shown = column == 1 and curve.family not in named
            figure.add_scatter(y=_rounded(values), showlegend=shown, **style, row=1, col=column)
        named.add(curve.family)
    figure.update_xaxes(title_text="share of the schedule", tickformat=".0%")
    return figure


def expert_load(load: Mapping[str, Floats], steps: Floats, run: str) -> go.Figure:
    """Each expert's share of the assignments over training, a heat map for each layer; white is 1 / experts.

    Raises:
        ValueError: no layers.
    """
    require(bool(load), "load", dict(load), "at least one layer's record")
    figure = blank(1, len(load), titles=[label(name) for name in load], height=70 + 190 * len(load))
    for row, (name, shares) in enumerate(load.items(), start=1):
        even = 1 / shares.shape[1]
        top = max(2 * even, float(np.nanmax(shares)))
        figure.add_heatmap(
            x=steps,
            z=_rounded(shares.T),
            colorscale=[[0, "#2166ac"], [even / top, "#f7f7f7"], [1, "#b2182b"]],
            zmin=0,
            zmax=top,
            colorbar=colour_bar(row, len(load), "share"),
            hovertemplate=f"{label(run)}, {label(name)}<br>step %{{x}}, expert %{{y}}: %{{z:.3f}}<extra></extra>",
            row=row,
            col=1,
        )
    figure.update_yaxes(title_text="expert", dtick=1, showgrid=False, autorange="reversed")
    figure.update_xaxes(title_text="training step", row=len(load))
    return figure


def colour_bar(row: int, rows: int, title: str) -> dict[str, Any]:
    """The colour bar of panel ``row`` (from 1, at the top) of ``rows`` above one another."""
    look = {"title": {"text": title, "side": "right"}, "thickness": 12, "outlinewidth": 0}
    return {**look, "len": 0.9 / rows, "y": 1 - (row - 0.5) / rows}


def _rounded(values: Floats) -> list[Any]:
    """To the figure's digits, nested lists: plotly would write arrays in binary, which no rounding shortens."""
    shape = np.shape(values)
    return np.array([float(f"{value:.{_DIGITS}g}") for value in np.ravel(values)]).reshape(shape).tolist()
