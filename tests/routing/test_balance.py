"""Balance losses: their value at balance and at collapse, their gradient, and other people's code."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from toolkit.routing import LoadBalancingLoss, RouterZLoss


def routed(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """What a router hands its losses: logits, probabilities, experts."""
    probabilities = logits.softmax(dim=-1)
    return logits, probabilities, probabilities.topk(top_k).indices.flatten()


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_balance_is_hugging_faces_over_top_k(top_k: int) -> None:
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits = torch.randn(33, 8).requires_grad_()
    ours = LoadBalancingLoss(1.0)(*routed(logits, top_k))
    theirs = torch.as_tensor(load_balancing_loss_func((logits,), num_experts=8, top_k=top_k)) / top_k
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(ours, logits)
    (expected,) = torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


def test_switchs_own_loss_is_the_top_1_case() -> None:
    from transformers.models.switch_transformers.modeling_switch_transformers import load_balancing_loss_func

    logits, probabilities, expert = routed(torch.randn(33, 8), 1)
    theirs = load_balancing_loss_func(probabilities[None], expert[None])
    torch.testing.assert_close(LoadBalancingLoss(1.0)(logits, probabilities, expert), theirs)


@pytest.mark.parametrize("coefficient", [0.0, 0.01, 3.0])
@pytest.mark.parametrize(("num_experts", "top_k"), [(4, 1), (4, 2), (6, 3), (5, 5)])
def test_balance_is_the_coefficient_when_every_expert_gets_its_share(
    coefficient: float, num_experts: int, top_k: int
) -> None:
    tokens = 2 * num_experts
    expert = (torch.arange(tokens)[:, None] + torch.arange(top_k)).flatten() % num_experts
    uniform = torch.full((tokens, num_experts), 1 / num_experts)
    loss = LoadBalancingLoss(coefficient)(uniform.log(), uniform, expert)
    assert float(loss) == pytest.approx(coefficient, rel=1e-6)


@pytest.mark.parametrize(("num_experts", "top_k"), [(4, 1), (4, 2), (6, 3), (5, 5)])
def test_balance_at_collapse_is_the_coefficient_times_experts_over_top_k(num_experts: int, top_k: int) -> None:
    # All tokens share the same K experts, which share the probability: E * K * (1 / K) * (1 / K).
    logits = torch.full((7, num_experts), -torch.inf)
    logits[:, :top_k] = 0.0
    loss = LoadBalancingLoss(0.5)(*routed(logits, top_k))
    assert float(loss) == pytest.approx(0.5 * num_experts / top_k, rel=1e-6)


@given(st.integers(0, 2**31), st.integers(1, 20), st.integers(2, 6), st.data())
def test_balance_is_its_formula_summed_in_python(seed: int, tokens: int, num_experts: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, num_experts))
    logits = torch.randn(tokens, num_experts, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    _, probabilities, expert = routed(logits, top_k)
    expected = 0.0
    for i in range(num_experts):
        received = sum(chosen == i for chosen in expert.tolist()) / (tokens * top_k)
        expected += received * sum(row[i] for row in probabilities.tolist()) / tokens
    loss = LoadBalancingLoss(0.1)(logits, probabilities, expert)
    assert float(loss) == pytest.approx(0.1 * num_experts * expected, rel=1e-12)


def test_counts_carry_no_gradient_only_probabilities_do() -> None:
    logits, probabilities, expert = routed(torch.randn(10, 4, dtype=torch.float64), 2)
    probabilities = probabilities.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(LoadBalancingLoss(0.3)(logits, probabilities, expert), probabilities)
    share = torch.bincount(expert, minlength=4).double() / 20
    torch.testing.assert_close(gradient, (0.3 * 4 * share / 10).expand(10, 4), rtol=1e-12, atol=0)


def test_a_step_down_the_gradient_evens_the_load_out() -> None:
    torch.manual_seed(1)
    logits = (torch.randn(64, 4) + torch.tensor([2.0, 0.0, 0.0, 0.0])).requires_grad_()
    loss = LoadBalancingLoss(1.0)
    before = torch.bincount(routed(logits, 1)[2], minlength=4) / 64
    assert before.max() > 0.5
    for _ in range(300):
        (gradient,) = torch.autograd.grad(loss(*routed(logits, 1)), logits)
        logits = (logits - 5 * gradient).detach().requires_grad_()
    share = torch.bincount(routed(logits, 1)[2], minlength=4) / 64
    assert share.max() < 0.5


def test_over_the_global_batch_ranks_average_to_the_loss_of_all_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits = torch.randn(2, 12, 5, dtype=torch.float64, requires_grad=True)
    whole = LoadBalancingLoss(1.0)(*routed(logits.flatten(0, 1), 2))
    (expected,) = torch.autograd.grad(whole, logits)
    others = [torch.bincount(routed(logits[1 - rank], 2)[2], minlength=5).double() for rank in range(2)]
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    losses = []
    for rank in range(2):
        monkeypatch.setattr(dist, "all_reduce", lambda counts, rank=rank: counts.add_(others[rank]))
        losses.append(LoadBalancingLoss(1.0, over="global")(*routed(logits[rank], 2)))
    mean = torch.stack(losses).mean()
    torch.testing.assert_close(mean, whole, rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(mean, logits)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-15)


def test_over_the_batch_never_communicates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", lambda _: pytest.fail("all_reduce was called"))
    inputs = routed(torch.randn(6, 4), 2)
    local = LoadBalancingLoss(over="batch")(*inputs)
    monkeypatch.undo()
    assert torch.equal(local, LoadBalancingLoss(over="global")(*inputs))


def test_z_loss_is_switchs() -> None:
    from transformers.models.switch_transformers.modeling_switch_transformers import router_z_loss_func

    logits = torch.randn(3, 11, 8)
    flat = logits.flatten(0, 1).requires_grad_()
    ours = RouterZLoss(1.0)(*routed(flat, 2))
    torch.testing.assert_close(ours, router_z_loss_func(logits))
    (gradient,) = torch.autograd.grad(ours, flat)
    # d/dz mean(lse^2) = 2 lse softmax(z) / tokens.
    expected = 2 * flat.logsumexp(-1, keepdim=True) * flat.softmax(-1) / 33
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-5, atol=1e-7)


def test_z_loss_is_zero_where_the_normaliser_is_one_and_scales_with_its_coefficient() -> None:
    balanced = torch.full((5, 4), 0.25).log()
    assert float(RouterZLoss(1.0)(*routed(balanced, 1))) == pytest.approx(0.0, abs=1e-12)
    inputs = routed(torch.randn(5, 4), 1)
    torch.testing.assert_close(RouterZLoss(0.3)(*inputs), 0.3 * RouterZLoss(1.0)(*inputs))


@pytest.mark.parametrize("loss", [LoadBalancingLoss, RouterZLoss])
def test_a_negative_coefficient_is_refused(loss: type) -> None:
    with pytest.raises(ValueError, match=r"coefficient=-0\.1: it must be 0 or more"):
        loss(-0.1)


def test_an_unknown_group_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"over='sequence'.*'global', 'batch'"):
        LoadBalancingLoss(over="sequence")


def test_the_losses_have_the_names_they_are_logged_under() -> None:
    assert (LoadBalancingLoss().name, RouterZLoss().name) == ("balance", "z")
    assert (LoadBalancingLoss().coefficient, RouterZLoss().coefficient) == (0.01, 0.001)
