"""Attention's reach in the study's own models: how far masks lead back, and what the loss gains from context."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go
from torch import Tensor

from toolkit.attention.reach import reach
from toolkit.attention.selection import parse_sparsity
from toolkit.data.evaluation import loss_by_position
from toolkit.models import DecoderConfig
from toolkit.scaling.figures import blank_figure, draw_legend, family_looks, plain_ticks, save_figure
from toolkit.scaling.folder import StudyFolder
from toolkit.scaling.page.style import SYMBOLS, blank, log_axis
from toolkit.scaling.report_figure import ReportFigure
from toolkit.scaling.results import RunResult
from toolkit.scaling.specialisation import trained_decoder

UNIT = "bits per token"


@dataclass(frozen=True)
class ContextUse:
    """One trained model's use of its context.

    Attributes:
        run, family: whose.
        seen: middles of buckets of tokens seen, the input itself included.
        bits: per token predicted, in each bucket.
        farthest: tokens back that a path through the layers' masks leads to, within the context.
    """

    run: str
    family: str
    seen: tuple[float, ...]
    bits: tuple[float, ...]
    farthest: int


def context_use(study: StudyFolder, rows: Sequence[RunResult], windows: Tensor) -> list[ContextUse]:
    """That of each family's best run at the largest budget it has.

    Args:
        study: the folder with the runs' checkpoints.
        rows: with finite losses.
        windows: of validation, (windows, context + 1).
    """
    best = []
    for family in dict.fromkeys(row.family for row in rows):
        mine = [row for row in rows if row.family == family]
        largest = max(row.budget for row in mine)
        best.append(min((row for row in mine if row.budget == largest), key=lambda row: row.bits_per_byte))
    return [_context_use(study.run(row.run), row, windows) for row in best]


def _context_use(folder: Path, row: RunResult, windows: Tensor) -> ContextUse:
    decoder, context = trained_decoder(folder), windows.shape[1] - 1
    edges = [0]
    while edges[-1] < context:
        edges.append(min(max(edges[-1] + 1, round(edges[-1] * 1.6)), context))
    found = loss_by_position(lambda ids: decoder(ids).logits, windows, edges, batch_size=32)
    seen = tuple((each.low + each.high + 1) / 2 for each in found)
    return ContextUse(
        row.run,
        row.family,
        seen,
        tuple(each.nll.mean / math.log(2) for each in found),
        farthest(decoder.config, context),
    )


def farthest(config: DecoderConfig, context: int) -> int:
    """How many tokens back the last position can draw on, through all layers."""
    layers = [parse_sparsity(block.attention.pattern) for block in config.blocks]
    reached = reach(layers, context)[-1]
    return context - 1 - int(reached.nonzero()[0])


def plot_context_use(uses: Sequence[ContextUse], path: Path) -> ReportFigure:
    """Bits per token against tokens seen, a line for each family, with its interactive twin."""
    figure, looks = blank_figure(6.4, 3.8), family_looks(use.family for use in uses)
    axis = figure.subplots()
    axis.set_xscale("log")
    for use in uses:
        colour, marker = looks[use.family]
        axis.plot(use.seen, use.bits, color=colour, marker=marker, ms=4, lw=1.4)
    plain_ticks(axis)
    axis.grid(True, color="0.93", lw=0.7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlabel("tokens seen", fontsize=9)
    axis.set_ylabel(f"validation loss ({UNIT})", fontsize=9)
    draw_legend(figure, looks)
    reaches = ", ".join(f"`{use.family}` {use.farthest}" for use in uses)
    caption = (
        "Attention's reach: what more context is worth to each family's best run at the largest budget, by how many "
        f"tokens it has seen. Through all their layers, masks lead back at most this many tokens: {reaches}."
    )
    drawn = save_figure(figure, path, caption, [use.run for use in uses])
    return drawn.backed(interactive=_interactive(uses))


def _interactive(uses: Sequence[ContextUse]) -> go.Figure:
    figure, looks = blank(height=420), family_looks(use.family for use in uses)
    for use in uses:
        colour, marker = looks[use.family]
        figure.add_scatter(
            x=use.seen,
            y=use.bits,
            mode="lines+markers",
            name=f"{use.family} (reach {use.farthest})",
            line={"color": colour},
            marker={"symbol": SYMBOLS[marker], "size": 7},
        )
    figure.update_xaxes(title_text="tokens seen", **log_axis(value for use in uses for value in use.seen))
    figure.update_yaxes(title_text=f"validation loss ({UNIT})")
    return figure
