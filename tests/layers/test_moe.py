"""The MoE layer: dense in its degenerate cases, Mixtral's in the others, equivariant, and portable."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toolkit.layers import MoE, SwiGLU, auxiliary_losses
from toolkit.routing import Assignment, LoadBalancingLoss, RoutingStats, TopKRouter

BACKENDS = ["reference", "cpu"]


def dense_twin(moe: MoE, expert: int = 0) -> SwiGLU:
    """The dense layer that one expert of ``moe`` is."""
    _, dim, hidden_dim = moe.experts.down_proj.shape
    twin = SwiGLU(dim, hidden_dim).to(moe.experts.down_proj.dtype)
    twin.load_state_dict({name: weight[expert] for name, weight in moe.experts.state_dict().items()})
    return twin


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_expert_is_the_dense_layer_in_value_and_gradient(backend: str) -> None:
    moe = MoE(8, 12, num_experts=1, top_k=1, backend=backend).double()
    twin = dense_twin(moe)
    x = torch.randn(2, 7, 8, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(moe(x), twin(x), rtol=0, atol=1e-13)
    d_out = torch.randn(2, 7, 8, dtype=torch.float64)
    mine = torch.autograd.grad(moe(x), (x, moe.experts.gate_up_proj, moe.experts.down_proj), d_out)
    theirs = torch.autograd.grad(twin(x), (x, twin.gate_up_proj, twin.down_proj), d_out)
    for ours, expected in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours.view_as(expected), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("top_k", [2, 5])
def test_identical_experts_with_normalised_gates_are_the_dense_layer(backend: str, top_k: int) -> None:
    moe = MoE(8, 12, num_experts=5, top_k=top_k, backend=backend).double()
    with torch.no_grad():
        for weight in moe.experts.parameters():
            weight.copy_(weight[:1].expand_as(weight))
    x = torch.randn(9, 8, dtype=torch.float64)
    torch.testing.assert_close(moe(x), dense_twin(moe)(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shared_experts", [1, 2])
def test_shared_experts_are_added_and_stand_as_one_wide_layer(backend: str, shared_experts: int) -> None:
    moe = MoE(8, 12, num_experts=4, top_k=2, shared_experts=shared_experts, backend=backend).double()
    assert moe.shared is not None
    assert moe.shared.down_proj.shape == (8, 12 * shared_experts)
    x = torch.randn(9, 8, dtype=torch.float64)
    whole = moe(x)
    # Each shared expert by itself: the k-th slice of the gate's rows, of the up's and of down's columns.
    gate, up = moe.shared.gate_up_proj.chunk(2)
    for k in range(shared_experts):
        rows = slice(12 * k, 12 * (k + 1))
        one = SwiGLU(8, 12).double()
        one.load_state_dict(
            {"gate_up_proj": torch.cat([gate[rows], up[rows]]), "down_proj": moe.shared.down_proj[:, rows]}
        )
        whole = whole - one(x)
    moe.shared = None
    torch.testing.assert_close(moe(x), whole, rtol=0, atol=1e-13)


@pytest.mark.parametrize("backend", ["reference", "cpu", "grouped_mm"])
def test_value_and_gradients_are_mixtrals(backend: str) -> None:
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    config = MixtralConfig(hidden_size=16, intermediate_size=24, num_local_experts=6, num_experts_per_tok=2)
    config._experts_implementation = "eager"
    theirs = MixtralSparseMoeBlock(config)
    moe = MoE(16, 24, num_experts=6, top_k=2, backend=backend)
    theirs.load_state_dict(
        {name.replace("router", "gate"): weight for name, weight in moe.state_dict().items()}, strict=True
    )
    x = torch.randn(2, 33, 16, requires_grad=True)
    expected, out = theirs(x), moe(x)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    d_out = torch.randn_like(out)
    mine = torch.autograd.grad(out, (x, *moe.parameters()), d_out)
    other = torch.autograd.grad(expected, (x, *theirs.parameters()), d_out)
    assert [name.replace("router", "gate") for name, _ in moe.named_parameters()] == [
        name for name, _ in theirs.named_parameters()
    ]
    for ours, gradient in zip(mine, other, strict=True):
        torch.testing.assert_close(ours, gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_permuting_the_tokens_permutes_the_output(backend: str) -> None:
    moe = MoE(8, 12, num_experts=5, top_k=2, backend=backend).double()
    x, order = torch.randn(17, 8, dtype=torch.float64), torch.randperm(17)
    torch.testing.assert_close(moe(x[order]), moe(x)[order], rtol=0, atol=1e-13)
    # And so a token's output is its own, whoever stands beside it.
    torch.testing.assert_close(moe(x[3:4]), moe(x)[3:4], rtol=0, atol=1e-13)
    assert moe(x.view(1, 17, 1, 8)).shape == (1, 17, 1, 8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_relabelling_router_and_experts_together_changes_nothing(backend: str) -> None:
    moe, relabelled = (MoE(8, 12, num_experts=5, top_k=2, backend=backend).double() for _ in range(2))
    order = torch.randperm(5)
    relabelled.load_state_dict({name: weight[order] for name, weight in moe.state_dict().items()})
    x = torch.randn(17, 8, dtype=torch.float64)
    torch.testing.assert_close(relabelled(x), moe(x), rtol=0, atol=1e-13)
    torch.testing.assert_close(relabelled.stats.load, moe.stats.load[order])
    for name, loss in auxiliary_losses(moe).items():
        torch.testing.assert_close(auxiliary_losses(relabelled)[name], loss)


def test_the_gradient_reaches_the_router_through_the_output_and_through_the_losses() -> None:
    router = TopKRouter(8, 4, 2)
    moe = MoE(8, 12, num_experts=4, top_k=2, router=router)
    y = moe(torch.randn(9, 8))
    for scalar in (y.square().sum(), *auxiliary_losses(moe).values()):
        (gradient,) = torch.autograd.grad(scalar, router.weight, retain_graph=True)
        assert (gradient != 0).any()


def test_bf16_autocast_agrees_with_fp32() -> None:
    moe = MoE(32, 48, num_experts=4, top_k=2, shared_experts=1)
    x = torch.randn(3, 50, 32)
    exact = moe(x)
    losses = auxiliary_losses(moe)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = moe(x)
    torch.testing.assert_close(cast.float(), exact, rtol=0, atol=3e-2 * float(exact.detach().abs().max()))
    for name, loss in auxiliary_losses(moe).items():
        assert torch.equal(loss, losses[name])  # the router is fp32 either way
    cast.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in moe.parameters())


def test_after_a_forward_it_can_be_copied_and_pickled_and_the_copy_computes_the_same() -> None:
    moe = MoE(8, 12, num_experts=4, top_k=2, shared_experts=1)
    x = torch.randn(9, 8)
    y = moe(x)
    for twin in (copy.deepcopy(moe), pickle.loads(pickle.dumps(moe))):
        assert twin.losses == {}
        with pytest.raises(ValueError, match="has not run"):
            _ = twin.stats
        assert torch.equal(twin(x), y)
    assert set(moe.losses) == {"balance", "z"}  # the original keeps its last forward
    y.sum().backward()


def test_its_state_is_its_parameters() -> None:
    moe = MoE(8, 12, num_experts=4, top_k=2)
    moe(torch.randn(3, 8))
    assert set(moe.state_dict()) == {"router.weight", "experts.gate_up_proj", "experts.down_proj"}


def test_stats_are_those_of_the_last_forward() -> None:
    moe = MoE(8, 12, num_experts=4, top_k=2)
    with pytest.raises(ValueError, match="stats: this MoE has not run yet"):
        _ = moe.stats
    moe(torch.randn(100, 8))
    x = torch.randn(5, 3, 8)
    moe(x)
    expected = RoutingStats.of(moe.router(x.flatten(0, 1)))
    assert torch.equal(moe.stats.pack(), expected.pack())
    assert int(moe.stats.counts.sum()) == 5 * 3 * 2
    assert moe.stats.dropped == 0.0


def test_auxiliary_losses_are_means_over_the_layers_that_have_them() -> None:
    balance_only = TopKRouter(8, 4, 2, losses=[LoadBalancingLoss(0.5)])
    both, balance = MoE(8, 12, 4, 2), MoE(8, 12, 4, 2, router=balance_only)
    model = nn.Sequential(both, balance, SwiGLU(8, 12))
    model(torch.randn(9, 8))
    found = auxiliary_losses(model)
    assert set(found) == {"balance", "z"}
    torch.testing.assert_close(found["balance"], (both.losses["balance"] + balance.losses["balance"]) / 2)
    torch.testing.assert_close(found["z"], both.losses["z"])
    assert found["balance"].requires_grad
    assert found["balance"].shape == ()


def test_auxiliary_losses_are_empty_in_evaluation_before_a_forward_and_for_a_dense_model() -> None:
    moe = MoE(8, 12, 4, 2)
    assert auxiliary_losses(moe) == {}
    moe(torch.randn(9, 8))
    assert auxiliary_losses(moe) != {}
    moe.eval()(torch.randn(9, 8))
    assert auxiliary_losses(moe) == {}
    assert auxiliary_losses(SwiGLU(8, 12)) == {}


def test_any_module_that_gives_an_assignment_can_route() -> None:
    class FirstExpertTwice(nn.Module):
        def forward(self, x: Tensor) -> Assignment:
            token = torch.arange(len(x)).repeat_interleave(2)
            logits = x.new_zeros(len(x), 3)
            return Assignment(token, torch.zeros_like(token), x.new_full((2 * len(x),), 0.5), logits, logits)

    moe = MoE(8, 12, num_experts=3, top_k=2, router=FirstExpertTwice())
    x = torch.randn(9, 8)
    torch.testing.assert_close(moe(x), dense_twin(moe)(x))
    assert moe.losses == {}
    assert moe.stats.max_violation == pytest.approx(2.0)


def test_work_counts_the_router_the_chosen_experts_and_the_shared_ones() -> None:
    work = MoE(8, 12, num_experts=16, top_k=2, shared_experts=3).work(10)
    needed = {part.kind: part.needed for part in work}
    assert needed == {
        "router": 10 * 8 * 16,
        "experts": 10 * 2 * 3 * 8 * 12,
        "shared_experts": 10 * 3 * 8 * 12 * 3,
    }


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"shared_experts": -1}, "shared_experts=-1"),
        ({"top_k": 5}, "top_k=5"),
        ({"num_experts": 0}, "num_experts=0"),
        ({"hidden_dim": 0}, "hidden_dim=0"),
        ({"backend": "magic"}, "backend='magic'"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        MoE(**{"dim": 8, "hidden_dim": 12, "num_experts": 4, "top_k": 2, **settings})


@pytest.mark.parametrize(("num_experts", "top_k", "named"), [(6, 2, "num_experts"), (4, 1, "top_k")])
def test_a_router_for_another_layer_is_refused(num_experts: int, top_k: int, named: str) -> None:
    with pytest.raises(ValueError, match=rf"router\.{named}"):
        MoE(8, 16, 4, 2, router=TopKRouter(8, num_experts, top_k))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_no_tokens_are_no_trouble(backend: str) -> None:
    moe = MoE(8, 16, 4, 2, backend=backend)
    x = torch.zeros(0, 8, requires_grad=True)
    y = moe(x)
    (y.sum() + sum(auxiliary_losses(moe).values())).backward()
    assert y.shape == (0, 8)
    assert all(p.grad is not None and (p.grad == 0).all() for p in moe.parameters())
