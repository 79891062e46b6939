"""A MoE made of a dense layer computes the dense layer, whatever its grain, gates, activation and biases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from toolkit.layers import FeedForward, MoE, ZeroComputationExperts
from toolkit.layers.upcycling import gate_sum, upcycle_feed_forward
from toolkit.routing import Assignment, BiasBalancer, GShardRouter, SinkhornRouter, SwitchRouter, TopKRouter

DIM, HIDDEN = 8, 24
GRAINS = [(1, 4, 2), (2, 8, 4), (3, 6, 3), (4, 8, 8), (6, 12, 6), (8, 16, 8), (12, 24, 12), (24, 48, 24)]
"""(granularity, num_experts, top_k), for every granularity that divides HIDDEN."""


def dense_layer(activation: str = "swiglu", bias: bool = False) -> FeedForward:
    layer = FeedForward(DIM, HIDDEN, activation, bias).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.ndim == 1:
                parameter.normal_()
    return layer


def made_of(dense: FeedForward, granularity: int, num_experts: int, top_k: int, **settings: Any) -> MoE:
    like = {"activation": dense.activation, "bias": dense.down_proj_bias is not None}
    moe = MoE(DIM, HIDDEN // granularity, num_experts, top_k, **like, **settings).double()
    upcycle_feed_forward(dense, moe, generator=torch.Generator().manual_seed(0))
    return moe


def tokens(count: int = 200) -> Tensor:
    return torch.randn(count, DIM, dtype=torch.float64)


def assert_same(moe: MoE, dense: FeedForward, rtol: float = 0, atol: float = 1e-12) -> None:
    x = tokens()
    torch.testing.assert_close(moe(x), dense(x), rtol=rtol, atol=atol)


@pytest.mark.parametrize(("granularity", "num_experts", "top_k"), GRAINS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ["swiglu", "relu2", "gelu", "clamped_swiglu"])
def test_the_output_and_the_input_s_gradient_are_the_dense_layer_s(
    activation: str, bias: bool, granularity: int, num_experts: int, top_k: int
) -> None:
    dense = dense_layer(activation, bias)
    moe, x, out = made_of(dense, granularity, num_experts, top_k), tokens(50), tokens(50)
    x.requires_grad_()
    mine, theirs = moe(x), dense(x)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
    (by_moe,), (by_dense,) = (torch.autograd.grad((y * out).sum(), x) for y in (mine, theirs))
    torch.testing.assert_close(by_moe, by_dense, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("granularity", "num_experts", "top_k"), GRAINS[1:])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_token_gets_every_shard_equally_often(
    granularity: int, num_experts: int, top_k: int, dtype: torch.dtype
) -> None:
    moe = made_of(dense_layer(), granularity, num_experts, top_k).to(dtype)
    assignment = moe.router(tokens(5_000).to(dtype))
    assert isinstance(assignment, Assignment)
    shard = assignment.expert.view(5_000, top_k) % granularity
    often = torch.stack([(shard == one).sum(1) for one in range(granularity)])
    assert (often == top_k // granularity).all()
    if top_k < num_experts:  # and the groups are in use
        assert (assignment.counts() > 0).all()


@pytest.mark.parametrize(("granularity", "shared", "num_experts", "top_k"), [(4, 1, 9, 3), (6, 2, 8, 8), (3, 2, 5, 2)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ["swiglu", "relu2", "gelu"])
def test_shared_experts_are_the_first_shards(
    activation: str, bias: bool, granularity: int, shared: int, num_experts: int, top_k: int
) -> None:
    dense = dense_layer(activation, bias)
    moe = made_of(dense, granularity, num_experts, top_k, shared_experts=shared)
    assert_same(moe, dense)
    assert moe.shared is not None
    width = shared * HIDDEN // granularity
    assert torch.equal(moe.shared.down_proj, dense.down_proj[:, :width])


@pytest.mark.parametrize(
    ("router", "num_experts", "top_k", "granularity"),
    [
        (TopKRouter(DIM, 8, 4, scale=2.5), 8, 4, 2),
        (TopKRouter(DIM, 8, 4, pre_softmax=False, bias=True), 8, 4, 4),
        (TopKRouter(DIM, 8, 4, score="sigmoid", scale=0.5, balancer=BiasBalancer(8)), 8, 4, 2),
        (TopKRouter(DIM, 8, 4, score="sqrt_softplus"), 8, 4, 4),
        (TopKRouter(DIM, 16, 4, groups=4, top_groups=2), 16, 4, 2),
        (GShardRouter(DIM, 6, second="always"), 6, 2, 2),
    ],
    ids=["scale", "post_softmax", "sigmoid", "sqrt_softplus", "groups", "gshard"],
)
def test_with_normalised_gates_it_holds_for_every_router(
    router: TopKRouter, num_experts: int, top_k: int, granularity: int
) -> None:
    dense = dense_layer()
    assert_same(made_of(dense, granularity, num_experts, top_k, router=router), dense)


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "sqrt_softplus"])
@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 1), (8, 3), (4, 4)])
@pytest.mark.parametrize("activation", ["swiglu", "relu2", "gelu"])
def test_with_gates_that_are_not_normalised_it_holds_for_whole_experts(
    score: str, num_experts: int, top_k: int, activation: str
) -> None:
    router = TopKRouter(DIM, num_experts, top_k, score=score, normalize=False, scale=1.5)
    dense = dense_layer(activation)
    moe = made_of(dense, 1, num_experts, top_k, router=router)
    assert_same(moe, dense)
    assert int((moe.stats.counts > 0).sum()) == num_experts  # near zero, but not all tokens to one expert


def test_switch_in_evaluation() -> None:
    dense = dense_layer()
    assert_same(made_of(dense, 1, 8, 1, router=SwitchRouter(DIM, 8)).eval(), dense)


def test_the_sum_of_gates_is_what_the_router_gives() -> None:
    for router in (
        TopKRouter(DIM, 8, 2, scale=3.0),
        TopKRouter(DIM, 8, 2, pre_softmax=False),
        TopKRouter(DIM, 8, 3, score="sigmoid"),
        TopKRouter(DIM, 8, 3, normalize=False),
        TopKRouter(DIM, 8, 3, normalize=False, score="sigmoid", scale=0.5),
        TopKRouter(DIM, 8, 3, normalize=False, score="sqrt_softplus"),
    ):
        if not router.normalize:
            torch.nn.init.zeros_(router.weight)
        sums = router(torch.randn(5, DIM)).weights.sum(1)
        torch.testing.assert_close(sums, torch.full((5,), gate_sum(router)))


def test_in_the_paper_s_setting_the_scale_is_the_paper_s() -> None:
    # E_exp g^2 / K before the softmax, at g = 1, and g after it (He et al. 2024): read off the down projection.
    dense = dense_layer("gelu")  # all of s is in the down projection
    copies, top_k = 8, 2
    before = made_of(dense, 1, copies, top_k, router=TopKRouter(DIM, copies, top_k, normalize=False))
    torch.testing.assert_close(before.experts.down_proj[3], copies / top_k * dense.down_proj)
    after = made_of(dense, 4, 8, 4, router=TopKRouter(DIM, 8, 4, pre_softmax=False))
    torch.testing.assert_close(after.experts.down_proj[0], 4 * dense.down_proj[:, : HIDDEN // 4])


def test_the_gate_is_never_scaled() -> None:
    dense = dense_layer()
    moe = made_of(dense, 4, 8, 4)
    width = HIDDEN // 4
    for expert in range(8):
        shard = expert % 4
        mine, theirs = moe.experts.gate_up_proj[expert], dense.first
        at = slice(shard * width, (shard + 1) * width)
        assert torch.equal(mine[:width], theirs[:HIDDEN][at])
        torch.testing.assert_close(mine[width:], 2 * theirs[HIDDEN:][at])  # sqrt(4)
        torch.testing.assert_close(moe.experts.down_proj[expert], 2 * dense.down_proj[:, at])


def test_noise_is_a_share_of_the_weights_and_spares_the_shared_experts() -> None:
    dense = FeedForward(64, 64)
    plain, noisy = (MoE(64, 32, 4, 2, shared_experts=1) for _ in range(2))
    for moe, noise in ((plain, 0.0), (noisy, 0.1)):
        upcycle_feed_forward(dense, moe, noise, torch.Generator().manual_seed(3))
    assert torch.equal(plain.router.weight, noisy.router.weight)
    for name in ("gate_up_proj", "down_proj"):
        before, after = (getattr(moe.experts, name).detach() for moe in (plain, noisy))
        assert float((after - before).std() / before.std()) == pytest.approx(0.1, rel=0.05)
        assert (after[0] != after[1]).all()  # copies of one shard differ
        assert plain.shared is not None
        assert noisy.shared is not None
        assert torch.equal(getattr(plain.shared, name), getattr(noisy.shared, name))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"hidden_dim": 7}, "moe hidden_dim=7: it must be a divisor of the dense layer's, 24"),
        ({"num_experts": 6}, "num_experts=6: it must be a multiple of"),
        ({"top_k": 2}, "top_k=2: it must be a multiple of"),
        ({"shared_experts": 4}, "shared_experts=4: it must be at least 0 and below granularity=4"),
        ({"activation": "gelu"}, "moe activation=.*'gelu'.*: it must be the dense layer's.*swiglu"),
        ({"bias": True}, "moe.experts parameters="),
        ({"router": SinkhornRouter(DIM, 8, top_k=4)}, "moe.router=SinkhornRouter: it must be a TopKRouter"),
        ({"router": TopKRouter(DIM, 8, 4, normalize=False)}, "router.normalize=False"),
        ({"router": TopKRouter(DIM, 8, 4, groups=4, top_groups=2)}, "experts of a router's group=2"),
        ({"shared_experts": 2, "shared_gate": True}, "moe.shared_gate="),
        ({"zero_experts": ZeroComputationExperts(DIM, zero=1)}, "moe.zero_experts="),
    ],
)
def test_what_does_not_fit_is_named(settings: dict[str, Any], named: str) -> None:
    sizes = {"hidden_dim": 6, "num_experts": 8, "top_k": 4, **settings}
    with pytest.raises(ValueError, match=rf"^{named}"):
        upcycle_feed_forward(dense_layer().float(), MoE(DIM, **sizes))


def test_noise_is_not_negative() -> None:
    with pytest.raises(ValueError, match=r"^noise=-0.1"):
        upcycle_feed_forward(FeedForward(DIM, 24), MoE(DIM, 6, 8, 4), -0.1)
