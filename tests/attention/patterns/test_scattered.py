"""Dilated windows and the Sparse Transformer's two patterns, and what they are in simpler ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.attention.patterns import (
    Causal,
    Chunked,
    DilatedWindow,
    Fixed,
    Full,
    Pattern,
    SlidingWindow,
    Strided,
)
from toolkit.attention.patterns.combinations import simplest
from toolkit.attention.patterns.scattered import Residue, SummaryKeys

half: Any = 2.5
size = st.integers(1, 9)
PATTERNS = st.one_of(
    st.builds(DilatedWindow, size, size),
    st.builds(Strided, size),
    st.builds(lambda block, part: Fixed(block, min(block, part)), size, size),
)


@settings(max_examples=60)
@given(PATTERNS, st.integers(1, 20), st.integers(0, 9))
def test_the_definition_in_simpler_patterns_is_the_same(pattern: Pattern, kv_len: int, kv_start: int) -> None:
    where = kv_len, kv_len, None, kv_start
    assert torch.equal(pattern.definition.mask(*where), pattern.mask(*where))
    assert torch.equal(simplest(~pattern & Causal()).mask(*where), (~pattern & Causal()).mask(*where))


def test_degenerate_ones_are_the_plain_patterns() -> None:
    n = 12
    assert torch.equal(DilatedWindow(4, 1).mask(n, n), SlidingWindow(4).mask(n, n))
    assert torch.equal(DilatedWindow(1, 5).mask(n, n), torch.eye(n, dtype=torch.bool))
    assert Strided(1).mask(n, n).all()
    assert torch.equal(Strided(n).mask(n, n), SlidingWindow(n).mask(n, n))
    assert torch.equal(Fixed(5, 5).mask(n, n), Full().mask(n, n))
    assert torch.equal(Fixed(n + 1, 1).mask(n, n), Chunked(n + 1).mask(n, n))
    assert Residue(1).mask(n, n).all()


def test_a_causal_dilated_window_is_the_query_and_width_less_one_keys_behind() -> None:
    seen = (Causal() & DilatedWindow(3, 4)).mask(20, 20)
    assert seen[18].nonzero().flatten().tolist() == [10, 14, 18]
    assert seen[5].nonzero().flatten().tolist() == [1, 5]


@pytest.mark.parametrize(("width", "step"), [(1, 3), (3, 2), (2, 5)])
def test_longformers_dilated_window_counts_keys_on_each_side(width: int, step: int) -> None:
    # allenai/longformer: keys i + step * (k - width) for k = 0 ... 2 * width.
    n = 24
    theirs = torch.zeros(n, n, dtype=torch.bool)
    for i in range(n):
        for k in range(2 * width + 1):
            j = i + step * (k - width)
            if 0 <= j < n:
                theirs[i, j] = True
    assert torch.equal(DilatedWindow(width + 1, step).mask(n, n), theirs)


@pytest.mark.parametrize(("width", "step"), [(4, 2), (9, 3)])
def test_attention_gyms_dilated_window_counts_the_span(width: int, step: int) -> None:
    gym = pytest.importorskip("attn_gym.masks")
    from torch.nn.attention.flex_attention import create_mask

    theirs = create_mask(gym.generate_dilated_sliding_window(width, step), None, None, 20, 20, device="cpu")[0, 0]
    assert torch.equal(theirs, DilatedWindow(width // step + 1, step).mask(20, 20))


@pytest.mark.parametrize(("stride", "length"), [(4, 16), (3, 14)])
def test_the_sparse_transformers_columns_are_those_of_its_paper(stride: int, length: int) -> None:
    # Child et al. 2019, section 4.2: A1 = {t, ..., i} with t = max(0, i - l), A2 = {j : (i - j) mod l = 0};
    # fixed: A1 = {j : j // l = i // l}, A2 = {j : j mod l in {t, ..., l}} with t = l - c.
    rows = range(length)
    strided = [[j <= i and (i - j <= stride - 1 or (i - j) % stride == 0) for j in rows] for i in rows]
    summary = 2
    fixed = [[j <= i and (j // stride == i // stride or j % stride >= stride - summary) for j in rows] for i in rows]
    assert (Causal() & Strided(stride)).mask(length, length).tolist() == strided
    assert (Causal() & Fixed(stride, summary)).mask(length, length).tolist() == fixed


def test_summary_keys_are_listed_in_order() -> None:
    assert SummaryKeys(4, 1).columns(10, None).tolist() == [3, 7]
    assert SummaryKeys(4, 2).columns(7, None).tolist() == [2, 3, 6]
    assert SummaryKeys(4, 1).columns(3, None).tolist() == []


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: DilatedWindow(0, 1), "width=0: it must be a positive integer"),
        (lambda: DilatedWindow(1, 0), "dilation=0: it must be a positive integer"),
        (lambda: DilatedWindow(1, half), r"dilation=2\.5"),
        (lambda: Strided(0), "stride=0: it must be a positive integer"),
        (lambda: Strided(half), r"stride=2\.5"),
        (lambda: Fixed(0, 1), "block=0: it must be a positive integer"),
        (lambda: Fixed(4, 0), "summary=0: it must be an integer between 1 and block=4"),
        (lambda: Fixed(4, 5), "summary=5: it must be an integer between 1 and block=4"),
        (lambda: Fixed(4, half), r"summary=2\.5"),
    ],
)
def test_bad_settings_are_named(make: Callable[[], Pattern], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()
