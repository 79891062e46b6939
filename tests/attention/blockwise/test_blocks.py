"""Blocks hold the visible pairs of their pass, once each, and share what is alike."""

from __future__ import annotations

import pytest
import torch
from blockwise_cases import banded, pass_of, reordered
from torch import Tensor

from toolkit.attention import Causal, SlidingWindow
from toolkit.attention.blockwise import blocks as cut
from toolkit.attention.blockwise.blocks import Tiling, blocks
from toolkit.attention.plan import Pass, plan

TILING = Tiling(rows=16, columns=64, tile=16)


def held(part: Pass, q_len: int, plane: tuple[int, int] = (0, 0), tiling: Tiling = TILING) -> Tensor:
    """How often each pair is visited unmasked: (q_len, n_columns)."""
    times = torch.zeros(q_len, part.n_columns, dtype=torch.long)
    for block in blocks(part, plane, tiling):
        rows = torch.arange(q_len)[block.rows]
        assert len(rows) == block.n_rows <= tiling.rows
        for chunk in block.chunks:
            columns = torch.cat([torch.arange(part.n_columns)[segment] for segment in chunk.segments])
            assert len(columns) == chunk.width <= tiling.columns
            seen = torch.ones(len(rows), chunk.width)
            for where, edge in chunk.edges:
                seen[:, where] = edge.bias(torch.float32).exp()
            times[rows[:, None], columns] += seen.long()
            assert chunk.unseen is None or not seen[:, chunk.unseen].any()
    return times


@pytest.mark.parametrize("lead", [(1, 1), (2, 1), (1, 3), (2, 3)])
def test_every_visible_pair_once_and_no_other(lead: tuple[int, int]) -> None:
    mask = banded(75, 133, 90, lead)
    part = pass_of(mask)
    for b in range(lead[0]):
        for h in range(lead[1]):
            assert torch.equal(held(part, 75, (b, h)), mask[b, h].long())


def test_rows_in_another_order_and_empty_places() -> None:
    mask = banded(75, 133, 90)
    part, covered = reordered(mask, 40, 70)
    assert part.columns is not None
    columns = part.columns[0, 0].long()
    times = torch.zeros_like(mask[0, 0], dtype=torch.long).index_add_(1, columns.clamp(min=0), held(part, 75))
    assert torch.equal(times, covered[0, 0].long())


def test_a_row_that_sees_nothing_is_in_no_block() -> None:
    mask = banded(40, 40, 9)
    mask[..., 7:30, :] = False
    found = [row for block in blocks(pass_of(mask), (0, 0), TILING) for row in torch.arange(40)[block.rows].tolist()]
    assert found == mask.any(-1)[0, 0].nonzero()[:, 0].tolist()


def test_columns_that_nobody_sees_are_marked() -> None:
    mask = torch.ones(1, 1, 16, 30, dtype=torch.bool)
    mask[..., 3], mask[..., 29] = False, False
    (block,) = blocks(pass_of(mask), (0, 0), TILING)
    (chunk,) = block.chunks
    assert chunk.unseen is not None
    assert chunk.unseen.nonzero()[:, 0].tolist() == [3, 29]


def test_a_window_has_two_masks_however_long() -> None:
    (part,) = plan(Causal() & SlidingWindow(128), 4096, 4096)
    made = blocks(part, (0, 0), Tiling(64, 512, 64))
    inner = [edge for block in made[2:] for chunk in block.chunks for _, edge in chunk.edges]
    assert len({id(edge) for edge in inner}) == 2
    assert blocks(part, (0, 0), Tiling(64, 512, 64)) is made


def test_few_masks_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut, "KEPT_BIASES", 3)
    mask = torch.rand(1, 1, 200, 50) < 0.5
    part = pass_of(mask)
    assert torch.equal(held(part, 200), mask[0, 0].long())
    edges = [edge for block in blocks(part, (0, 0), TILING) for chunk in block.chunks for _, edge in chunk.edges]
    assert len(edges) > 10
    assert sum(bool(edge.kept) for edge in edges) == 3
