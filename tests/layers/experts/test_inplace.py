"""Activations into buffers, and their derivatives, are Activation and its autograd."""

from __future__ import annotations

import pytest
import torch
from expert_cases import CLAMPED
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from toolkit.layers.experts.activations import Activation
from toolkit.layers.experts.inplace import in_place

ACTIVATIONS = [Activation("swiglu"), CLAMPED, Activation("clamped_swiglu"), Activation("gelu"), Activation("relu2")]
named = pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)


def by_autograd(activation: Activation, hidden: Tensor, d_active: Tensor) -> tuple[Tensor, Tensor]:
    hidden = hidden.detach().requires_grad_()
    active = activation(hidden)
    return active.detach(), torch.autograd.grad(active, hidden, d_active)[0]


def by_hand(activation: Activation, hidden: Tensor, d_active: Tensor) -> tuple[Tensor, Tensor]:
    """From buffers full of NaN, and without a change to the pre-activations, which are kept."""
    apply, derive = in_place(activation)
    active, kept = (torch.full_like(d_active, torch.nan) for _ in range(2))
    d_hidden, before = torch.full_like(hidden, torch.nan), hidden.clone()
    apply(hidden, active, kept)
    made = active.clone()
    active.fill_(torch.nan)  # only `kept` is promised to the derivative
    derive(hidden, d_active.clone(), d_hidden, kept)
    assert torch.equal(hidden, before)
    return made, d_hidden


@named
def test_they_are_the_activation_and_its_derivative(activation: Activation) -> None:
    hidden = 2 * torch.randn(40, activation.width(6), dtype=torch.float64)
    d_active = torch.randn(40, 6, dtype=torch.float64)
    for ours, expected in zip(
        by_hand(activation, hidden, d_active), by_autograd(activation, hidden, d_active), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-13, atol=1e-13)


@named
@given(
    # at a clamp's edge, beyond it, at zero, and where exp overflows
    values=st.lists(st.sampled_from([-200.0, -7.0, -0.8, -0.0, 0.0, 0.8, 0.81, 7.0, 200.0]), min_size=4, max_size=4)
)
def test_edges_are_autograds(activation: Activation, values: list[float]) -> None:
    hidden = torch.tensor(values, dtype=torch.float64).view(1 if activation.gated else 2, -1)
    d_active = torch.full((len(hidden), 2), 1.5, dtype=torch.float64)
    for ours, expected in zip(
        by_hand(activation, hidden, d_active), by_autograd(activation, hidden, d_active), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-13, atol=1e-13)


@named
def test_in_bf16_they_err_at_most_twice_as_much_as_autograd(activation: Activation) -> None:
    hidden = (2 * torch.randn(40, activation.width(6))).bfloat16()
    d_active = torch.randn(40, 6).bfloat16()
    exact = by_autograd(activation, hidden.double(), d_active.double())
    theirs, ours = by_autograd(activation, hidden, d_active), by_hand(activation, hidden, d_active)
    for mine, other, truth in zip(ours, theirs, exact, strict=True):
        ulp = torch.finfo(torch.bfloat16).eps * truth.abs().max()
        assert (mine - truth).abs().max() <= 2 * (other - truth).abs().max() + 4 * ulp
