from __future__ import annotations

import pytest
import torch
from selection_textbook import masked_attention
from torch import Tensor

from toolkit.attention.interface import attention
from toolkit.attention.patterns import Causal, Chunked, Sinks
from toolkit.attention.selection.routed import attend_blocks, by_chunks, choose, grouped

BATCH, KV_HEADS, LENGTH, BLOCK = 2, 2, 32, 4


def drawn(planes: int, slots: int) -> tuple[Tensor, Tensor]:
    """Random earlier blocks for each query, some missing, and the mask of what is seen with the own block."""
    chosen = torch.full((BATCH * KV_HEADS, planes, LENGTH, slots), -1)
    seen = (Causal() & Chunked(BLOCK)).mask(LENGTH, LENGTH).expand(BATCH * KV_HEADS, planes, -1, -1).clone()
    for b in range(BATCH * KV_HEADS):
        for g in range(planes):
            for i in range(LENGTH):
                blocks = torch.randperm(i // BLOCK)[: int(torch.randint(slots + 1, ()))]
                chosen[b, g, i, torch.randperm(slots)[: len(blocks)]] = blocks
                for block in blocks.tolist():
                    seen[b, g, i, block * BLOCK : (block + 1) * BLOCK] = True
    return chosen, seen


@pytest.mark.parametrize(("group", "planes"), [(1, 1), (3, 1), (3, 3)])
@pytest.mark.parametrize("slots", [1, 3])
def test_one_softmax_over_what_was_seen_and_the_chosen(group: int, planes: int, slots: int) -> None:
    chosen, seen = drawn(planes, slots)
    sizes = (group * KV_HEADS, 8), (KV_HEADS, 8), (KV_HEADS, 5)
    inputs = [torch.randn(BATCH, h, LENGTH, d, dtype=torch.float64, requires_grad=True) for h, d in sizes]
    nearby = attention(*inputs, Causal() & Chunked(BLOCK), return_lse=True)
    out, lse = attend_blocks(nearby, *inputs, chosen, BLOCK, attention)
    seen = seen.expand(-1, group, -1, -1).reshape(BATCH, KV_HEADS * group, LENGTH, LENGTH)
    expected = masked_attention(*inputs, seen)
    scores = inputs[0] @ inputs[1].repeat_interleave(group, dim=1).mT * 8**-0.5
    expected_lse = scores.masked_fill(~seen, -torch.inf).logsumexp(dim=-1)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(lse, expected_lse, rtol=0, atol=1e-12)
    losses = [
        (x.sin() * torch.arange(x.shape[-1])).sum() + y.cos().sum() for x, y in ((out, lse), (expected, expected_lse))
    ]
    for one, other in zip(*(torch.autograd.grad(loss, inputs) for loss in losses), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_the_sink_joins_once_with_what_was_seen() -> None:
    chosen, _ = drawn(1, 2)
    q = torch.randn(BATCH, KV_HEADS, LENGTH, 8, dtype=torch.float64)
    sink = torch.tensor([0.3, -1.0], dtype=torch.float64)
    out, lse = attend_blocks(
        attention(q, q, q, Sinks(1) & Causal(), return_lse=True), q, q, q, chosen, BLOCK, attention
    )
    nearby = attention(q, q, q, Sinks(1) & Causal(), sink_logits=sink, return_lse=True)
    with_sink, lse_with_sink = attend_blocks(nearby, q, q, q, chosen, BLOCK, attention)
    torch.testing.assert_close(lse_with_sink, torch.logaddexp(lse, sink[:, None]), rtol=0, atol=1e-12)
    torch.testing.assert_close(with_sink, out * (lse - lse_with_sink).exp()[..., None], rtol=0, atol=1e-12)


def test_no_slots_add_nothing() -> None:
    q = torch.randn(1, 2, 8, 4)
    nearby = attention(q, q, q, return_lse=True)
    none = torch.empty(2, 1, 8, 0, dtype=torch.int64)
    assert attend_blocks(nearby, q, q, q, none, BLOCK, attention) is nearby
    for one, other in zip(
        attend_blocks(nearby, q, q, q, torch.full((2, 1, 8, 3), -1), BLOCK, attention), nearby, strict=True
    ):
        torch.testing.assert_close(one, other)


def test_what_no_query_chose_may_be_nan() -> None:
    chosen = torch.zeros(1, 1, LENGTH, 1, dtype=torch.int64)
    chosen[..., : 2 * BLOCK, :] = -1
    q, k = torch.randn(1, 1, LENGTH, 8), torch.randn(1, 1, LENGTH, 8, requires_grad=True)
    poisoned = torch.where((torch.arange(LENGTH) // BLOCK == 1)[:, None], torch.nan, k)
    nearby = attention(q, k, k, Causal() & Chunked(BLOCK), return_lse=True)
    out, _ = attend_blocks(nearby, q, poisoned, poisoned, chosen, BLOCK, attention)
    clean, _ = attend_blocks(nearby, q, k, k, chosen, BLOCK, attention)
    torch.testing.assert_close(out, clean, rtol=0, atol=0)
    assert torch.autograd.grad(out.sum(), k)[0].isfinite().all()


def test_choose() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0], [5.0, 1.0, 9.0], [0.0, 0.0, 7.0]])
    allowed = torch.tensor([[True, True, True], [True, True, False], [False, False, False]])
    assert choose(scores, allowed, 2).tolist() == [[1, 2], [0, 1], [-1, -1]]
    assert choose(scores, allowed, 4).tolist() == [[1, 2, 0, -1], [0, 1, -1, -1], [-1] * 4]
    assert choose(scores[:, :0], allowed[:, :0], 2).tolist() == [[-1, -1]] * 3


def test_by_chunks_covers_every_query(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.attention.selection.routed.SCORES", 70)
    asked = []

    def chosen(first: int, stop: int) -> Tensor:
        asked.append((first, stop))
        return torch.arange(first, stop)[None, :, None]

    assert by_chunks(chosen, 10, 17)[0, :, 0].tolist() == list(range(10))
    assert asked == [(0, 4), (4, 8), (8, 10)]
    assert by_chunks(chosen, 3, 1000)[0, :, 0].tolist() == [0, 1, 2]  # one at a time, at the least


def test_grouped_puts_query_heads_with_their_key_head() -> None:
    x = torch.arange(2 * 6).view(2, 6, 1)
    assert grouped(x, 3)[..., 0].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]
