"""A pattern's mask is its predicate, its area is the mask's sum, its span the same set once more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
from attention_cases import CASES, GRIDS, Case, Grid, brute_force
from hypothesis import given
from hypothesis import strategies as st

from toolkit.attention import Causal, Full, Pattern, SlidingWindow, Window

SIDES = st.integers(-1, 12)
half: Any = 2.5  # what a config file may hold, whatever the types say


@given(CASES, GRIDS)
def test_mask_is_the_predicate_pair_by_pair(case: Case, grid: Grid) -> None:
    pattern, predicate = case
    mask = pattern.mask(grid.q_len, grid.kv_len, grid.q_start, grid.kv_start)
    assert mask.dtype == torch.bool
    assert torch.equal(mask, brute_force(predicate, grid))


@given(CASES, GRIDS)
def test_area_is_the_sum_of_the_mask(case: Case, grid: Grid) -> None:
    pattern, predicate = case
    area = pattern.area(grid.q_len, grid.kv_len, grid.q_start, grid.kv_start)
    assert area == int(brute_force(predicate, grid).sum())


@given(CASES, GRIDS)
def test_span_is_exactly_the_visible_keys(case: Case, grid: Grid) -> None:
    pattern, predicate = case
    query = torch.arange(grid.q_start, grid.q_start + grid.q_len)
    first, last = pattern.span(query)
    key = torch.arange(grid.kv_start, grid.kv_start + grid.kv_len)
    inside = (key >= first[:, None]) & (key <= last[:, None])
    assert torch.equal(inside, brute_force(predicate, grid))


@given(CASES, st.integers(1, 16), st.integers(0, 16))
def test_by_default_queries_are_the_last_positions_of_the_keys(case: Case, q_len: int, more: int) -> None:
    pattern, _ = case
    kv_len = q_len + more
    assert torch.equal(pattern.mask(q_len, kv_len), pattern.mask(kv_len, kv_len)[more:])
    assert pattern.area(q_len, kv_len) == int(pattern.mask(q_len, kv_len).sum())
    # The same with the keys' own start moved: relative patterns do not notice.
    assert torch.equal(pattern.mask(q_len, kv_len, kv_start=7), pattern.mask(q_len, kv_len))


def test_rows_that_see_nothing_are_empty_and_count_nothing() -> None:
    before = 0, 10  # q_start, kv_start
    assert not Causal().mask(4, 3, *before).any()
    assert Causal().area(4, 3, *before) == 0
    beyond = 100, 0
    assert SlidingWindow(5).area(4, 3, *beyond) == 0
    assert not SlidingWindow(5).mask(4, 3, *beyond).any()


@given(SIDES, SIDES, GRIDS)
def test_and_is_intersection_commutative_associative_and_has_full_as_identity(
    left: int, right: int, grid: Grid
) -> None:
    where = (grid.q_len, grid.kv_len, grid.q_start, grid.kv_start)
    a, b, c = Window(left, right), Causal(), SlidingWindow(6)
    both = (a & b).mask(*where)
    assert torch.equal(both, a.mask(*where) & b.mask(*where))
    assert torch.equal(both, (b & a).mask(*where))
    assert torch.equal(((a & b) & c).mask(*where), (a & (b & c)).mask(*where))
    assert torch.equal((a & Full()).mask(*where), a.mask(*where))
    assert torch.equal((a & a).mask(*where), a.mask(*where))


@pytest.mark.parametrize("width", [1, 2, 5, 9, 40])
def test_closed_forms_of_the_area(width: int) -> None:
    n = 9
    within = min(width, n)
    assert Full().area(n, n) == n * n
    assert Causal().area(n, n) == n * (n + 1) // 2
    causal_window = within * n - within * (within - 1) // 2
    assert (Causal() & SlidingWindow(width)).area(n, n) == causal_window
    assert SlidingWindow(width).area(n, n) == 2 * causal_window - n


def test_area_of_a_million_tokens_needs_no_mask() -> None:
    n, w = 1_000_000, 4_096
    assert Causal().area(n, n) == n * (n + 1) // 2
    assert (Causal() & SlidingWindow(w)).area(n, n) == w * n - w * (w - 1) // 2


def test_degenerate_windows_are_the_plain_patterns() -> None:
    n = 11
    assert torch.equal(Window(-1, -1).mask(n, n), Full().mask(n, n))
    assert torch.equal(Window(-1, 0).mask(n, n), Causal().mask(n, n))
    assert torch.equal(Window(3, 3).mask(n, n), SlidingWindow(4).mask(n, n))
    assert torch.equal((Causal() & SlidingWindow(n)).mask(n, n), Causal().mask(n, n))
    assert torch.equal(SlidingWindow(1).mask(n, n), torch.eye(n, dtype=torch.bool))


@pytest.mark.parametrize("left", [-1, 0, 1, 3])
@pytest.mark.parametrize("right", [-1, 0, 2])
@pytest.mark.parametrize(("q_len", "kv_len"), [(6, 6), (3, 8)])
def test_from_flash_is_flash_attentions_own_rule(left: int, right: int, q_len: int, kv_len: int) -> None:
    # Its README: query i attends to keys between [i + off - left, i + off + right], off = kv_len - q_len.
    off = kv_len - q_len
    expected = torch.tensor(
        [
            [(left < 0 or j >= i + off - left) and (right < 0 or j <= i + off + right) for j in range(kv_len)]
            for i in range(q_len)
        ]
    )
    assert torch.equal(SlidingWindow.from_flash(left, right).mask(q_len, kv_len), expected)


@pytest.mark.parametrize("window", [1, 2, 4, 20])
@pytest.mark.parametrize(("q_len", "kv_len"), [(9, 9), (4, 9), (1, 9)])
def test_window_conventions_are_hugging_faces(window: int, q_len: int, kv_len: int) -> None:
    from transformers import masking_utils as hf

    def theirs(mask_function: Callable[..., Any]) -> torch.Tensor:
        mask = hf.sdpa_mask(
            1, q_len, kv_len, q_offset=kv_len - q_len, mask_function=mask_function, allow_is_causal_skip=False
        )
        assert mask is not None
        return mask[0, 0]

    causal = theirs(hf.sliding_window_causal_mask_function(window))
    both_sides = theirs(hf.sliding_window_bidirectional_mask_function(window))
    assert torch.equal(SlidingWindow.from_hf(window).mask(q_len, kv_len), causal)
    assert torch.equal((Causal() & SlidingWindow(window)).mask(q_len, kv_len), causal)
    assert torch.equal(SlidingWindow.from_hf(window, causal=False).mask(q_len, kv_len), both_sides)
    assert torch.equal(Causal().mask(q_len, kv_len), theirs(hf.causal_mask_function))


def test_a_causal_window_of_w_is_the_w_newest_keys() -> None:
    rows = (Causal() & SlidingWindow(3)).mask(6, 6)
    assert rows.sum(dim=1).tolist() == [1, 2, 3, 3, 3, 3]
    assert rows[5].nonzero().flatten().tolist() == [3, 4, 5]


def test_patterns_are_immutable_hashable_and_print_as_they_are_written() -> None:
    pattern = Causal() & SlidingWindow(512)
    assert str(pattern) == "Causal() & SlidingWindow(width=512)"
    assert pattern == Causal() & SlidingWindow(512)
    assert pattern != Causal() & SlidingWindow(511)
    assert len({pattern, Causal() & SlidingWindow(512), Causal(), Causal()}) == 2
    with pytest.raises(FrozenInstanceError):
        SlidingWindow(3).width = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: SlidingWindow(0), "width=0"),
        (lambda: SlidingWindow(-3), "width=-3"),
        (lambda: SlidingWindow(half), r"width=2\.5: it must be a positive integer"),
        (lambda: Window(half, 0), r"left=2\.5: it must be an integer"),
        (lambda: Window(-2, 0), "left=-2"),
        (lambda: Window(0, -2), "right=-2"),
    ],
)
def test_bad_settings_are_named(make: Callable[[], Pattern], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()


@pytest.mark.parametrize("ask", ["mask", "area"])
def test_bad_positions_are_named(ask: str) -> None:
    def call(pattern: Pattern, *where: int | None) -> object:
        return getattr(pattern, ask)(*where)

    with pytest.raises(ValueError, match=r"q_len=5.*at most kv_start"):
        call(Causal(), 5, 3)
    with pytest.raises(ValueError, match="q_start=-1"):
        call(Causal(), 2, 3, -1)
    with pytest.raises(ValueError, match="q_start=-1"):
        call(Full(), 2, 3, -1)
    with pytest.raises(ValueError, match="kv_start=-1"):
        call(Causal(), 2, 3, 0, -1)
    with pytest.raises(ValueError, match="q_len=0"):
        call(Causal(), 0, 3)
    with pytest.raises(ValueError, match="kv_len=0"):
        call(Causal(), 1, 0)


def test_full_alone_does_not_mind_more_queries_than_keys() -> None:
    assert Full().mask(5, 3).all()
    assert Full().area(5, 3) == 15


def test_and_refuses_what_is_no_pattern() -> None:
    with pytest.raises(TypeError):
        Causal() & 3  # type: ignore[operator]
