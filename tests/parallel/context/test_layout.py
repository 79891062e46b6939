"""Layouts share out every position once, and balance what they say they balance."""

from __future__ import annotations

import pytest
import torch

from toolkit.parallel.context import Layout


@pytest.mark.parametrize("kind", ["zigzag", "contiguous"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_every_position_is_held_once(kind: str, ranks: int) -> None:
    layout = Layout(kind, ranks, 24)
    held = [layout.positions(rank).tolist() for rank in range(ranks)]
    assert sorted(position for own in held for position in own) == list(range(24))
    assert {len(own) for own in held} == {24 // ranks}
    assert all(own == sorted(own) for own in held)
    assert layout.held()[layout.place()].tolist() == list(range(24))


def test_zigzag_gives_each_rank_a_chunk_from_either_end() -> None:
    layout = Layout("zigzag", 3, 12)
    assert [layout.positions(rank).tolist() for rank in range(3)] == [[0, 1, 10, 11], [2, 3, 8, 9], [4, 5, 6, 7]]
    assert torch.equal(layout.place(), layout.held().argsort())


@pytest.mark.parametrize(
    ("kind", "length", "message"),
    [
        ("zigzag", 12, "length=12: it must be a multiple of 8: 4 ranks of 2 chunks in the zigzag layout"),
        ("contiguous", 10, "length=10: it must be a multiple of 4: 4 ranks of 1 chunks in the contiguous layout"),
        ("striped", 8, "layout='striped': it must be one of 'zigzag', 'contiguous'"),
        ("zigzag", 0, "length=0: it must be positive"),
    ],
)
def test_what_cannot_be_shared_is_refused(kind: str, length: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Layout(kind, 4, length)
