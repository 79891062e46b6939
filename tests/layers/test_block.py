"""A block is its two residual steps, Llama's own, over a dense layer or a MoE."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from toolkit.attention import KeyValueCache
from toolkit.layers import Block, MoE, RotaryEmbedding, SelfAttention, SwiGLU


def build(feed_forward: nn.Module, eps: float = 1e-6) -> Block:
    block = Block(8, SelfAttention(8, 2, rope=RotaryEmbedding(4)), feed_forward, eps)
    with torch.no_grad():  # norms away from 1, so that a lost one is seen
        for norm in (block.attention_norm, block.feed_forward_norm):
            norm.weight.uniform_(0.5, 2.0)
    return block


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps) * weight


@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_it_is_two_pre_norm_residual_steps(eps: float) -> None:
    block = build(SwiGLU(8, 12), eps)
    x = torch.randn(2, 5, 8)
    h = x + block.attention(rms_norm(x, block.attention_norm.weight, eps))
    expected = h + block.feed_forward(rms_norm(h, block.feed_forward_norm.weight, eps))
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("feed_forward", [SwiGLU(8, 12), MoE(8, 12, 4, 2)], ids=["dense", "moe"])
def test_over_a_cache_it_gives_the_same(feed_forward: nn.Module) -> None:
    block = build(feed_forward).double()
    x, cache = torch.randn(2, 7, 8, dtype=torch.float64), KeyValueCache()
    parts = [block(part, cache, 3) for part in torch.split(x, [3, 1, 3], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), block(x), rtol=0, atol=1e-12)
    assert cache.length(3) == 7


def test_with_projections_to_the_stream_at_zero_it_is_the_identity() -> None:
    feed_forward = SwiGLU(8, 12)
    block = build(feed_forward)
    with torch.no_grad():
        block.attention.o_proj.zero_()
        feed_forward.down_proj.zero_()
    x = torch.randn(2, 5, 8)
    assert torch.equal(block(x), x)


def test_every_parameter_gets_a_gradient() -> None:
    block = build(MoE(8, 12, 4, 2))
    block(torch.randn(2, 40, 8)).square().sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name
