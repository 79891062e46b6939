"""Soft MoE: the definition slot by slot, for every backend, and no token beyond its own sequence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from toolkit.layers import MoE
from toolkit.routing import Capacity, SoftAssignment, SoftRouter

EXPERTS, SLOTS, DIM = 3, 2, 8


def soft_moe(backend: str) -> MoE:
    torch.manual_seed(0)
    return MoE(DIM, 12, EXPERTS, 2, router=SoftRouter(DIM, EXPERTS, SLOTS), backend=backend).double()


def textbook(moe: MoE, x: Tensor) -> Tensor:
    """Equations 1 to 3 of the paper for one sequence x (length, dim), slot by slot."""
    soft = moe.router(x)
    y = torch.zeros_like(x)
    for e in range(EXPERTS):
        gate, up = moe.experts.gate_up_proj[e].chunk(2)
        for s in range(SLOTS):
            read = sum(soft.dispatch[t, e, s] * x[t] for t in range(len(x)))
            out = moe.experts.down_proj[e] @ (torch.nn.functional.silu(gate @ read) * (up @ read))
            y = y + soft.combine[:, e, s, None] * out
    return y


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_value_and_gradients_are_the_definitions(backend: str) -> None:
    moe = soft_moe(backend)
    x = torch.randn(2, 5, DIM, dtype=torch.float64, requires_grad=True)
    out, expected = moe(x), torch.stack([textbook(moe, row) for row in x])
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    d_out, inputs = torch.randn_like(out), (x, *moe.parameters())
    for mine, theirs in zip(*(torch.autograd.grad(y, inputs, d_out) for y in (out, expected)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-11)


def test_a_sequence_is_its_own_and_padding_is_nobodys() -> None:
    moe = soft_moe("cpu")
    x = torch.randn(2, 5, DIM, dtype=torch.float64)
    alone = moe(x[:1, :3])
    valid = torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    padded = moe(x, valid=valid)
    torch.testing.assert_close(padded[:1, :3], alone, rtol=0, atol=1e-13)
    assert (padded[0, 3:] == 0).all()


def test_one_expert_with_one_slot_a_token_that_reads_it_alone_is_the_dense_layer() -> None:
    moe = soft_moe("cpu")
    moe.router.forward = lambda x, **_: SoftAssignment(eye, eye, eye)  # type: ignore[method-assign]
    eye = torch.eye(6, dtype=torch.float64).view(6, EXPERTS, SLOTS)  # token t is slot t
    x = torch.randn(6, DIM, dtype=torch.float64)
    gate, up = moe.experts.gate_up_proj.chunk(2, dim=1)
    own = torch.arange(6) // SLOTS  # the expert whose slot the token is
    hidden = torch.nn.functional.silu(gate[own] @ x[:, :, None]) * (up[own] @ x[:, :, None])
    torch.testing.assert_close(moe(x), (moe.experts.down_proj[own] @ hidden)[..., 0], rtol=0, atol=1e-13)


def test_work_is_that_of_all_slots_and_there_are_no_statistics() -> None:
    moe = soft_moe("cpu")
    needed = {part.kind: part.needed for part in moe.work(10)}
    assert needed == {"router": 3 * 10 * EXPERTS * SLOTS * DIM, "experts": EXPERTS * SLOTS * 3 * DIM * 12}
    moe(torch.randn(1, 4, DIM, dtype=torch.float64))
    assert moe.losses == {}
    with pytest.raises(ValueError, match="stats: a soft router has none"):
        _ = moe.stats


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"capacity_factor": 1.0}, "capacity_factor"),
        ({"adjust": (Capacity(1.0),)}, "adjust"),
        ({"dispatcher": lambda *_: None}, "dispatcher"),
    ],
)
def test_what_only_a_choice_could_use_is_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}=.*left out with a SoftRouter"):
        MoE(DIM, 12, EXPERTS, 2, router=SoftRouter(DIM, EXPERTS, SLOTS), **settings)
