"""Tables are read by batch row and head, whatever axes the index has."""

from __future__ import annotations

import pytest
import torch

from toolkit.attention.patterns.lookup import lookup

TABLE = torch.arange(2 * 3 * 5 * 4).view(2, 3, 5, 4)


@pytest.mark.parametrize("by_batch", [False, True])
@pytest.mark.parametrize(("batch", "heads"), [(2, 3), (1, 3), (2, 1), (1, 1)])
def test_one_index_or_two_against_a_loop(by_batch: bool, batch: int, heads: int) -> None:
    table = TABLE[:batch, :heads]
    row = torch.tensor([[[3, 0, 2]], [[1, 1, 4]]]) if by_batch else torch.tensor([3, 0, 2])
    column = torch.tensor([1, 0])
    one = lookup(table, row, axes=1, shared=False)
    both = lookup(table, row[..., None], column[None], axes=2, shared=False)
    rows = 2 if by_batch else batch
    assert one.shape == (rows, heads, 3, 4) and both.shape == (rows, heads, 3, 2)
    for b in range(rows):
        for h in range(heads):
            own = row[b, 0] if by_batch else row
            assert torch.equal(one[b, h], table[b % batch, h][own])
            assert torch.equal(both[b, h], table[b % batch, h][own][:, column])


def test_a_shared_table_keeps_the_axes_of_the_index() -> None:
    table = TABLE[0, 0]
    row = torch.tensor([[[3, 0]], [[1, 1]]])
    assert torch.equal(lookup(table, row, axes=1, shared=True), table[row])
    assert lookup(table, row[0, 0], axes=1, shared=True).shape == (2, 4)
