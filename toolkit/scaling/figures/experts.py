"""The report's figures of what experts specialise in: the tokens that each takes, and which serve together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from toolkit.checks import require
from toolkit.scaling.figures.style import COLOURS, blank_figure, save_figure
from toolkit.scaling.report_figure import ReportFigure
from toolkit.scaling.specialisation import Floats, LayerSpecialisation
from toolkit.scaling.token_classes import CLASSES, class_shares

TOP_TOKENS = 40
"""Columns of the heat map: the commonest tokens."""

DOUBLINGS = 3.0
"""Colours end at this many, up and down."""

CLASS_COLOURS = dict(zip(CLASSES, (*COLOURS[:6], "#999999", "#cfcfcf"), strict=True))
"""Of kinds of tokens."""

NEVER = -DOUBLINGS - 0.25
"""Where :func:`doublings` puts what never happened: below the colours, in one of its own."""

NEVER_COLOUR = "#5c5c5c"

_MAP = colormaps["RdBu_r"].with_extremes(under=NEVER_COLOUR)
_COLOURS: dict[str, Any] = {"cmap": _MAP, "vmin": -DOUBLINGS, "vmax": DOUBLINGS, "interpolation": "nearest"}
_BAR: dict[str, Any] = {"label": "log2 lift", "extend": "min"}


def plot_specialisation(
    layers: Mapping[str, LayerSpecialisation], labels: Sequence[str], path: Path, run: str, top: int = TOP_TOKENS
) -> ReportFigure:
    """Draw how much likelier a token chooses an expert than tokens do at large: experts x the commonest tokens.

    Args:
        layers: of the run.
        labels: what each id is called, (vocab_size,).
        path: of the PNG.
        run: the run's name.
        top: columns.

    Raises:
        ValueError: no layers.
    """
    require(bool(layers), "layers", dict(layers), "at least one")
    figure = blank_figure(8.4, 0.6 + sum(0.9 + 0.17 * len(layer.counts) for layer in layers.values()))
    axes = np.atleast_1d(figure.subplots(len(layers), 1))
    for axis, (name, layer) in zip(axes, layers.items(), strict=True):
        ids = commonest(layer, top)
        image = axis.imshow(doublings(layer.lift[:, ids]), aspect="auto", **_COLOURS)
        axis.set_xticks(range(len(ids)), [labels[token].replace("$", r"\$") for token in ids], rotation=90)
        _finish(axis, f"{name}: {layer.mutual_information:.2f} of {layer.ceiling:.2f} bits")
        figure.colorbar(image, ax=axis, pad=0.015, **_BAR)
    caption = (
        f"What experts of run `{run}` take: how many doublings likelier the token in the column chooses the expert "
        f"than tokens do at large, the {top} commonest tokens of validation text. White: as likely. {_colours(layers)} "
        "Above each layer the mutual information of token and expert, and what it is for a router that reads the token "
        "alone."
    )
    return save_figure(figure, path, caption, [run])


def plot_co_selection(layers: Mapping[str, LayerSpecialisation], path: Path, run: str) -> ReportFigure:
    """Draw how much oftener two experts serve one token than if pairs formed independently, a panel for each layer.

    Raises:
        ValueError: no layer has a token of two experts.
    """
    paired = paired_layers(layers)
    require(bool(paired), "layers", list(layers), "at least one with tokens of two experts")
    columns = min(3, len(paired))
    lines = math.ceil(len(paired) / columns)
    figure = blank_figure(0.9 + 2.6 * columns, 0.3 + 2.7 * lines)
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis in axes.flat[len(paired) :]:
        axis.set_visible(False)
    image = None
    for axis, (name, layer) in zip(axes.flat, paired.items(), strict=False):
        image = axis.imshow(doublings(layer.pair_lift), **_COLOURS)
        axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axis.set_xlabel("expert", fontsize=9)
        _finish(axis, name)
    assert image is not None
    figure.colorbar(image, ax=axes, **_BAR)
    caption = (
        f"Which experts of run `{run}` serve one token together: how many doublings oftener than if pairs formed "
        "independently at the experts' loads (quasi-independence), validation text. White: as often. "
        f"{_colours(paired)}"
    )
    return save_figure(figure, path, caption, [run])


def plot_classes(
    layers: Mapping[str, LayerSpecialisation], classes: npt.NDArray[np.int64], path: Path, run: str
) -> ReportFigure:
    """Draw what kinds of tokens each expert takes, a bar for each expert and one for the text, a panel for each layer.

    Args:
        layers: of the run.
        classes: the kind of each id, of :func:`toolkit.scaling.token_classes.token_classes`.
        path: of the PNG.
        run: the run's name.

    Raises:
        ValueError: no layers.
    """
    require(bool(layers), "layers", dict(layers), "at least one")
    columns = min(3, len(layers))
    lines = math.ceil(len(layers) / columns)
    most = max(len(layer.counts) for layer in layers.values())
    figure = blank_figure(1.2 + 3.4 * columns, 0.5 + (0.9 + 0.2 * most) * lines)
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis in axes.flat[len(layers) :]:
        axis.set_visible(False)
    for axis, (name, layer) in zip(axes.flat, layers.items(), strict=False):
        bars, shares = bars_of_classes(layer, classes)
        left = np.zeros(len(bars))
        for kind, values in shares.items():
            axis.barh(bars, values, left=left, color=CLASS_COLOURS[kind], label=kind)
            left = left + values
        axis.invert_yaxis()
        axis.set_title(name, fontsize=9, loc="left")
        axis.set_xlim(0, 1)
        axis.xaxis.set_major_formatter(PercentFormatter(1.0))
        axis.tick_params(labelsize=7)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=8)
    caption = (
        f"What kinds of tokens the experts of run `{run}` take, as shares of each expert's choices; the bar at the top "
        "is of the text itself. Validation text; a token's kind is told by the token alone."
    )
    return save_figure(figure, path, caption, [run])


def bars_of_classes(layer: LayerSpecialisation, classes: npt.NDArray[np.int64]) -> tuple[list[str], dict[str, Floats]]:
    """The bars' names, ``text`` first, and each kind's shares (1 + experts,); kinds that no token is of are left out.

    An expert that nothing chose has an empty bar.
    """
    counted = np.concatenate([layer.occurrences[None], layer.counts])
    shares = np.nan_to_num(class_shares(counted, classes))
    found = {kind: shares[:, at] for at, kind in enumerate(CLASSES) if shares[:, at].any()}
    return ["text", *(str(expert) for expert in range(len(layer.counts)))], found


def paired_layers(layers: Mapping[str, LayerSpecialisation]) -> dict[str, LayerSpecialisation]:
    """Those in which some token chose two experts."""
    return {name: layer for name, layer in layers.items() if layer.pairs.any()}


def commonest(layer: LayerSpecialisation, top: int) -> list[int]:
    """The ids that occur most, most first, at most ``top`` of those that occur."""
    order = np.argsort(-layer.occurrences, kind="stable")[:top]
    return [int(token) for token in order if layer.occurrences[token] > 0]


def doublings(lift: Floats) -> Floats:
    """log2 of the lift, at most DOUBLINGS up or down; NEVER for what never happened, nan for what was not expected."""
    with np.errstate(divide="ignore"):
        logs: Floats = np.log2(lift)
    return np.where(np.isneginf(logs), NEVER, logs.clip(-DOUBLINGS, DOUBLINGS))


def _colours(layers: Mapping[str, LayerSpecialisation]) -> str:
    """How the colours are read, and how many tokens are behind "never"."""
    tokens = max(int(layer.occurrences.sum()) for layer in layers.values())
    return f"Colours end at {DOUBLINGS:g} doublings; grey: never, among {tokens:,} tokens."


def _finish(axis: Axes, title: str) -> None:
    axis.set_title(title, fontsize=9, loc="left")
    axis.set_ylabel("expert", fontsize=9)
    axis.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    axis.tick_params(labelsize=7)
