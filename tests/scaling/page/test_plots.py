"""Interactive figures hold the table's numbers and the multipliers' intervals."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from toolkit.scaling.figures import family_looks
from toolkit.scaling.laws.isoflop import cells_of, isoflop_minima
from toolkit.scaling.multiplier import ComputeMultiplier, Estimate
from toolkit.scaling.page import plots
from toolkit.scaling.results import RunResult


def points(trace) -> list[tuple[float, float]]:  # type: ignore[no-untyped-def]
    return list(zip(map(float, trace.x), map(float, trace.y), strict=True))


def test_frontier(rows: list[RunResult], multipliers: list[ComputeMultiplier]) -> None:
    figure = plots.frontier(rows, multipliers)
    for family in {row.family for row in rows}:
        mine = [trace for trace in figure.data if trace.legendgroup == family]
        best = [(minimum.budget, minimum.loss) for minimum in isoflop_minima(rows) if minimum.family == family]
        cells = [(cell.seconds, cell.loss) for cell in cells_of(rows) if cell.family == family]
        assert points(mine[0]) == best
        assert points(mine[1]) == cells
        assert all(
            trace.line.color in (None, family_looks(["dense", "moe", "moe+window"])[family][0]) for trace in mine
        )
    ends = [points(trace)[1][0] for trace in figure.data if trace.line.dash == "dot"]
    finite = [
        cost * estimate.value
        for entry in multipliers
        for cost, estimate in ((entry.budget, entry.equal_flops), (entry.seconds, entry.equal_seconds))
        if 0 < estimate.value < math.inf
    ]
    assert ends == finite


def test_multipliers_with_their_intervals(known: list[ComputeMultiplier]) -> None:
    figure = plots.multipliers(known)
    for column, kind in enumerate(("equal_flops", "equal_seconds")):
        trace = figure.data[column]
        assert points(trace) == [(entry.budget, getattr(entry, kind).value) for entry in known]
        high = [getattr(entry, kind).high for entry in known]
        low = [getattr(entry, kind).low for entry in known]
        np.testing.assert_allclose(np.add(trace.y, trace.error_y.array), high)
        np.testing.assert_allclose(np.subtract(trace.y, trace.error_y.arrayminus), low)
    assert figure.data[0].line.color == family_looks(["dense", "moe"])["moe"][0]  # the baseline has the first colour


@pytest.fixture
def known() -> list[ComputeMultiplier]:
    """Made up: every interval is known and finite."""
    flops = Estimate(1.5, 1.2, 1.9, False, False)
    entry = ComputeMultiplier("moe", "dense", 1e12, 2.0, flops, 10.0, 2.0, Estimate(0.8, 0.7, 1.1, False, False))
    return [entry, replace(entry, budget=3e12, equal_flops=Estimate(2.5, 2.2, 2.9, True, True))]


def test_a_multiplier_without_a_place_is_not_drawn(known: list[ComputeMultiplier]) -> None:
    lost = replace(known[0], equal_flops=Estimate(math.inf, None, None, True, False))
    figure = plots.multipliers([lost, known[1]])
    assert points(figure.data[0]) == [(3e12, 2.5)]
    assert len(figure.data[1].x) == 2


def test_a_panel_without_a_point_says_so_and_has_its_line(known: list[ComputeMultiplier]) -> None:
    """A family that only the second panel has is in the legend; no shape is drawn over a panel without points."""
    lost = [replace(entry, equal_flops=Estimate(math.inf, None, None, True, False)) for entry in known]
    figure = plots.multipliers(lost)
    assert [trace.name for trace in figure.data if trace.showlegend is not False] == ["moe"]
    assert not figure.layout.shapes
    lines = [trace for trace in figure.data if trace.line.dash == "dot"]
    assert [trace.xaxis for trace in lines] == ["x", "x2"]
    for line in lines:
        assert set(line.y) == {1}
        assert min(line.x) < 1e12 < 3e12 < max(line.x)
    [note] = [note for note in figure.layout.annotations if note.text == "not finite"]
    assert note.xref == "x domain"


def test_total_parameters(rows: list[RunResult]) -> None:
    figure = plots.total_parameters(rows)
    drawn = sorted(point for trace in figure.data for point in points(trace))
    expected = []
    for cell in cells_of(rows):
        [total] = {row.parameters for row in rows if row.run in cell.runs}
        expected.append((total, cell.loss))
    assert drawn == sorted(expected)


def test_nothing_is_refused() -> None:
    for plot in (plots.frontier, plots.multipliers, plots.total_parameters):
        with pytest.raises(ValueError, match="rows|entries"):
            plot([])
