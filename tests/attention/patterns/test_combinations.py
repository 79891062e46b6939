"""Patterns joined by ``&``, ``|`` and ``~`` are sets joined alike."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from pattern_cases import BATCH, CASES, HEADS, PLACES, Case, Place

from toolkit.attention.patterns import (
    And,
    BlockMask,
    Causal,
    Documents,
    Full,
    GlobalTokens,
    Not,
    Or,
    Pattern,
    Sinks,
    SlidingWindow,
    Strided,
)
from toolkit.attention.patterns.combinations import FULL, NOTHING, simplest
from toolkit.attention.patterns.tokens import LeadingQueries


@settings(max_examples=25)
@given(CASES, CASES, PLACES)
def test_the_laws_of_sets_hold_for_any_two(x: Case, y: Case, place: Place) -> None:
    a, b = x.pattern, y.pattern
    place.fits(a & b)
    where = place.args

    def every(pattern: Pattern) -> torch.Tensor:
        return pattern.mask(*where).expand(BATCH, HEADS, place.q_len, place.kv_len)

    left, right = every(a), every(b)
    assert torch.equal(every(a & b), left & right)
    assert torch.equal(every(a | b), left | right)
    assert torch.equal(every(~a), ~left)
    sizes = {"batch": BATCH, "heads": HEADS}
    assert (~(a & b)).area(*where, **sizes) == (~a | ~b).area(*where, **sizes)
    assert (a & ~a).area(*where, **sizes) == 0


def test_joining_is_flat_and_not_not_is_nothing() -> None:
    a, b, c = Causal(), SlidingWindow(3), Sinks(2)
    assert (a & b) & c == a & (b & c) == And((a, b, c))
    assert (a | b) | c == a | (b | c) == Or((a, b, c))
    assert (a & b) | c != a & (b | c)
    assert ~~a == a and ~a == Not(a)
    assert hash((a & b) & c) == hash(a & (b & c))


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (Full(), "Full()"),
        (Causal() & (SlidingWindow(4) | Sinks(2)), "Causal() & (SlidingWindow(width=4) | Sinks(count=2))"),
        (Causal() & SlidingWindow(4) | Sinks(2), "Causal() & SlidingWindow(width=4) | Sinks(count=2)"),
        (~(Causal() & Sinks(2)), "~(Causal() & Sinks(count=2))"),
        (~Causal() & ~~Sinks(2), "~Causal() & Sinks(count=2)"),
        (Causal() & Documents(torch.tensor([[0, 0, 1]])), "Causal() & Documents(ids=<1x3>)"),
    ],
)
def test_patterns_print_as_they_are_written(pattern: Pattern, text: str) -> None:
    assert str(pattern) == repr(pattern) == text


def test_parts_must_agree_in_batch_rows_and_device() -> None:
    two, three = (Documents(torch.zeros(n, 4, dtype=torch.int64)) for n in (2, 3))
    for join in (Pattern.__and__, Pattern.__or__):
        with pytest.raises(ValueError, match=r"pattern batch=\[2, 3\]"):
            join(two, three)
    elsewhere = BlockMask(torch.ones(1, 1, dtype=torch.bool, device="meta"), 4)
    with pytest.raises(ValueError, match="one device"):
        two & elsewhere


@pytest.mark.parametrize("other", [3, None, "Causal()"])
def test_only_patterns_join(other: object) -> None:
    with pytest.raises(TypeError):
        Causal() & other  # type: ignore[operator]
    with pytest.raises(TypeError):
        Causal() | other  # type: ignore[operator]


def test_full_and_nothing_drop_out_when_parts_are_replaced() -> None:
    pattern = Causal() & (Sinks(1) | SlidingWindow(2))

    def with_sinks(value: Pattern) -> Pattern:
        return pattern.mapped(lambda part: value if part == Sinks(1) else part)

    assert with_sinks(NOTHING) == Causal() & SlidingWindow(2)
    assert with_sinks(FULL) == Causal()
    assert (~pattern).mapped(lambda part: FULL) == NOTHING
    assert pattern.mapped(lambda part: NOTHING) == NOTHING


def test_simplest_goes_down_to_the_parts_without_a_definition() -> None:
    pattern = ~(Causal() & GlobalTokens(2)) | Strided(3)
    assert simplest(pattern) == ~(Causal() & (Sinks(2) | LeadingQueries(2))) | Strided(3).definition


def test_leaves_say_whether_they_add_or_remove() -> None:
    pattern = Causal() & ~(Sinks(1) | ~SlidingWindow(2))
    assert list(pattern.leaves()) == [(Causal(), True), (Sinks(1), False), (SlidingWindow(2), True)]
