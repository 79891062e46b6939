"""Losses leave a layer on its output's node: values unchanged, gradients in together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from toolkit.layers import MoE, auxiliary_losses
from toolkit.layers.joined import join_losses


def parts() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    w = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    return w, w * 2, {"square": w.square().sum(), "cube": (w**3).sum()}


def test_values_are_unchanged() -> None:
    _, y, losses = parts()
    left, with_it = join_losses(y, losses)
    assert torch.equal(left, y)
    assert with_it.keys() == losses.keys()
    assert all(torch.equal(with_it[name], losses[name]) for name in losses)


@pytest.mark.parametrize(("of_y", "of_square", "of_cube"), [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 2, 3)])
def test_gradients_are_unchanged(of_y: float, of_square: float, of_cube: float) -> None:
    def gradient(w: Tensor, y: Tensor, losses: dict[str, Tensor]) -> Tensor:
        scalars = ((of_y, y.sin().sum()), (of_square, losses["square"]), (of_cube, losses["cube"]))
        total = sum(weight * scalar for weight, scalar in scalars if weight)
        return torch.autograd.grad(total, w, retain_graph=True)[0]

    w, y, losses = parts()
    torch.testing.assert_close(gradient(w, *join_losses(y, losses)), gradient(w, y, losses))


def test_they_are_outputs_of_one_node() -> None:
    _, y, losses = parts()
    left, with_it = join_losses(y, losses)
    assert {loss.grad_fn for loss in with_it.values()} == {left.grad_fn}


def test_without_losses_there_is_no_node() -> None:
    _, y, _ = parts()
    assert join_losses(y, {}) == (y, {})


def test_the_output_may_be_changed_in_place() -> None:
    w, y, losses = parts()
    left, with_it = join_losses(y, losses)
    left += 1
    left.mul_(3)
    (gradient,) = torch.autograd.grad(left.sum() + with_it["square"], w)
    torch.testing.assert_close(gradient, 6 + 2 * w)


def test_a_moes_output_and_losses_come_from_one_node() -> None:
    moe = MoE(8, 12, num_experts=4, top_k=2, shared_experts=1)
    y = moe(torch.randn(9, 8))
    nodes = {loss.grad_fn for loss in moe.losses.values()}
    assert len(nodes) == 1
    node = y.grad_fn
    while node is not None and node not in nodes:  # past the view that gives the output its shape
        assert "View" in type(node).__name__
        node = node.next_functions[0][0]
    assert node in nodes


def test_hooks_on_a_moes_output_have_run_when_the_routers_gradient_is_made() -> None:
    moe = MoE(8, 12, num_experts=4, top_k=2)
    order: list[str] = []
    moe.register_full_backward_pre_hook(lambda *_: order.append("output"))
    moe.router.weight.register_hook(lambda _: order.append("router"))
    x = torch.randn(9, 8, requires_grad=True)
    y = moe(x)
    (sum(auxiliary_losses(moe).values()) + y.square().sum()).backward()
    assert order == ["output", "router"]


def test_functional_gradients_go_through() -> None:
    moe, x = MoE(8, 16, 4, 2, backend="reference"), torch.randn(5, 8)
    parameters = dict(moe.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(moe, parameters, (x,)).square().sum()

    found = torch.func.grad(loss)(parameters)
    loss(parameters).backward()
    for name, parameter in moe.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)
