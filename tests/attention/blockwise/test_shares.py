"""Shares cover every batch row and head once, in slices of bounded size."""

from __future__ import annotations

import pytest
import torch
from blockwise_cases import banded, pass_of

from toolkit.attention.blockwise import shares as sharing
from toolkit.attention.blockwise.shares import Sizes, shares, tiling
from toolkit.attention.plan import Pass


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("kv_heads", "group"), [(1, 1), (4, 1), (2, 3), (1, 6)])
@pytest.mark.parametrize("operands", [1, 4, 100])
@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("per_batch", [False, True])
def test_every_head_once(
    batch: int,
    kv_heads: int,
    group: int,
    operands: int,
    per_head: bool,
    per_batch: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sharing, "OPERANDS", operands)
    heads = kv_heads * group
    part = pass_of(banded(5, 5, 3, (batch if per_batch else 1, heads if per_head else 1)))
    numbered = torch.arange(batch * heads).view(batch, heads, 1, 1)
    found = []
    for share in shares(part, Sizes(batch, kv_heads, group)):
        mine = share.queries(numbered)
        assert mine.shape[:3] == share.lead
        assert mine.numel() <= max(operands, group)
        found += mine.flatten().tolist()
        if per_head or per_batch:
            wanted = mine.flatten()[0]
            assert share.plane == (int(wanted) // heads if per_batch else 0, int(wanted) % heads if per_head else 0)
        assert (share.batch.stop - share.batch.start == 1) or share.kv == slice(0, kv_heads)
    assert sorted(found) == list(range(batch * heads))


@pytest.mark.parametrize("heads", [(0,), (1, 2), (0, 1, 2, 4, 5), (3, 4, 5), (5, 1)])
def test_a_pass_for_some_heads(heads: tuple[int, ...]) -> None:
    one = pass_of(banded(5, 5, 3))
    part = Pass(None, None, one.first, one.stop, 5, heads)
    numbered = torch.arange(6).view(1, 6, 1, 1)
    found = [int(n) for share in shares(part, Sizes(1, 2, 3)) for n in share.queries(numbered).flatten()]
    assert sorted(found) == sorted(heads)


def test_blocks_are_higher_where_rows_see_more_and_lower_where_heads_share_keys() -> None:
    narrow, middle, wide = (pass_of(torch.ones(1, 1, 8, n, dtype=torch.bool)) for n in (50, 500, 1500))
    rows = [[tiling(part, Sizes(1, 2, group))[0].rows for group in (1, 2, 8)] for part in (narrow, middle, wide)]
    assert rows == sorted(rows)
    assert all(alike == sorted(alike, reverse=True) for alike in rows)
    for part in (narrow, middle, wide):
        cut, operands = tiling(part, Sizes(4, 16, 1))
        assert cut.columns % cut.tile == 0
        assert operands == 2 or operands * cut.rows * min(500, part.n_columns) <= sharing.SCORES
