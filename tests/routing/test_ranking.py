"""Places in queues and shares of a count, against Python's own sorting and rationals."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from hypothesis import given
from hypothesis import strategies as st

from toolkit.routing.ranking import rank_within, share

ITEMS = st.lists(st.tuples(st.integers(-1, 4), st.integers(-3, 3)), max_size=30)


@given(ITEMS)
def test_a_rank_is_how_many_of_the_queue_have_priority(items: list[tuple[int, int]]) -> None:
    queue, priority = ([item[side] for item in items] for side in (0, 1))
    found = rank_within(torch.tensor(queue, dtype=torch.int64), torch.tensor(priority, dtype=torch.float32)).tolist()
    for n, (q, p) in enumerate(items):
        before = [m for m, (r, other) in enumerate(items) if r == q and (other > p or (other == p and m < n))]
        assert found[n] == len(before)


@given(st.integers(0, 10**7), st.integers(1, 400), st.integers(1, 512))
def test_a_share_is_the_exact_ceiling_for_numbers_and_tensors(count: int, hundredths: int, num_experts: int) -> None:
    expected = math.ceil(Fraction(count * hundredths, 100 * num_experts))
    assert share(count, hundredths / 100, num_experts) == expected
    assert int(share(torch.tensor(count), hundredths / 100, num_experts)) == expected


def test_rows_are_ranked_apart() -> None:
    queue, priority = torch.randint(0, 3, (2, 4, 9)), torch.randint(0, 4, (2, 4, 9))
    found = rank_within(queue, priority)
    for a in range(2):
        for b in range(4):
            assert torch.equal(found[a, b], rank_within(queue[a, b], priority[a, b]))
