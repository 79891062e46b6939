"""The isoFLOP figure: every run once, means with the interval of the pooled noise, the parabola, a law's band."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from synthetic_study import study

from toolkit.scaling.laws.isoflop import cells_of, isoflop_minima
from toolkit.scaling.page.isoflop import FittedCurve, isoflop, reading
from toolkit.scaling.results import RunResult


def test_every_run_and_every_minimum_stand_once(rows: list[RunResult]) -> None:
    figure = isoflop(rows)
    small = [trace for trace in figure.data if trace.marker.size == 5]
    drawn = sorted((float(x), float(y)) for trace in small for x, y in zip(trace.x, trace.y, strict=True))
    assert drawn == sorted((row.active_parameters, row.bits_per_byte) for row in rows)
    stars = [(trace.x[0], trace.y[0]) for trace in figure.data if trace.marker.symbol == "star"]
    assert sorted(stars) == sorted((minimum.size, minimum.loss) for minimum in isoflop_minima(rows))
    assert sum(trace.showlegend is True for trace in figure.data) == len({row.family for row in rows})


def test_intervals_of_the_means() -> None:
    """t(0.975, df) sd / sqrt(seeds), sd pooled over cells: here by hand, of 3 seeds in 2 cells."""
    rows = study(seeds=3, noise=0.05, dims=(32,), dense_budgets=(1e12,), sparse_budgets=(1e12,))
    groups = [[row.bits_per_byte for row in rows if row.family == family] for family in ("dense", "moe")]
    sd = math.sqrt(sum(np.var(group, ddof=1) for group in groups) / 2)
    half = stats.t.ppf(0.975, 4) * sd / math.sqrt(3)
    figure = isoflop(rows)
    drawn = [bar for trace in figure.data if trace.error_y.array is not None for bar in trace.error_y.array]
    np.testing.assert_allclose(drawn, [half, half])


def test_one_seed_has_no_interval() -> None:
    figure = isoflop(study(dims=(32, 48, 64)))
    assert all(trace.error_y.array is None for trace in figure.data)  # bars of no length would still have caps
    assert "bars" not in reading(study(dims=(32, 48, 64)))


def test_the_parabola_is_that_of_the_minimum(rows: list[RunResult]) -> None:
    figure = isoflop(rows)
    curves = [trace for trace in figure.data if trace.mode == "lines"]
    fitted = [minimum for minimum in isoflop_minima(rows) if minimum.coefficients is not None]
    assert len(curves) == len(fitted) > 0
    assert {trace.line.dash for trace in curves} <= {"solid", "dot"}
    for minimum in fitted:  # the three means lie on a parabola through three sizes
        cells = [cell for cell in cells_of(rows) if (cell.family, cell.budget) == (minimum.family, minimum.budget)]
        near = [
            trace
            for trace in curves
            if math.isclose(trace.x[0], cells[0].size) and math.isclose(trace.y[0], cells[0].loss, rel_tol=1e-6)
        ]
        assert near
        assert math.isclose(near[0].y[-1], cells[-1].loss, rel_tol=1e-6)


def test_a_law_is_drawn_with_its_band_in_its_familys_panel(rows: list[RunResult]) -> None:
    size = np.array([2e4, 4e4])
    law = FittedCurve("moe", 1e12, size, np.array([2.0, 2.1]), np.array([1.9, 2.0]), np.array([2.2, 2.3]), "law")
    figure = isoflop(rows, [law])
    mine = [trace for trace in figure.data if trace.legendgroup == "law"]
    assert [trace.fill for trace in mine] == ["toself", None]
    assert list(mine[0].y) == [2.2, 2.3, 2.0, 1.9]
    assert list(mine[1].y) == [2.0, 2.1]
    [of_runs] = {
        trace.xaxis
        for trace in figure.data
        if trace.marker.size == 5 and trace.name == "moe" and any(row.budget == 1e12 and row.bits_per_byte == trace.y[0]
        for row in rows)
    }  # fmt: skip
    assert {trace.xaxis for trace in mine} == {of_runs}


def test_the_axis_is_that_of_the_runs_and_not_of_a_wide_band() -> None:
    """All runs, minima and bars are in it, with less room than a fifth of it; the band's 20 bits per byte are not."""
    rows = study(seeds=2, noise=0.03, dims=(32, 48, 64))
    size = np.array([2e4, 4e4])
    law = FittedCurve("moe", rows[0].budget, size, np.full(2, 2.0), np.full(2, -5.0), np.full(2, 20.0), "a law")
    figure = isoflop(rows, [law])
    [(low, high)] = {axis.range for axis in figure.select_yaxes()}
    drawn = [row.bits_per_byte for row in rows] + [minimum.loss for minimum in isoflop_minima(rows)]
    for trace in figure.data:
        if trace.error_y.array is not None:
            drawn += [*np.add(trace.y, trace.error_y.array), *np.subtract(trace.y, trace.error_y.array)]
    assert low < min(drawn) <= max(drawn) < high
    assert high - low < 1.25 * (max(drawn) - min(drawn))
    words = reading(rows, [law])
    for word in ("bars", "dashed", "a law", "bands", "dotted"):
        assert word in words


def test_one_run_has_an_axis() -> None:
    rows = study(dims=(32,), dense_budgets=(1e12,), sparse_budgets=())[:1]
    [(low, high)] = {axis.range for axis in isoflop(rows).select_yaxes()}
    assert low < rows[0].bits_per_byte < high


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="rows"):
        isoflop([])
