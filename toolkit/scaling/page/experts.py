"""Interactive figures of what experts specialise in: the tokens that each takes, and which serve together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from toolkit.checks import require
from toolkit.scaling.figures.experts import (
    CLASS_COLOURS,
    DOUBLINGS,
    NEVER,
    NEVER_COLOUR,
    TOP_TOKENS,
    bars_of_classes,
    commonest,
    doublings,
    paired_layers,
)
from toolkit.scaling.page.course import colour_bar
from toolkit.scaling.page.style import blank, label
from toolkit.scaling.specialisation import LayerSpecialisation

_LOWEST = 2 * NEVER + DOUBLINGS  # so that NEVER stands in the middle of its colour on the bar
_SHARE = (-DOUBLINGS - _LOWEST) / (DOUBLINGS - _LOWEST)
_GREY, _BLUE, _RED = NEVER_COLOUR, "#2166ac", "#b2182b"
_SCALE = [[0, _GREY], [_SHARE, _GREY], [_SHARE, _BLUE], [(1 + _SHARE) / 2, "#f7f7f7"], [1, _RED]]
_LIFTS = [-2, -1, 0, 1, 2, 3]
_BAR = {  # blue to red from DOUBLINGS down to DOUBLINGS up, and below them grey
    "title": {"text": "log<sub>2</sub> lift", "side": "right"},
    "tickvals": [NEVER, *_LIFTS],
    "ticktext": ["never", *map(str, _LIFTS)],
}


def specialisation(
    layers: Mapping[str, LayerSpecialisation], labels: Sequence[str], top: int = TOP_TOKENS
) -> go.Figure:
    """How many doublings likelier a token chooses an expert than tokens do at large: experts x the commonest tokens.

    Args:
        layers: of one run.
        labels: what each id is called, (vocab_size,).
        top: columns.

    Raises:
        ValueError: no layers.
    """
    require(bool(layers), "layers", dict(layers), "at least one")
    titles = [
        f"{label(name)}: {layer.mutual_information:.2f} of {layer.ceiling:.2f} bits" for name, layer in layers.items()
    ]
    figure = blank(1, len(layers), titles=titles, height=90 + 230 * len(layers))
    for row, layer in enumerate(layers.values(), start=1):
        ids = commonest(layer, top)
        shares = layer.counts[:, ids] / np.maximum(layer.occurrences[ids], 1)
        figure.add_heatmap(
            z=doublings(layer.lift[:, ids]).round(3),
            customdata=shares,
            colorscale=_SCALE,
            zmin=_LOWEST,
            zmax=DOUBLINGS,
            colorbar={**colour_bar(row, len(layers), ""), **_BAR},
            hovertemplate="token %{x}, expert %{y}<br>chosen by %{customdata:.1%} of them<extra></extra>",
            row=row,
            col=1,
        )
        ticks = list(range(len(ids)))
        figure.update_xaxes(tickvals=ticks, ticktext=[label(labels[token]) for token in ids], tickangle=-90, row=row)
    figure.update_xaxes(tickfont={"family": "ui-monospace, monospace", "size": 11}, showgrid=False)
    figure.update_yaxes(title_text="expert", dtick=1, showgrid=False, autorange="reversed")
    return figure


def token_kinds(layers: Mapping[str, LayerSpecialisation], classes: npt.NDArray[np.int64]) -> go.Figure:
    """What kinds of tokens each expert takes, shares of its choices, a panel a layer; the bar at the top is the text's.

    Raises:
        ValueError: no layers.
    """
    require(bool(layers), "layers", dict(layers), "at least one")
    columns = min(3, len(layers))
    lines = math.ceil(len(layers) / columns)
    most = max(len(layer.counts) for layer in layers.values())
    figure = blank(columns, lines, titles=[label(name) for name in layers], height=80 + (90 + 22 * most) * lines)
    named: set[str] = set()
    for at, layer in enumerate(layers.values()):
        bars, shares = bars_of_classes(layer, classes)
        for kind, values in shares.items():
            figure.add_bar(
                x=values.round(4),
                y=bars,
                orientation="h",
                marker_color=CLASS_COLOURS[kind],
                name=kind,
                legendgroup=kind,
                showlegend=kind not in named,
                hovertemplate=f"%{{y}}: %{{x:.1%}} {kind}<extra></extra>",
                row=at // columns + 1,
                col=at % columns + 1,
            )
            named.add(kind)
    figure.update_layout(barmode="stack", bargap=0.15)
    figure.update_xaxes(range=[0, 1], tickformat=".0%", showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    figure.update_yaxes(title_text="expert", col=1)
    return figure


def co_selection(layers: Mapping[str, LayerSpecialisation]) -> go.Figure:
    """How many doublings oftener two experts serve one token than if pairs formed independently, a panel a layer.

    Raises:
        ValueError: no layer has a token of two experts.
    """
    paired = paired_layers(layers)
    require(bool(paired), "layers", list(layers), "at least one with tokens of two experts")
    columns = min(3, len(paired))
    lines = math.ceil(len(paired) / columns)
    figure = blank(columns, lines, titles=[label(name) for name in paired], height=60 + 330 * lines)
    for at, layer in enumerate(paired.values()):
        figure.add_heatmap(
            z=doublings(layer.pair_lift).round(3),
            customdata=layer.pairs / max(1, int(layer.occurrences.sum())),
            coloraxis="coloraxis",
            hovertemplate="experts %{y} and %{x}<br>together at %{customdata:.2%} of tokens<extra></extra>",
            row=at // columns + 1,
            col=at % columns + 1,
        )
    bar = {**_BAR, "thickness": 12, "outlinewidth": 0}
    axis = {"colorscale": _SCALE, "cmin": _LOWEST, "cmax": DOUBLINGS, "colorbar": bar}
    figure.update_layout(coloraxis=axis)
    figure.update_xaxes(title_text="expert", dtick=1, showgrid=False)
    figure.update_yaxes(dtick=1, showgrid=False, autorange="reversed")
    figure.update_yaxes(title_text="expert", col=1)
    return figure
