"""Experts without computation against a plain loop, in a MoE and by themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from toolkit.layers import MoE, ZeroComputationExperts
from toolkit.routing import Assignment

DIM, FIRST = 6, 3
KINDS = [
    {"identity": 2},
    {"zero": 1},
    {"constant": 2},
    {"identity": 1, "zero": 2, "constant": 1},
    {"identity": 2, "zero": 1, "constant": 3},
]
every_kind = pytest.mark.parametrize("kinds", KINDS, ids=str)


def built(kinds: dict[str, int]) -> ZeroComputationExperts:
    experts = ZeroComputationExperts(DIM, **kinds).double()
    if experts.constant is not None:
        torch.nn.init.normal_(experts.constant)
    return experts


def assigned(choices: list[list[int]], gates: Tensor, num_experts: int) -> Assignment:
    token = torch.tensor([t for t, experts in enumerate(choices) for _ in experts], dtype=torch.int64)
    expert = torch.tensor([e for experts in choices for e in experts], dtype=torch.int64)
    logits = torch.zeros(len(choices), num_experts)
    return Assignment(token, expert, gates, logits, logits)


def one(experts: ZeroComputationExperts, number: int, x: Tensor) -> Tensor:
    """What zero-computation expert ``number`` makes of x (dim,)."""
    if number < experts.identity:
        return x
    if number < experts.identity + experts.zero:
        return torch.zeros_like(x)
    assert experts.constant is not None
    assert experts.mix is not None
    j = number - experts.identity - experts.zero
    weights = torch.exp(experts.mix[j] @ x)
    a, b = weights / weights.sum()
    return a * x + b * experts.constant[j]


def loop(experts: ZeroComputationExperts, x: Tensor, choices: list[list[int]], gates: Tensor) -> Tensor:
    """The share of the output that these experts give, token by token."""
    rows, n = [], 0
    for t, chosen in enumerate(choices):
        y = torch.zeros_like(x[t])
        for e in chosen:
            if e >= FIRST:
                y = y + gates[n] * one(experts, e - FIRST, x[t])
            n += 1
        rows.append(y)
    return torch.stack(rows) if rows else torch.zeros_like(x)


@every_kind
@given(data=st.data())
def test_they_are_the_plain_loop_in_value_and_gradient(kinds: dict[str, int], data: st.DataObject) -> None:
    experts = built(kinds)
    total = FIRST + experts.count
    choices = data.draw(st.lists(st.lists(st.integers(-1, total - 1), max_size=total), max_size=6))
    x = torch.randn(len(choices), DIM, dtype=torch.float64, requires_grad=True)
    gates = torch.randn(sum(map(len, choices)), dtype=torch.float64, requires_grad=True)
    y = experts(x, assigned(choices, gates, total), FIRST)
    expected = loop(experts, x, choices, gates)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    d_y, leaves = torch.randn_like(y), (x, gates, *experts.parameters())
    if not expected.requires_grad:
        return
    mine, theirs = (
        torch.autograd.grad(out, leaves, d_y, allow_unused=True, materialize_grads=True) for out in (y, expected)
    )
    for ours, gradient in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours, gradient, rtol=0, atol=1e-12)


@every_kind
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_moe_adds_them_to_its_experts(kinds: dict[str, int], backend: str) -> None:
    moe = MoE(DIM, 10, FIRST, 2, zero_experts=built(kinds), backend=backend).double()
    assert moe.zero_experts is not None
    x = torch.randn(20, DIM, dtype=torch.float64, requires_grad=True)
    y = moe(x)
    assignment = moe.router(x)
    rows = []
    for t in range(20):
        total = torch.zeros(DIM, dtype=torch.float64)
        for e, gate in zip(assignment.indices[t].tolist(), assignment.weights[t], strict=True):
            if e >= FIRST:
                total = total + gate * one(moe.zero_experts, e - FIRST, x[t])
            else:
                gate_row, up_row = (moe.experts.gate_up_proj[e] @ x[t]).chunk(2)
                hidden = torch.nn.functional.silu(gate_row) * up_row
                total = total + gate * (moe.experts.down_proj[e] @ hidden)
        rows.append(total)
    expected = torch.stack(rows)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    leaves, d_y = (x, *moe.parameters()), torch.randn_like(y)
    for ours, gradient in zip(
        torch.autograd.grad(y, leaves, d_y, materialize_grads=True),
        torch.autograd.grad(expected, leaves, d_y, allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(ours, gradient, rtol=0, atol=1e-12)
    assert (assignment.expert >= FIRST).any()
    assert moe.stats.counts.tolist() == assignment.counts().tolist()  # zero experts are counted like all others
    assert moe.stats.dropped == 0  # and a token that goes there is not a dropped one


@pytest.mark.parametrize("kinds", KINDS, ids=str)
def test_work_is_what_a_forward_multiplies(kinds: dict[str, Any]) -> None:
    zero = ZeroComputationExperts(DIM, **kinds)
    choices = FIRST + zero.count
    moe = MoE(DIM, 10, FIRST, top_k=choices, zero_experts=zero)  # every expert, so that none is left to chance
    assert moe.experts_per_token(7) == FIRST
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        moe(torch.randn(7, DIM))
    assert counter.get_total_flops() == 2 * sum(part.needed for part in moe.work(7))


def test_a_fair_share_of_the_choices_computes() -> None:
    moe = MoE(DIM, 10, 6, 2, zero_experts=ZeroComputationExperts(DIM, identity=2))
    assert moe.experts_per_token(8) == 2 * 6 / 8
    needed = {part.kind: part.needed for part in moe.work(8)}
    assert needed["experts"] == 8 * 1.5 * 3 * DIM * 10
    assert needed["router"] == 8 * DIM * 8


def test_constants_start_at_zero_and_blend_from_the_first_step() -> None:
    experts = ZeroComputationExperts(256, constant=4)
    assert experts.constant is not None
    assert experts.mix is not None
    assert (experts.constant == 0).all()
    assert float(experts.mix.detach().std()) == pytest.approx(256**-0.5, rel=0.05)
    x = torch.randn(8, 256)
    y = experts(x, assigned([[FIRST]] * 8, torch.ones(8), FIRST + 4), FIRST)
    (gradient,) = torch.autograd.grad(y.sum(), experts.constant)
    assert (gradient[0] != 0).all()
    assert (gradient[1:] == 0).all()


def test_those_without_parameters_have_none() -> None:
    assert list(ZeroComputationExperts(DIM, identity=1, zero=2).parameters()) == []


def test_bf16_keeps_the_tokens_dtype() -> None:
    experts = ZeroComputationExperts(DIM, identity=1, constant=1).bfloat16()
    x, gates = torch.randn(4, DIM).bfloat16(), torch.rand(8)
    y = experts(x, assigned([[FIRST, FIRST + 1]] * 4, gates, FIRST + 2), FIRST)
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("kinds", "named"),
    [({"identity": -1}, "identity=-1"), ({}, r"identity \+ zero \+ constant=0"), ({"constant": -2}, "constant=-2")],
)
def test_bad_numbers_are_named(kinds: dict[str, int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ZeroComputationExperts(DIM, **kinds)
