"""Sharing out heads gives what one process gives, for every pattern, and refuses heads that cannot be shared."""

from __future__ import annotations

import context_attention_work
import context_patterns
import pytest
from gloo import run_processes

from toolkit.parallel.context.heads import HeadExchange
from toolkit.parallel.context.layout import Layout


@pytest.mark.parametrize(
    ("ranks", "rows"),
    [(2, 2), (4, 1), pytest.param(2, 8, marks=pytest.mark.slow), pytest.param(4, 8, marks=pytest.mark.slow)],
)
def test_parts_equal_the_whole(ranks: int, rows: int) -> None:
    for errors in run_processes(ranks, context_attention_work.largest_errors, "ulysses", rows):
        assert len(errors) == rows * len(context_patterns.everything())
        wrong = {name: error for name, error in errors.items() if not error < 1e-10}
        assert not wrong


class GroupOf4:
    """Knows its size, which is all that checks ask of it."""

    def size(self) -> int:
        return 4


@pytest.mark.parametrize(
    ("heads", "kv_heads", "message"),
    [
        (6, 2, r"heads=6: it must be a multiple of 4 ranks \(6 / 4 is not whole\)"),
        (12, 6, r"kv_heads=6: it must be a multiple of 4 ranks, or a divisor.*\(6 / 4 and 4 / 6 are not whole\)"),
        (12, 3, r"kv_heads=3: it must be a multiple of 4 ranks, or a divisor"),
    ],
)
def test_heads_that_cannot_be_shared_are_refused_with_the_arithmetic(heads: int, kv_heads: int, message: str) -> None:
    exchange = HeadExchange(GroupOf4(), Layout("contiguous", 4, 8))
    with pytest.raises(ValueError, match=message):
        exchange.check(heads, kv_heads)


@pytest.mark.parametrize(("kv_heads", "copies"), [(1, 4), (2, 2), (4, 1), (8, 1)])
def test_fewer_key_heads_than_ranks_are_copied(kv_heads: int, copies: int) -> None:
    exchange = HeadExchange(GroupOf4(), Layout("contiguous", 4, 8))
    exchange.check(8, kv_heads)
    assert exchange.copies(kv_heads) == copies
