"""Axes hold what they are made for, families have the colours of the PNGs, bars end where they should."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.scaling.figures import COLOURS, family_looks
from toolkit.scaling.page.style import MUTED, band, bars, cycle, faded, log_axis, look

POSITIVE = st.floats(1e-6, 1e24)


@given(st.lists(POSITIVE, min_size=1, max_size=8))
def test_a_log_axis_holds_its_values_and_has_numbers(values: list[float]) -> None:
    axis = log_axis(values)
    low, high = axis["range"]
    assert all(low < math.log10(value) < high for value in values)
    assert all(low <= math.log10(tick) <= high for tick in axis["tickvals"])
    assert len(axis["tickvals"]) == len(axis["ticktext"])
    assert axis["tickvals"] == sorted(set(axis["tickvals"]))


@given(POSITIVE, st.floats(1.3, 1e6))
def test_and_never_a_lone_one(least: float, ratio: float) -> None:
    assert len(log_axis([least, least * ratio])["tickvals"]) >= 2


def test_what_has_no_logarithm_is_no_part_of_the_axis() -> None:
    assert log_axis([1.0, 10.0, 0.0, math.inf, math.nan]) == log_axis([1.0, 10.0])
    with pytest.raises(ValueError, match="values"):
        log_axis([0.0, math.nan])


def test_families_look_as_in_the_pngs() -> None:
    families = ["moe", "dense", "moe+window"]
    for family, style in look(families).items():
        assert style["color"] == family_looks(families)[family][0]
    assert [look(families)[family]["symbol"] for family in ("dense", "moe", "moe+window")] == [
        "circle", "square", "triangle-up",
    ]  # fmt: skip


def test_black_is_seen_on_a_dark_page() -> None:
    last = [f"family{at}" for at in range(len(COLOURS))]
    assert look(last)[last[-1]]["color"] == MUTED


def test_bars_end_at_the_interval() -> None:
    made = bars([2.0, 3.0], [1.5, math.nan], [4.0, math.nan])
    assert (made["array"], made["arrayminus"]) == ([2.0, 0.0], [0.5, 0.0])


def test_a_band_goes_there_and_back() -> None:
    area = band([1, 2], [0.9, 1.9], [1.1, 2.1], "#0072B2")
    assert list(zip(area.x, area.y, strict=True)) == [(1, 1.1), (2, 2.1), (2, 1.9), (1, 0.9)]
    assert faded("#0072B2", 0.15) == "rgba(0,114,178,0.15)"


def test_a_cycle_repeats_no_look() -> None:
    looks = [tuple(one.values()) for one in cycle(3 * len(COLOURS))]
    assert len(set(looks)) == len(looks)
