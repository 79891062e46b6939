"""Parts of a softmax put together: the whole, its gradients, and rows that saw nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from toolkit.attention.merge import add_sink, merge


def attend(scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax attention over scores (..., q, k) and values (..., k, d), in the textbook's words."""
    return torch.softmax(scores, dim=-1) @ values, torch.logsumexp(scores, dim=-1)


@pytest.mark.parametrize("cuts", [[7], [3, 4], [1, 5, 1]])
def test_merged_parts_are_the_whole_with_its_gradients(cuts: list[int]) -> None:
    scores = torch.randn(2, 3, 5, 7, dtype=torch.float64, requires_grad=True)
    values = torch.randn(2, 3, 7, 4, dtype=torch.float64, requires_grad=True)
    whole = attend(scores, values)
    parts = [attend(*pair) for pair in zip(scores.split(cuts, -1), values.split(cuts, -2), strict=True)]
    merged = merge(*zip(*parts, strict=True))
    weights = [torch.randn_like(x) for x in whole]
    for mine, theirs in zip(merged, whole, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
    grads = [torch.autograd.grad(x, (scores, values), weights) for x in (merged, whole)]
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_rows_without_keys_stay_zero_with_finite_gradients() -> None:
    outs = [torch.zeros(1, 1, 3, 2, requires_grad=True) for _ in range(2)]
    lses = [torch.tensor([[[-torch.inf, 0.5, -torch.inf]]], requires_grad=True) for _ in range(2)]
    lses[1].data[0, 0, 2] = 1.0
    out, lse = merge(outs, lses)
    assert lse.tolist() == [[[-torch.inf, pytest.approx(0.5 + torch.tensor(2.0).log().item()), 1.0]]]
    assert torch.equal(out, torch.zeros_like(out))
    (out.sum() + lse[lse.isfinite()].sum()).backward()
    for x in (*outs, *lses):
        assert x.grad is not None and x.grad.isfinite().all()


def test_large_logits_do_not_overflow() -> None:
    lses = [torch.tensor([1e4]), torch.tensor([1e4])]
    out, lse = merge([torch.ones(1, 2), torch.zeros(1, 2)], lses)
    torch.testing.assert_close(out, torch.full((1, 2), 0.5))
    torch.testing.assert_close(lse, torch.tensor([1e4 + 0.6931]))


def test_a_sink_is_one_more_logit_without_a_value() -> None:
    scores = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    values = torch.randn(2, 3, 7, 4, dtype=torch.float64)
    sink = torch.randn(3, dtype=torch.float64)
    longer = torch.cat([scores, sink[:, None, None].expand(2, 3, 5, 1)], dim=-1)
    expected = attend(longer, torch.cat([values, torch.zeros(2, 3, 1, 4)], dim=-2))
    for mine, theirs in zip(add_sink(*attend(scores, values), sink), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
    empty_out, empty_lse = add_sink(torch.zeros(1, 3, 1, 4), torch.full((1, 3, 1), -torch.inf), sink.float())
    assert torch.equal(empty_out, torch.zeros(1, 3, 1, 4))
    torch.testing.assert_close(empty_lse[0, :, 0], sink.float())
