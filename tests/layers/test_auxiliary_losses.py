"""The losses of a whole model: means over layers, with their gradients, also where activations are checkpointed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from toolkit.layers import MoE, SwiGLU, auxiliary_losses
from toolkit.routing import LoadBalancingLoss, RouterZLoss, TopKRouter


def test_they_are_means_over_the_layers_that_have_them() -> None:
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


def test_a_collapse_of_two_layers_onto_opposite_experts_is_not_hidden() -> None:
    # Pooled over layers before the product, f and P would be uniform.
    layers = [MoE(8, 12, 2, 1, router=TopKRouter(8, 2, 1, losses=[LoadBalancingLoss(1.0)])) for _ in range(2)]
    for expert, layer in enumerate(layers):
        with torch.no_grad():
            layer.router.weight.zero_()
            layer.router.weight[expert] = 100.0
    model = nn.ModuleList(layers)
    for layer in layers:
        layer(torch.ones(5, 8))
    torch.testing.assert_close(auxiliary_losses(model)["balance"], torch.tensor(2.0))  # E: the worst there is


def test_they_are_empty_in_evaluation_before_a_forward_and_for_a_dense_model() -> None:
    moe = MoE(8, 12, 4, 2)
    assert auxiliary_losses(moe) == {}
    moe(torch.randn(9, 8))
    assert auxiliary_losses(moe) != {}
    moe.eval()(torch.randn(9, 8))
    assert auxiliary_losses(moe) == {}
    assert auxiliary_losses(SwiGLU(8, 12)) == {}


def model(**settings: Any) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (MoE(8, 12, 4, 2, shared_experts=1, **settings) for _ in range(2))
    return nn.Sequential(nn.Linear(8, 8), *layers, nn.Linear(8, 8)).double()


def loss_and_gradients(
    built: nn.Sequential, x: Tensor, use_reentrant: bool | None
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """A step's auxiliary losses and gradients, with every MoE checkpointed in one way or not at all."""
    for module in built:
        if isinstance(module, MoE) and use_reentrant is not None:
            x = checkpoint(module, x, use_reentrant=use_reentrant)
        else:
            x = module(x)
    losses = auxiliary_losses(built)
    gradients = torch.autograd.grad(x.square().mean() + 5 * sum(losses.values()), tuple(built.parameters()))
    return {name: loss.detach() for name, loss in losses.items()}, list(gradients)


@pytest.mark.parametrize("settings", [{}, {"recompute": True}, {"backend": "reference"}], ids=str)
def test_checkpointing_without_reentry_changes_nothing(settings: dict[str, Any]) -> None:
    built, x = model(**settings), torch.randn(3, 10, 8, dtype=torch.float64)
    losses, gradients = loss_and_gradients(built, x, use_reentrant=False)
    expected_losses, expected = loss_and_gradients(model(**settings), x, use_reentrant=None)
    assert losses == expected_losses
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)
    # And so again: what the repeated forward left behind is not in the next step.
    again, repeated = loss_and_gradients(built, x, use_reentrant=False)
    assert again == losses
    assert all(torch.equal(a, b) for a, b in zip(repeated, gradients, strict=True))


def test_reentrant_checkpointing_is_refused_because_the_losses_would_have_no_gradient() -> None:
    built, x = model(), torch.randn(3, 10, 8, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"the balance loss of 1 was computed without a graph.*use_reentrant=False"):
        loss_and_gradients(built, x, use_reentrant=True)


def test_without_gradients_values_can_be_read() -> None:
    moe = MoE(8, 12, 4, 2)
    x = torch.randn(9, 8)
    with torch.no_grad():
        moe(x)
        values = auxiliary_losses(moe)
    with pytest.raises(RuntimeError, match="of the model was computed without a graph"):
        auxiliary_losses(moe)
    moe(x)
    assert {name: loss.detach() for name, loss in auxiliary_losses(moe).items()} == values


def test_a_frozen_router_is_not_missed() -> None:
    moe = MoE(8, 12, 4, 2)
    moe.router.weight.requires_grad_(False)
    moe(torch.randn(9, 8))
    assert set(auxiliary_losses(moe)) == {"balance", "z"}


def test_names_are_those_of_the_losses() -> None:
    router = TopKRouter(8, 4, 2, losses=[LoadBalancingLoss(0.0), LoadBalancingLoss(0.1, "sequence"), RouterZLoss()])
    moe = MoE(8, 12, 4, 2, router=router)
    moe(torch.randn(2, 9, 8))
    assert {name: loss.item() > 0 for name, loss in auxiliary_losses(moe).items()} == {
        "balance": False,
        "sequence_balance": True,
        "z": True,
    }
