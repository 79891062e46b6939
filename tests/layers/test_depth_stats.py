"""Shares of what a mixture-of-depths layer chose, against counting one token after another."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from toolkit.layers import DepthStats

SIZES = st.integers(1, 6)


def drawn(seed: int, batch: int, length: int) -> tuple[Tensor, ...]:
    """selected, predicted, best, valid."""
    tables = torch.rand(4, batch, length, generator=torch.Generator().manual_seed(seed)) < 0.5
    return tables.unbind()


def by_hand(*batches: tuple[Tensor, ...]) -> list[float]:
    """selected, predicted, accuracy."""
    rows = [row for tables in batches for row in zip(*(table.flatten().tolist() for table in tables), strict=True)]
    real = [row for row in rows if row[3]]
    agreed = [row for row in real if row[1] == row[2]]
    parts = [sum(row[0] for row in real), sum(row[1] for row in real), len(agreed)]
    return [part / len(real) if real else 0.0 for part in parts]


def shares(stats: DepthStats) -> list[float]:
    return [stats.selected, stats.predicted, stats.accuracy]


@given(st.integers(0, 2**31), SIZES, SIZES, SIZES)
def test_shares_of_batches_added_up_are_those_of_all_their_tokens(
    seed: int, batch: int, length: int, more: int
) -> None:
    one, other = drawn(seed, batch, length), drawn(seed + 1, more, length)
    assert shares(DepthStats.of(*one)) == pytest.approx(by_hand(one))
    merged = DepthStats.of(*one) + DepthStats.of(*other)
    assert shares(merged) == pytest.approx(by_hand(one, other))
    assert shares(DepthStats.none() + merged) == shares(merged)


def test_without_a_mask_no_token_is_padding() -> None:
    selected, predicted, best, _ = drawn(0, 3, 5)
    everyone = torch.ones(3, 5, dtype=torch.bool)
    assert shares(DepthStats.of(selected, predicted, best)) == by_hand((selected, predicted, best, everyone))


def test_it_packs_into_one_vector_and_moves_as_one() -> None:
    stats = DepthStats.of(*drawn(1, 2, 7))
    for same in (DepthStats.unpack(stats.pack()), stats.cpu(), stats.all_reduce()):
        assert torch.equal(same.pack(), stats.pack())
    assert stats.pack().dtype == torch.float64
