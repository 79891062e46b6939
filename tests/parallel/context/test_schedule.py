"""The schedule holds every visible pair once, and no message that nobody needs; layouts' balance is counted."""

from __future__ import annotations

import pytest
import torch
from context_patterns import BATCH, HEADS, LENGTH, by_position

from toolkit.attention import Causal, GlobalTokens, SlidingWindow
from toolkit.parallel.context import Layout, schedule, visible_pairs

PATTERNS = by_position()


@pytest.mark.parametrize("kind", ["zigzag", "contiguous"])
@pytest.mark.parametrize("name", PATTERNS)
def test_blocks_are_the_mask_cut_up(name: str, kind: str) -> None:
    pattern, layout = PATTERNS[name], Layout(kind, 4, LENGTH)
    whole = pattern.mask(LENGTH, LENGTH).expand(BATCH, HEADS, LENGTH, LENGTH)
    seen = torch.zeros_like(whole)
    for rank in range(4):
        for step in schedule(pattern, layout, rank):
            for block in step.blocks:
                (q_start, q_stop), (start, stop) = block.query, block.key
                assert block.key == layout.chunks(step.source)[block.keys]
                assert block.query == layout.chunks(rank)[block.queries]
                part = block.pattern.mask(q_stop - q_start, stop - start, q_start, start)
                assert part.any()
                seen[..., q_start:q_stop, start:stop] |= part
    assert torch.equal(seen, whole)
    assert sum(visible_pairs(pattern, layout, BATCH, HEADS)) == int(whole.sum())


@pytest.mark.parametrize("name", PATTERNS)
def test_what_one_sends_another_receives(name: str) -> None:
    layout = Layout("zigzag", 4, LENGTH)
    steps = [schedule(PATTERNS[name], layout, rank) for rank in range(4)]
    for rank in range(4):
        for number, step in enumerate(steps[rank]):
            assert steps[step.target][number].source == rank
            assert steps[step.target][number].received == step.sent
            assert set(step.received) == {block.keys for block in step.blocks}


def test_the_steps_of_a_window_that_need_a_message() -> None:
    """Width 5 over parts of 4: a first query reaches 4 keys back, one part and no further."""
    layout = Layout("contiguous", 4, 16)
    steps = [schedule(Causal() & SlidingWindow(5), layout, rank) for rank in range(4)]
    needed = {
        (rank, number) for rank in range(4) for number, step in enumerate(steps[rank]) if number and step.received
    }
    assert needed == {(1, 1), (2, 1), (3, 1)}


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_zigzag_balances_causal_patterns_exactly(ranks: int) -> None:
    length = 48
    pairs = visible_pairs(Causal(), Layout("zigzag", ranks, length))
    assert pairs == (length * (length + 1) // 2 // ranks,) * ranks


def test_contiguous_parts_of_a_causal_pattern_are_as_uneven_as_a_triangle() -> None:
    part = 12
    expected = tuple(rank * part * part + part * (part + 1) // 2 for rank in range(4))
    assert visible_pairs(Causal(), Layout("contiguous", 4, 48)) == expected


def test_contiguous_parts_of_a_window_differ_by_the_first_only() -> None:
    w, part = 5, 12
    pairs = visible_pairs(Causal() & SlidingWindow(w), Layout("contiguous", 4, 48))
    assert pairs == (part * w - w * (w - 1) // 2, part * w, part * w, part * w)


def test_a_pattern_that_says_nothing_of_the_whole_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="positions=32: it must be below the number of tokens, 32"):
        schedule(GlobalTokens(positions=[3, 32]), Layout("contiguous", 2, 32), 0)
    mask = torch.ones(1, 16, dtype=torch.bool)  # of a part, where the whole's is needed
    with pytest.raises(ValueError, match="mask length=16: it must be at least 32"):
        schedule(GlobalTokens(mask=mask), Layout("contiguous", 2, 32), 0)
