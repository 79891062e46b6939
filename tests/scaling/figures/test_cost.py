"""Multipliers and totals are drawn where they can be, and the caption names those that cannot."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from png import check, pixels
from synthetic_study import study

from toolkit.scaling.figures import cost
from toolkit.scaling.figures.cost import finite_entries, interval_ends, plot_multipliers, plot_total_parameters
from toolkit.scaling.multiplier import ComputeMultiplier, Estimate, compute_multiplier


@pytest.fixture(scope="module")
def entries() -> list[ComputeMultiplier]:
    return compute_multiplier(study(seeds=2, noise=0.01), "moe", resamples=50)


def test_multipliers(tmp_path: Path, entries: list[ComputeMultiplier]) -> None:
    figure = plot_multipliers(entries, tmp_path / "m.png", ["a", "b"])
    check(figure)
    assert figure.runs == ("a", "b")
    assert "Not finite" not in figure.caption
    moved = [replace(entries[0], equal_flops=replace(entries[0].equal_flops, low=0.5)), *entries[1:]]
    other = plot_multipliers(moved, tmp_path / "other.png")
    assert pixels(figure.path).tobytes() != pixels(other.path).tobytes()  # the interval is drawn


@pytest.mark.parametrize("value", [math.inf, math.nan, 0.0])
def test_what_has_no_place_is_named(tmp_path: Path, entries: list[ComputeMultiplier], value: float) -> None:
    lost = replace(entries[0], equal_seconds=Estimate(value, None, None, True, False))
    figure = plot_multipliers([lost, *entries[1:]], tmp_path / "m.png")
    check(figure)
    assert "Not finite and not drawn: `moe` at 3e11 FLOPs and equal seconds." in figure.caption
    assert finite_entries([lost, *entries[1:]], "equal_seconds") == entries[1:]
    assert len(finite_entries([lost, *entries[1:]], "equal_flops")) == len(entries)


def test_an_empty_panel_says_so_and_has_its_budgets(
    tmp_path: Path, entries: list[ComputeMultiplier], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    save = cost.save_figure
    monkeypatch.setattr(cost, "save_figure", lambda figure, *rest: (drawn.append(figure), save(figure, *rest))[1])
    lost = [replace(entry, equal_seconds=Estimate(math.inf, None, None, True, False)) for entry in entries]
    plot_multipliers(lost, tmp_path / "m.png")
    known, empty = drawn[0].axes
    assert [text.get_text() for text in known.texts] == []
    assert [text.get_text() for text in empty.texts] == ["not finite"]
    low, high = empty.get_xlim()
    assert [tick for tick in empty.get_xticks() if low < tick < high] == sorted({entry.budget for entry in entries})


def test_an_open_interval_reaches_beyond_all_others() -> None:
    estimates = [Estimate(2.0, 1.0, math.inf, False, True), Estimate(5.0, 0.0, 7.0, False, False)]
    low, high = interval_ends(estimates)
    assert low[0] == 1
    assert 0 < low[1] < 0.1  # 0 has no place on a logarithmic axis
    assert high[0] > 7 == high[1]


def test_total_parameters(tmp_path: Path) -> None:
    rows = study(dims=(32, 64))
    figure = plot_total_parameters(rows, tmp_path / "t.png")
    check(figure)
    assert figure.runs == tuple(row.run for row in rows)


def test_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="entries"):
        plot_multipliers([], tmp_path / "m.png")
    with pytest.raises(ValueError, match="rows"):
        plot_total_parameters([], tmp_path / "t.png")
    assert not list(tmp_path.iterdir())
