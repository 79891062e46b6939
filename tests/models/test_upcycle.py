"""A decoder made sparse gives the dense one's logits, keeps the rest of it apart, and can be trained on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from toolkit.compute import cost
from toolkit.layers import FeedForward, MoE
from toolkit.models import (
    AttentionConfig,
    BlockConfig,
    Decoder,
    DecoderConfig,
    FeedForwardConfig,
    MoEConfig,
    upcycle,
)

DIM, HIDDEN, VOCAB = 32, 24, 50
DENSE = BlockConfig(AttentionConfig(heads=4, kv_heads=2), FeedForwardConfig(HIDDEN))
GRAINS = [(1, 4, 2), (1, 4, 1), (2, 8, 2), (3, 6, 6), (4, 8, 4), (6, 12, 6), (8, 16, 8), (12, 24, 24), (24, 48, 24)]
"""(granularity, num_experts, top_k), for every granularity that divides HIDDEN."""


def dense(*blocks: BlockConfig, tied_head: bool = True, dtype: torch.dtype = torch.float64) -> Decoder:
    decoder = Decoder(DecoderConfig(VOCAB, DIM, blocks or (DENSE,) * 3, tied_head)).to(dtype)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if "norm" in name:  # away from 1, so that a lost one is seen
                parameter.uniform_(0.5, 2.0)
    return decoder


def ids(batch: int = 3, length: int = 20) -> Tensor:
    return torch.randint(VOCAB, (batch, length))


def difference(one: Decoder, two: Decoder) -> float:
    """The largest between their logits, as a share of the largest logit."""
    tokens = ids()
    with torch.no_grad():
        mine, theirs = one(tokens).logits, two(tokens).logits
    return float((mine - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize(("granularity", "num_experts", "top_k"), GRAINS)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("tied_head", [True, False])
def test_logits_are_the_dense_decoder_s(
    granularity: int, num_experts: int, top_k: int, dtype: torch.dtype, atol: float, tied_head: bool
) -> None:
    decoder = dense(tied_head=tied_head, dtype=dtype)
    sparse = upcycle(decoder, num_experts, granularity, top_k)
    assert sparse.embedding.weight.dtype == dtype
    assert difference(sparse, decoder) < atol
    assert all(isinstance(block.feed_forward, MoE) for block in sparse.blocks)


@pytest.mark.parametrize(("granularity", "num_experts", "top_k"), [grain for grain in GRAINS if grain[2] > 1])
def test_the_gradient_of_what_is_common_is_the_dense_decoder_s(granularity: int, num_experts: int, top_k: int) -> None:
    decoder, tokens = dense(tied_head=False), ids()
    sparse = upcycle(decoder, num_experts, granularity, top_k)
    for model in (decoder, sparse):
        model(tokens).logits.square().mean().backward()
    theirs = dict(decoder.named_parameters())
    common = [name for name, _ in sparse.named_parameters() if name in theirs]
    assert len(common) == 3 + 3 * 4
    for name, parameter in sparse.named_parameters():
        if name in common:
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("top_k", [2, 4])
def test_shared_experts_take_their_shards(top_k: int) -> None:
    decoder = dense()
    sparse = upcycle(decoder, 8, 4, top_k, shared_experts=2)
    assert difference(sparse, decoder) < 1e-12
    assert sparse.config.blocks[0].feed_forward == MoEConfig(HIDDEN // 4, 8, top_k, shared_experts=2)


def test_every_other_layer() -> None:
    decoder = dense(*(DENSE,) * 4)
    sparse = upcycle(decoder, 4, 2, layers=range(1, 4, 2))
    assert [type(block.feed_forward) for block in sparse.blocks] == [FeedForward, MoE, FeedForward, MoE]
    assert difference(sparse, decoder) < 1e-12
    rest = upcycle(sparse, 8, 1, 2, layers=[0, 2])  # the other layers, later
    assert [block.feed_forward.num_experts for block in rest.blocks] == [8, 4, 8, 4]
    assert difference(rest, decoder) < 1e-12


def test_layers_that_pass_tokens_by_keep_doing_so() -> None:
    deep = BlockConfig(DENSE.attention, DENSE.feed_forward, depth_capacity=0.25)
    decoder = dense(DENSE, deep)
    sparse = upcycle(decoder, 4, 2, 2)
    assert sparse.config.blocks[1].depth_capacity == 0.25
    assert difference(sparse, decoder) < 1e-12
    assert difference(sparse.eval(), decoder.eval()) < 1e-12


def test_nothing_is_shared_with_the_dense_decoder_which_is_left_as_it_was() -> None:
    decoder, state = dense(tied_head=False).eval(), torch.get_rng_state()
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    sparse = upcycle(decoder, 8, 4)
    assert torch.equal(torch.get_rng_state(), state)
    assert not sparse.training
    with torch.no_grad():
        for parameter in sparse.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(value, before[name]) for name, value in decoder.state_dict().items())
    memory = {parameter.data_ptr() for parameter in decoder.parameters()}
    assert not memory & {parameter.data_ptr() for parameter in sparse.parameters()}


def test_the_seed_decides_the_router_alone() -> None:
    decoder = dense()
    one, again, other = (upcycle(decoder, 8, 2, seed=seed) for seed in (0, 0, 1))
    for (name, mine), same, different in zip(
        one.state_dict().items(), again.state_dict().values(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, same), name
        assert torch.equal(mine, different) == ("router" not in name), name
    routers = [block.feed_forward.router.weight for block in one.blocks]
    assert not torch.equal(routers[0], routers[1])  # each layer draws its own


def test_noise_breaks_equality_by_its_size() -> None:
    decoder = dense()
    distances = [difference(upcycle(decoder, 8, 2, noise=noise), decoder) for noise in (0.0, 1e-4, 1e-2)]
    assert distances[0] < 1e-12 < 1e-6 < distances[1]
    assert 10 < distances[2] / distances[1] < 1_000


@pytest.mark.parametrize(("granularity", "num_experts", "top_k"), [(1, 4, 2), (1, 4, 1), (2, 8, 2), (4, 8, 4)])
def test_after_a_step_no_two_experts_are_the_same(granularity: int, num_experts: int, top_k: int) -> None:
    sparse = upcycle(dense(), num_experts, granularity, top_k)
    optimizer = torch.optim.SGD(sparse.parameters(), lr=0.1)
    sparse(ids(8)).logits.square().mean().backward()
    optimizer.step()
    for block in sparse.blocks:
        for weight in (block.feed_forward.experts.gate_up_proj, block.feed_forward.experts.down_proj):
            for i in range(num_experts):
                for j in range(i):
                    assert not torch.equal(weight[i], weight[j])


def test_the_config_describes_the_result() -> None:
    sparse = upcycle(dense(), 8, 4, 4, balance=0.05, z_loss=0.0)
    again = DecoderConfig.from_dict(sparse.config.to_dict())
    assert again == sparse.config
    assert again.blocks[0] == BlockConfig(DENSE.attention, MoEConfig(HIDDEN // 4, 8, 4, balance=0.05, z_loss=0.0))
    rebuilt = Decoder(again).double()
    rebuilt.load_state_dict(sparse.state_dict())
    assert difference(rebuilt, sparse) == 0


@pytest.mark.parametrize(("granularity", "shared_experts"), [(1, 0), (4, 0), (4, 1)])
def test_by_default_it_costs_what_the_dense_decoder_does_but_for_the_router(
    granularity: int, shared_experts: int
) -> None:
    decoder = dense()
    num_experts = 4 * (granularity - shared_experts)
    before = cost(decoder.config, 64)
    after = cost(upcycle(decoder, num_experts, granularity, shared_experts=shared_experts).config, 64)
    router = 3 * num_experts * DIM
    assert after.total_active_parameters == before.total_active_parameters + router
    assert after.forward_flops["exact"] == pytest.approx(before.forward_flops["exact"] + 2 * router)
    assert after.parameters["experts"] == 4 * 3 * 3 * HIDDEN * DIM * (granularity - shared_experts) // granularity


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"granularity": 5, "num_experts": 5}, "granularity=5: it must be a divisor of hidden_dim=24"),
        ({"granularity": 0}, "granularity=0"),
        ({"granularity": 4, "num_experts": 6}, "num_experts=6: it must be a multiple of .* = 4"),
        ({"granularity": 4, "top_k": 6}, "top_k=6: it must be a multiple of .* = 4"),
        ({"granularity": 2, "top_k": 16}, "top_k=16: it must be at most num_experts=8"),
        ({"top_k": 0}, "top_k=0"),
        ({"shared_experts": 1}, "shared_experts=1: it must be at least 0 and below granularity=1"),
        ({"layers": []}, r"layers=\[\]: it must be at least one layer"),
        ({"layers": [0, 3]}, "layers=3: it must be 0 to 2"),
        ({"layers": [-1]}, "layers=-1"),
        ({"noise": -1.0}, "noise=-1.0"),
        ({"balance": -1.0}, "balance=-1.0"),
    ],
)
def test_what_does_not_fit_is_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"^{named}"):
        upcycle(dense(), **{"num_experts": 8, **settings})


def test_a_decoder_that_is_sparse_already_is_refused() -> None:
    sparse = upcycle(dense(), 4)
    with pytest.raises(ValueError, match=r"^decoder.config.blocks\[0\].feed_forward='MoEConfig': .* a MoE already"):
        upcycle(sparse, 4)


def test_what_is_frozen_stays_frozen_and_the_router_learns() -> None:
    decoder = dense(DENSE)
    decoder.embedding.requires_grad_(False)
    decoder.blocks[0].feed_forward.down_proj.requires_grad_(False)
    sparse = upcycle(decoder, num_experts=6, granularity=4, shared_experts=1, top_k=3, layers=[0])
    moe = sparse.blocks[0].feed_forward
    frozen = {name for name, parameter in sparse.named_parameters() if not parameter.requires_grad}
    here = "blocks.0.feed_forward."
    assert frozen == {"embedding.weight", f"{here}experts.down_proj", f"{here}shared.down_proj"}
    assert moe.router.weight.requires_grad
