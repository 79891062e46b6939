"""The algebra of runs against Python's sets, in the CPU's form and in the one that waits for nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pattern_cases import as_on_a_gpu, held
from torch import Tensor

from toolkit.attention.intervals import FAR, Intervals, covered, normalise, transposed_grid

END = 12
bound = st.integers(-3, END + 3)
ROWS = st.integers(1, 4).flatmap(
    lambda slots: st.lists(st.lists(st.tuples(bound, bound), min_size=slots, max_size=slots), min_size=1, max_size=5)
)
"""Rows of (first, stop): overlapping, empty, out of bounds, in any order."""
forms = pytest.mark.parametrize("form", [nullcontext, as_on_a_gpu])
Form = Callable[[], nullcontext[None]]


def of(rows: list[list[tuple[int, int]]]) -> Intervals:
    runs = torch.tensor(rows)
    return Intervals.clipped(runs[..., 0], runs[..., 1], END)


def sets(rows: list[list[tuple[int, int]]]) -> list[set[int]]:
    return [{x for first, stop in row for x in range(max(0, first), min(stop, END))} for row in rows]


def members(runs: Intervals, columns: int = END) -> list[set[int]]:
    return [set(row.nonzero().flatten().tolist()) for row in held(runs, columns)]


def check_normal(runs: Intervals) -> None:
    assert {runs.first.dtype, runs.stop.dtype} == {torch.int32}
    real = runs.first < FAR
    assert ((runs.stop > runs.first) == real).all() and (runs.stop[~real] == FAR).all()
    assert not (real[..., 1:] & ~real[..., :-1]).any()
    assert (runs.first[..., 1:] > runs.stop[..., :-1])[real[..., 1:]].all()
    assert torch.equal(runs.counts(), real.sum(-1, dtype=torch.int32))


@forms
@given(ROWS)
def test_any_runs_become_sorted_disjoint_ones(form: Form, rows: list[list[tuple[int, int]]]) -> None:
    with form():
        runs = of(rows)
    check_normal(runs)
    assert members(runs) == sets(rows)
    assert runs.sizes().tolist() == [len(row) for row in sets(rows)]


@forms
@given(ROWS, ROWS, st.integers(0, 5), st.integers(6, END))
def test_and_or_complement_are_those_of_sets(
    form: Form, one: list[list[tuple[int, int]]], two: list[list[tuple[int, int]]], begin: int, end: int
) -> None:
    rows = min(len(one), len(two))
    one, two = one[:rows], two[:rows]
    with form():
        a, b = of(one), of(two)
        results = a & b, a | b, a.complement(END), a.complement(end, begin)
    left, right, everything, part = sets(one), sets(two), set(range(END)), set(range(begin, end))
    for runs in results:
        check_normal(runs)
    assert members(results[0]) == [x & y for x, y in zip(left, right, strict=True)]
    assert members(results[1]) == [x | y for x, y in zip(left, right, strict=True)]
    assert members(results[2]) == [everything - x for x in left]
    assert members(results[3]) == [part - x for x in left]


@forms
@given(ROWS)
def test_transposed_is_the_transposed_mask(form: Form, rows: list[list[tuple[int, int]]]) -> None:
    runs = of(rows)
    with form():
        turned, grid = runs.transposed(END), transposed_grid(runs, END)
    for result in (turned, grid):
        check_normal(result)
        assert torch.equal(held(result, len(rows)), held(runs, END).mT)


def test_transposed_keeps_leading_axes_apart() -> None:
    first = torch.tensor([[[[0, 5]], [[2, 9]]], [[[1, 9]], [[0, 4]]]], dtype=torch.int32).mT.contiguous()
    runs = normalise(first, first + 2)
    assert torch.equal(held(runs.transposed(END), 2), held(runs, END).mT)
    assert torch.equal(held(transposed_grid(runs, END), 2), held(runs, END).mT)


@given(ROWS)
def test_covered_takes_runs_in_any_order(rows: list[list[tuple[int, int]]]) -> None:
    runs = torch.tensor(rows).clamp(min=0)
    first, stop = runs[..., 0], runs.amax(dim=-1)
    seen = covered(first, stop, END)
    place = torch.arange(END)
    assert torch.equal(seen, ((place >= first[..., None]) & (place < stop[..., None])).any(dim=-2))


@forms
@given(st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=5))
def test_of_mask_inverts_the_mask(form: Form, rows: list[list[bool]]) -> None:
    mask = torch.tensor(rows)
    with form():
        runs = Intervals.of_mask(mask)
    check_normal(runs)
    assert torch.equal(held(runs, 7), mask)


def test_slots_are_trimmed_where_values_may_be_looked_at() -> None:
    mask = torch.tensor([[True, False, True, False, False, False], [True] * 6])
    assert Intervals.of_mask(mask).slots == 2
    with as_on_a_gpu():
        assert Intervals.of_mask(mask).slots == 4  # as many as six places can hold
    assert (Intervals.of_mask(mask) | Intervals.of_mask(~mask)).slots == 1


def test_the_slots_kept_without_looking_suffice_for_the_most_runs_two_sets_can_share() -> None:
    first, second = torch.tensor([[0, 4, 8]]), torch.tensor([[2, 6, 10]])
    with as_on_a_gpu():
        a, b = normalise(first, first + 3), normalise(second, second + 3)
        shared, whole = a & b, a & Intervals.between(torch.zeros(1), torch.full((1,), 20), 20)
    assert (a.slots, b.slots, shared.slots, whole.slots) == (3, 3, 5, 3)
    assert members(shared, 20) == [{2, 4, 6, 8, 10}]
    assert torch.equal(held(whole, 20), held(a, 20))


def test_positions_beyond_int32_are_clipped_before_they_wrap() -> None:
    far = torch.tensor([2**40])
    assert members(Intervals.between(-far, far, END)) == [set(range(END))]
    assert members(Intervals.between(far, 2 * far, END)) == [set()]


def test_leading_axes_broadcast() -> None:
    one = Intervals.between(torch.zeros(2, 1, 3), torch.tensor([1, 2, 3]).expand(2, 1, 3), END)
    other = Intervals.between(torch.ones(4, 1, dtype=torch.int64).expand(4, 3), torch.full((4, 3), END), END)
    for joined, operator in ((one & other, Tensor.__and__), (one | other, Tensor.__or__)):
        assert joined.first.shape[:-1] == (2, 4, 3)
        assert torch.equal(held(joined, END), operator(held(one, END), held(other, END)))
