"""Every pattern and composition is its definition, pair by pair; areas are exact; positions are absolute."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pattern_cases import BATCH, CASES, HEADS, PLACES, STATIC, Case, LargestTensor, Place, brute_force
from torch import Tensor

from toolkit.attention.patterns import (
    Causal,
    Documents,
    Full,
    Sinks,
    SlidingWindow,
    query_positions,
)


def expanded(mask: Tensor) -> Tensor:
    """With all batch rows and heads."""
    return mask.expand(BATCH, HEADS, *mask.shape[-2:])


@settings(max_examples=120)
@given(CASES, PLACES)
def test_mask_is_the_definition_pair_by_pair_and_area_its_sum(case: Case, place: Place) -> None:
    place.fits(case.pattern)
    mask = case.pattern.mask(*place.args)
    expected = brute_force(case, place)
    assert mask.dtype == torch.bool
    assert torch.equal(expanded(mask), expected)
    assert case.pattern.area(*place.args) == int(mask.sum())
    assert case.pattern.area(*place.args, batch=BATCH, heads=HEADS) == int(expected.sum())
    if case.pattern.planes != (1, 1):
        assert mask.shape[:2] == case.pattern.planes


@settings(max_examples=60)
@given(STATIC, st.integers(1, 12), st.integers(13, 20))
def test_by_default_queries_are_the_last_positions_of_the_keys(case: Case, q_len: int, kv_len: int) -> None:
    last = case.pattern.mask(kv_len, kv_len)[-q_len:]
    assert torch.equal(case.pattern.mask(q_len, kv_len), last)
    assert torch.equal(case.pattern.mask(q_len, kv_len, q_start=kv_len - q_len), last)


@settings(max_examples=60)
@given(STATIC, st.integers(0, 12))
def test_keys_from_kv_start_are_the_columns_from_there(case: Case, kv_start: int) -> None:
    whole = case.pattern.mask(20, 20)
    assert torch.equal(case.pattern.mask(20, 20 - kv_start, q_start=0, kv_start=kv_start), whole[:, kv_start:])


@settings(max_examples=100)
@given(CASES, st.integers(0, HEADS - 1))
def test_for_head_is_the_heads_plane(case: Case, head: int) -> None:
    place = Place(9, 20, None, 0)
    place.fits(case.pattern)
    one = case.pattern.for_head(head)
    assert one.planes[1] == 1
    expected = brute_force(case, place)[:, head : head + 1]
    assert torch.equal(one.mask(*place.args).expand(BATCH, 1, 9, 20), expected)


def test_patterns_are_immutable_and_alike_when_written_alike() -> None:
    pattern = Causal() & (SlidingWindow(512) | ~Sinks(4))
    assert len({pattern, Causal() & (SlidingWindow(512) | ~Sinks(4)), Causal(), Full(), Causal()}) == 3
    assert pattern != Causal() & (SlidingWindow(511) | ~Sinks(4))
    for one, name in ((pattern, "parts"), (Causal(), "planes"), (SlidingWindow(3), "width"), (~Causal(), "part")):
        with pytest.raises(AttributeError):
            setattr(one, name, 4)


@pytest.mark.parametrize("ask", ["mask", "area"])
@pytest.mark.parametrize(
    ("where", "named"),
    [
        ((5, 3), r"q_len=5: it must be at most kv_start \+ kv_len=3"),
        ((2, 3, -1), "q_start=-1: it must be an integer of 0 or more"),
        ((2, 3, 0, -1), "kv_start=-1: it must be an integer of 0 or more"),
        ((0, 3), "q_len=0: it must be positive"),
        ((1, 0), "kv_len=0: it must be positive"),
    ],
)
def test_bad_positions_are_named(ask: str, where: tuple[int, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        getattr(Causal() & Sinks(1), ask)(*where)


def test_full_alone_does_not_mind_more_queries_than_keys() -> None:
    assert Full().mask(5, 3).all()
    assert Full().area(5, 3) == Full().area(5, 3, q_start=-2) == 15


def test_area_refuses_batch_rows_or_heads_that_are_not_the_patterns() -> None:
    ids = Documents(torch.zeros(3, 4, dtype=torch.int64))
    assert ids.area(4, 4) == ids.area(4, 4, batch=3) == 48
    assert ids.area(4, 4, batch=3, heads=5) == 240
    with pytest.raises(ValueError, match="batch=2: it must be 1 or the pattern's own, 3"):
        ids.area(4, 4, batch=2)


def test_rows_that_see_nothing_are_empty_and_count_nothing() -> None:
    assert not Causal().mask(4, 3, 0, 10).any()
    assert Causal().area(4, 3, 0, 10) == 0
    assert SlidingWindow(5).area(4, 3, 100, 0) == 0
    assert (Causal() & ~Causal()).area(6, 6) == 0


def test_query_positions_stand_where_they_are_told() -> None:
    assert query_positions(Causal(), 2, 5, None, 3).tolist() == [6, 7]
    assert query_positions(Causal(), 2, 5, 9, 3).tolist() == [9, 10]


def test_no_tensor_of_the_masks_size_is_made_on_the_way_to_the_area() -> None:
    from toolkit.attention.parse import parse_pattern

    length = 50_000
    for text in (
        "Causal() & (SlidingWindow(4096) | Sinks(4))",
        "SlidingWindow(64) | GlobalTokens(positions=[3, 700, 9000]) | RandomBlocks(3, 64, 0)",
        "Causal() & Strided(128)",
        "Causal() & DilatedWindow(64, 4)",
        "Causal() & Fixed(512, 8)",
        "Causal() & RandomBlocks(3, 64, 0, causal=True, per_head=2)",
    ):
        with LargestTensor() as largest:
            parse_pattern(text).area(length, length)
        assert largest.numel <= 80 * length, text
