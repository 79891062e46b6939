"""Interactive figures of what families cost: frontiers, multipliers, loss against all parameters.

Each is the twin of a PNG of the report: :mod:`toolkit.scaling.figures` draws the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from toolkit.checks import require
from toolkit.scaling.claims import number, times
from toolkit.scaling.figures import flops_text, hull_line
from toolkit.scaling.figures.cost import KINDS, finite_entries, interval_ends
from toolkit.scaling.laws.isoflop import cells_of, isoflop_minima
from toolkit.scaling.multiplier import ComputeMultiplier, Estimate
from toolkit.scaling.page.style import LOSS, MUTED, bars, blank, cell_text, label, log_axis, look
from toolkit.scaling.results import RunResult


def frontier(rows: Sequence[RunResult], multipliers: Sequence[ComputeMultiplier] = ()) -> go.Figure:
    """The best loss against FLOPs (left) and against seconds (right), a line for each family.

    ``multipliers`` are drawn as dotted lines from the family's best to the baseline's cost of the same loss; those that
    are not finite have no place on the axis.

    Raises:
        ValueError: no rows, or a loss that is not finite.
    """
    require(bool(rows), "rows", rows, "at least one finished run")
    minima, cells, looks = isoflop_minima(rows), cells_of(rows), look(row.family for row in rows)
    figure = blank(2, titles=("equal FLOPs", "equal seconds"), height=440, shared=True)
    for family, style in looks.items():
        members = [cell for cell in cells if cell.family == family]
        best = [minimum for minimum in minima if minimum.family == family]
        group = {"legendgroup": family, "name": label(family)}
        figure.add_scatter(
            x=[one.budget for one in best],
            y=[one.loss for one in best],
            mode="lines+markers",
            line_color=style["color"],
            marker={"size": 9, **style},
            hovertext=[
                f"<b>{label(family)}</b><br>{number(one.budget)} FLOPs<br>{one.loss:.4f} bits per byte" for one in best
            ],
            hoverinfo="text",
            row=1,
            col=1,
            **group,
        )
        figure.add_scatter(
            x=[cell.seconds for cell in members],
            y=[cell.loss for cell in members],
            mode="markers",
            opacity=0.55,
            marker={"size": 7, **style},
            hovertext=[cell_text(cell) for cell in members],
            hoverinfo="text",
            showlegend=False,
            row=1,
            col=2,
            **group,
        )
        x, y = hull_line(members)
        line = {"x": x[::8], "y": y[::8], "line_color": style["color"], "mode": "lines"}
        figure.add_scatter(**line, showlegend=False, hoverinfo="skip", row=1, col=2, **group)
    reached = [_draw_reach(figure, entry, looks[entry.family]["color"]) for entry in multipliers]
    by_flops = [minimum.budget for minimum in minima] + [cost for costs, _ in reached for cost in costs]
    by_seconds = [cell.seconds for cell in cells] + [cost for _, costs in reached for cost in costs]
    figure.update_xaxes(log_axis(by_flops, flops_text), title_text="training compute (FLOPs)", col=1)
    figure.update_xaxes(log_axis(by_seconds), title_text="training time on this machine (s)", col=2)
    figure.update_yaxes(title_text=LOSS, col=1)
    return figure


def _draw_reach(figure: go.Figure, entry: ComputeMultiplier, colour: str) -> tuple[list[float], list[float]]:
    """Both multipliers of one entry; the costs that their lines end at, FLOPs and seconds."""
    ends: tuple[list[float], list[float]] = ([], [])
    by_flops = entry.budget, entry.loss, entry.equal_flops
    panels = (by_flops, (entry.seconds, entry.loss_at_seconds, entry.equal_seconds))
    for at, (cost, loss, estimate) in enumerate(panels):
        if 0 < estimate.value < math.inf:
            ends[at].append(cost * estimate.value)
            figure.add_scatter(
                x=[cost, cost * estimate.value],
                y=[loss, loss],
                mode="lines+markers",
                line={"color": colour, "dash": "dot"},
                marker={"symbol": "line-ns-open", "size": 9, "color": colour},
                showlegend=False,
                legendgroup=entry.family,
                hovertext=f"{label(entry.family)}: {times(estimate)} times",
                hoverinfo="text",
                row=1,
                col=at + 1,
            )
    return ends


def multipliers(entries: Sequence[ComputeMultiplier]) -> go.Figure:
    """The multiplier against compute at equal FLOPs and at equal seconds, with 95% intervals; 1 is the baseline.

    An interval without an upper end is drawn far beyond the others. A multiplier that is not finite has no place on the
    axis; the caption of the PNG (``plot_multipliers``) names it.

    Raises:
        ValueError: no entries.
    """
    require(bool(entries), "entries", entries, "at least one family's multiplier")
    figure = blank(2, titles=tuple(KINDS.values()), shared=True)
    drawn, named = [1.0], set[str]()
    looks = dict(look(family for entry in entries for family in (entry.family, entry.baseline)))
    del looks[entries[0].baseline]  # which is the dotted line
    for family, style in looks.items():
        for column, kind in enumerate(KINDS, start=1):
            mine = finite_entries([entry for entry in entries if entry.family == family], kind)
            known = [(entry.budget, getattr(entry, kind)) for entry in mine]
            if not known:
                continue
            values = [estimate.value for _, estimate in known]
            low, high = interval_ends(estimate for _, estimate in known)
            figure.add_scatter(
                x=[budget for budget, _ in known],
                y=values,
                error_y=bars(values, low, high),
                mode="lines+markers",
                marker={"size": 9, **style},
                line_color=style["color"],
                name=label(family),
                legendgroup=family,
                showlegend=family not in named,
                hovertext=[_estimate_text(family, kind, *point) for point in known],
                hoverinfo="text",
                row=1,
                col=column,
            )
            named.add(family)
            drawn += [value for value in (*values, *low, *high) if value > 0]
    _draw_even(figure, [entry.budget for entry in entries])
    for column, kind in enumerate(KINDS, start=1):
        if not finite_entries(entries, kind):
            place = {"xref": "x domain", "yref": "y domain", "x": 0.5, "y": 0.6, "showarrow": False}
            figure.add_annotation(text="not finite", font_color=MUTED, **place, row=1, col=column)
    figure.update_xaxes(
        log_axis((entry.budget for entry in entries), flops_text), title_text="training compute (FLOPs)"
    )
    figure.update_yaxes(log_axis(drawn))
    figure.update_yaxes(title_text="compute multiplier", col=1)
    return figure


def _draw_even(figure: go.Figure, budgets: Sequence[float]) -> None:
    """The line at 1 of both panels: a trace, since a shape across a panel without points is drawn at NaN."""
    ends = [min(budgets) / 1.2, max(budgets) * 1.2]
    line = {"mode": "lines", "line": {"color": MUTED, "dash": "dot"}, "hoverinfo": "skip", "showlegend": False}
    for column in range(1, len(KINDS) + 1):
        figure.add_scatter(x=ends, y=[1, 1], **line, row=1, col=column)


def total_parameters(rows: Sequence[RunResult]) -> go.Figure:
    """Loss against every parameter, used or not: what a family reaches for the memory its weights take.

    Means over seeds; a line joins the widths of one family and budget, the largest budget's drawn strongest.

    Raises:
        ValueError: no rows, or a loss that is not finite.
    """
    require(bool(rows), "rows", rows, "at least one finished run")
    looks, budgets = look(row.family for row in rows), sorted({row.budget for row in rows})
    figure = blank()
    for cell_rows in _curves(rows):
        cells, first = cells_of(cell_rows), cell_rows[0]
        totals = {row.dim: row.parameters for row in cell_rows}
        strength = 0.35 + 0.65 * (budgets.index(first.budget) + 1) / len(budgets)
        text = [f"{cell_text(cell)}<br>{totals[cell.dim]:,} parameters in all" for cell in cells]
        figure.add_scatter(
            x=[totals[cell.dim] for cell in cells],
            y=[cell.loss for cell in cells],
            mode="lines+markers",
            marker={"size": 9, **looks[first.family]},
            line_color=looks[first.family]["color"],
            opacity=strength,
            name=f"{label(first.family)}, {flops_text(first.budget)} FLOPs",
            legendgroup=first.family,
            hovertext=text,
            hoverinfo="text",
        )
    figure.update_layout(legend_groupclick="toggleitem")
    figure.update_xaxes(log_axis(row.parameters for row in rows), title_text="parameters in all (used or not)")
    figure.update_yaxes(title_text=LOSS)
    return figure


def _curves(rows: Sequence[RunResult]) -> list[list[RunResult]]:
    """The runs of each family and budget."""
    keys = sorted({(row.family, row.budget) for row in rows})
    return [[row for row in rows if (row.family, row.budget) == key] for key in keys]


def _estimate_text(family: str, kind: str, budget: float, estimate: Estimate) -> str:
    flag = "<br>extrapolated" if estimate.extrapolated else ""
    return f"<b>{label(family)}</b>, {number(budget)} FLOPs<br>{times(estimate)} at {KINDS[kind]}{flag}"
