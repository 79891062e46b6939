"""From settings to layers, and the law of the start: variances do not depend on width or depth."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from toolkit.attention import Causal, SlidingWindow
from toolkit.layers import Block, FeedForward, MoE
from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.models.build import build_attention, build_block, build_feed_forward
from toolkit.routing import TopKRouter

DENSE = BlockConfig(AttentionConfig(heads=4), FeedForwardConfig(hidden_dim=256))
MOE = BlockConfig(AttentionConfig(heads=4), MoEConfig(hidden_dim=64, num_experts=8, top_k=4, shared_experts=1))


def decoder(layers: int, block: BlockConfig = DENSE, dim: int = 128, tied_head: bool = True) -> Decoder:
    torch.manual_seed(0)
    return Decoder(DecoderConfig(vocab_size=300, dim=dim, blocks=(block,) * layers, tied_head=tied_head))


def test_attention_is_built_as_it_is_set() -> None:
    config = AttentionConfig(heads=6, kv_heads=2, head_dim=4, pattern="Causal() & SlidingWindow(7)", rope_base=300.0)
    layer = build_attention(config, dim=20)
    assert (layer.heads, layer.kv_heads, layer.head_dim) == (6, 2, 4)
    assert layer.pattern == Causal() & SlidingWindow(7)
    assert layer.rope is not None
    assert (layer.rope.head_dim, layer.rope.base) == (4, 300.0)
    assert layer.qkv_proj.shape == (40, 20)


def test_attention_left_to_its_defaults() -> None:
    layer = build_attention(AttentionConfig(heads=4, rope_base=None), dim=20)
    assert (layer.kv_heads, layer.head_dim, layer.pattern, layer.rope) == (4, 5, Causal(), None)


def test_a_dense_and_a_sparse_feed_forward_are_built_as_they_are_set() -> None:
    dense = build_feed_forward(FeedForwardConfig(hidden_dim=12), dim=8)
    assert isinstance(dense, FeedForward)
    assert dense.down_proj.shape == (8, 12)
    moe = build_feed_forward(MoEConfig(hidden_dim=12, num_experts=5, top_k=2, shared_experts=3), dim=8)
    assert isinstance(moe, MoE)
    assert moe.experts.down_proj.shape == (5, 8, 12)
    assert moe.shared is not None
    assert moe.shared.down_proj.shape == (8, 36)
    assert isinstance(moe.router, TopKRouter)
    assert (moe.router.top_k, tuple(moe.router.weight.shape)) == (2, (5, 8))


@pytest.mark.parametrize(("balance", "z_loss"), [(0.02, 0.003), (0.02, 0.0), (0.0, 0.003), (0.0, 0.0)])
def test_a_loss_is_there_with_its_coefficient_unless_that_is_zero(balance: float, z_loss: float) -> None:
    config = MoEConfig(hidden_dim=12, num_experts=5, top_k=2, balance=balance, z_loss=z_loss)
    moe = build_feed_forward(config, dim=8)
    assert isinstance(moe, MoE)
    assert isinstance(moe.router, TopKRouter)
    found = {loss.name: loss.coefficient for loss in moe.router.losses}
    assert found == {name: value for name, value in (("balance", balance), ("z", z_loss)) if value}


def test_a_blocks_norms_get_the_epsilon() -> None:
    block = build_block(DENSE, dim=16, norm_eps=0.25)
    assert isinstance(block, Block)
    assert block.attention_norm.eps == block.feed_forward_norm.eps == 0.25


@pytest.mark.parametrize("layers", [1, 2, 8])
@pytest.mark.parametrize("block", [DENSE, MOE], ids=["dense", "moe"])
def test_every_matrix_has_the_standard_deviation_stated_for_it(layers: int, block: BlockConfig) -> None:
    model = decoder(layers, block, tied_head=False)
    seen = set()
    for name, parameter in model.named_parameters():
        last = name.rsplit(".", 2)[-1] if name.endswith("_proj") else name
        if "norm" in name:
            assert (parameter == 1).all(), name
            continue
        if name in ("embedding.weight", "head.weight"):
            expected = 128**-0.5
        elif last in ("o_proj", "down_proj"):
            expected = parameter.shape[-1] ** -0.5 * (2 * layers) ** -0.5
        else:
            expected = parameter.shape[-1] ** -0.5
        seen.add(last)
        tolerance = 4 / (2 * parameter.numel()) ** 0.5  # four standard errors of a standard deviation
        assert float(parameter.detach().std()) == pytest.approx(expected, rel=tolerance), name
        assert abs(float(parameter.detach().mean())) < 4 * expected / parameter.numel() ** 0.5, name
    assert {"o_proj", "down_proj", "qkv_proj", "gate_up_proj", "embedding.weight", "head.weight"} <= seen


def test_a_tied_head_is_the_embedding_itself() -> None:
    tied, untied = decoder(1), decoder(1, tied_head=False)
    assert tied.head is None
    assert "head.weight" not in tied.state_dict()
    assert untied.head is not None
    assert untied.head.weight.shape == untied.embedding.weight.shape
    assert not torch.equal(untied.head.weight, untied.embedding.weight)


@pytest.mark.parametrize("block", [DENSE, MOE], ids=["dense", "moe"])
@pytest.mark.parametrize("tied_head", [True, False])
@pytest.mark.parametrize("dim", [64, 256])
def test_logits_start_with_variance_one_at_any_width(block: BlockConfig, tied_head: bool, dim: int) -> None:
    model = decoder(3, block, dim, tied_head)
    with torch.no_grad():
        logits = model(torch.randint(300, (4, 64))).logits
    assert float(logits.var()) == pytest.approx(1.0, rel=0.15)


def residual_variance(model: Decoder) -> float:
    """Variance of what the final norm receives."""
    seen: list[torch.Tensor] = []
    hook = model.norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(torch.randint(300, (4, 64)))
    hook.remove()
    return float(seen[0].var())


@pytest.mark.parametrize("block", [DENSE, MOE], ids=["dense", "moe"])
def test_the_residual_streams_variance_does_not_grow_with_depth(block: BlockConfig) -> None:
    shallow, deep = residual_variance(decoder(2, block)), residual_variance(decoder(16, block))
    assert deep < 2 * shallow  # unshrunk it would be about eight times as much


def test_the_embedding_starts_the_stream_small_and_branches_carry_it() -> None:
    model = decoder(2)
    assert float(model.embedding.weight.detach().var()) == pytest.approx(1 / 128, rel=0.05)
    assert residual_variance(model) > 5 / 128


def test_two_models_of_one_seed_are_equal_and_of_another_not() -> None:
    first, again = decoder(2, MOE), decoder(2, MOE)
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    torch.manual_seed(1)
    other = Decoder(first.config)
    assert not torch.equal(first.embedding.weight, other.embedding.weight)


def test_no_two_layers_or_experts_start_alike() -> None:
    model = decoder(2, MOE)
    first, second = (block.feed_forward for block in model.blocks)
    assert isinstance(first, MoE)
    assert isinstance(second, MoE)
    assert not torch.equal(first.experts.down_proj, second.experts.down_proj)
    assert not torch.equal(first.experts.down_proj[0], first.experts.down_proj[1])
    assert all(isinstance(module, nn.Module) for module in (first, second))
