"""Random blocks: drawn without replacement, evenly, the same in whatever order they are asked for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pattern_cases import drawn_blocks
from scipy import stats

from toolkit.attention.patterns import Causal, Documents, Pattern, PerDocument, RandomBlocks


def rows_of(pattern: RandomBlocks, blocks: int, head: int = 0) -> list[list[int]]:
    """The blocks that each block of queries sees."""
    tokens = blocks * pattern.block
    mask = pattern.mask(tokens, tokens)
    mask = mask if mask.ndim == 2 else mask[0, head]
    grid = mask[:: pattern.block, :: pattern.block]
    assert torch.equal(grid.repeat_interleave(pattern.block, 0).repeat_interleave(pattern.block, 1), mask)
    return [row.nonzero().flatten().tolist() for row in grid]


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
@pytest.mark.parametrize("count", [1, 3, 9])
def test_they_are_those_drawn_one_by_one_from_what_is_left(seed: int, count: int) -> None:
    both = RandomBlocks(count, 2, seed)
    assert rows_of(both, 12) == [sorted(drawn_blocks(row, 12, count, seed, 0)) for row in range(12)]
    causal = RandomBlocks(count, 2, seed, causal=True)
    assert rows_of(causal, 12) == [sorted(drawn_blocks(row, row, count, seed, 0)) for row in range(12)]


def test_as_many_as_asked_for_or_all_there_are() -> None:
    assert [len(row) for row in rows_of(RandomBlocks(4, 3, 1), 9)] == [4] * 9
    assert [len(row) for row in rows_of(RandomBlocks(4, 3, 1), 3)] == [3] * 3
    assert [len(row) for row in rows_of(RandomBlocks(4, 3, 1, causal=True), 9)] == [0, 1, 2, 3, 4, 4, 4, 4, 4]


def test_causal_draws_are_of_earlier_blocks_and_do_not_depend_on_the_number_of_keys() -> None:
    pattern = RandomBlocks(3, 4, 5, causal=True)
    short, long = pattern.mask(30, 30), pattern.mask(57, 57)
    assert torch.equal(long[:30, :30], short)
    assert not (short & ~Causal().mask(30, 30)).any()
    assert torch.equal(pattern.mask(1, 57), long[-1:])


def test_every_block_is_drawn_as_often() -> None:
    blocks, rows, count = 10, 4000, 3
    drawn = RandomBlocks(count, 1, 3)._drawn(torch.arange(rows), blocks, axes=1)
    times = torch.bincount(drawn.flatten(), minlength=blocks).tolist()
    assert stats.chisquare(times).pvalue > 1e-3
    # Pairs as well: what is drawn first says nothing of what is drawn second.
    pairs = torch.bincount(drawn[:, 0] * blocks + drawn[:, 1], minlength=blocks**2)
    expected = [
        rows * sum(1 for c in range(b + 1, blocks)) / (blocks * (blocks - 1) * (blocks - 2) / 6)
        for a in range(blocks)
        for b in range(a + 1, blocks - 1)
    ]
    seen = [int(pairs[a * blocks + b]) for a in range(blocks) for b in range(a + 1, blocks - 1)]
    assert stats.chisquare(seen, expected).pvalue > 1e-3


def test_heads_draw_for_themselves_when_told_to() -> None:
    pattern = RandomBlocks(2, 2, 3, per_head=4)
    assert pattern.planes == (1, 4)
    rows = [rows_of(pattern, 16, head) for head in range(4)]
    assert all(rows[a] != rows[b] for a in range(4) for b in range(a))
    for head in range(4):
        assert rows[head] == rows_of(pattern.for_head(head), 16)  # type: ignore[arg-type]
    assert rows[0] == rows_of(RandomBlocks(2, 2, 3), 16)


def test_another_seed_draws_others() -> None:
    assert rows_of(RandomBlocks(2, 2, 3), 16) != rows_of(RandomBlocks(2, 2, 4), 16)
    assert rows_of(RandomBlocks(2, 2, 3), 16) != rows_of(RandomBlocks(2, 2, 3 + 2**32), 16)


def test_in_a_document_they_are_drawn_from_its_own_blocks() -> None:
    lengths = [[9, 5, 14]]
    pattern = RandomBlocks(2, 3, 0)
    packed = PerDocument(Documents.from_lengths(lengths), pattern)
    seen, start = packed.mask(28, 28)[0, 0], 0
    for length in lengths[0]:
        stop = start + length
        assert torch.equal(seen[start:stop, start:stop], pattern.mask(length, length))
        start = stop
    assert packed.area(28, 28) == sum(pattern.area(length, length) for length in lengths[0])
    # A document that has come in part is as long as that part.
    assert torch.equal(packed.mask(24, 24)[0, 0, 14:, 14:], pattern.mask(10, 10))
    assert packed.area(24, 24) == sum(pattern.area(length, length) for length in (9, 5, 10))


def test_a_million_tokens_cost_their_draws() -> None:
    n = 2**20
    assert RandomBlocks(3, 64, 0).area(n, n) == 3 * 64 * n


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: RandomBlocks(0, 4, 0), "per_query_block=0: it must be a positive integer"),
        (lambda: RandomBlocks(1, 0, 0), "block=0: it must be a positive integer"),
        (lambda: RandomBlocks(1, 4, -1), r"seed=-1: it must be an integer from 0 to 2\^63 - 1"),
        (lambda: RandomBlocks(1, 4, 2**63), "seed="),
        (lambda: RandomBlocks(1, 4, 0, causal=1), "causal=1: it must be True or False"),  # type: ignore[arg-type]
        (lambda: RandomBlocks(1, 4, 0, per_head=True), "per_head=True: it must be the number of query heads, or False"),
        (lambda: RandomBlocks(1, 4, 0, per_head=-2), "per_head=-2"),
        (lambda: RandomBlocks(1, 4, 0, head=-1), "head=-1"),
    ],
)
def test_bad_settings_are_named(make: Callable[[], Pattern], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()
