"""What the MoE layer takes and refuses: routers, keywords, dispatchers, settings; and what it says it costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from toolkit.layers import Activation, MoE, SwiGLU, ZeroComputationExperts, auxiliary_losses
from toolkit.routing import Assignment, Capacity, SoftRouter, TopKRouter


class Fixed(nn.Module):
    """Any module can route: here the first expert twice, and what it was told."""

    def __init__(self, causal: str = "always") -> None:
        super().__init__()
        self.causal = causal
        self.told: dict[str, Any] = {}

    def forward(self, x: Tensor, **told: Any) -> Assignment:
        self.told = told
        token = torch.arange(len(x)).repeat_interleave(2)
        logits = x.new_zeros(len(x), 3)
        return Assignment(token, torch.zeros_like(token), x.new_full((2 * len(x),), 0.5), logits, logits)


def test_any_module_that_gives_an_assignment_can_route() -> None:
    moe = MoE(8, 12, num_experts=3, top_k=2, router=Fixed())
    x = torch.randn(9, 8)
    first = SwiGLU(8, 12)
    first.load_state_dict({name: weight[0] for name, weight in moe.experts.state_dict().items()})
    torch.testing.assert_close(moe(x), first(x))
    assert moe.losses == {}
    assert moe.stats.max_violation == pytest.approx(2.0)


def test_routers_are_told_of_each_token_its_id_its_sequence_and_whether_it_is_padding() -> None:
    router = Fixed()
    moe = MoE(8, 12, num_experts=3, top_k=2, router=router)
    ids, valid = torch.arange(10).view(2, 5), torch.rand(2, 5) > 0.5
    moe(torch.randn(2, 5, 8), token_ids=ids, valid=valid)
    assert torch.equal(router.told["token_ids"], ids.flatten())
    assert torch.equal(router.told["valid"], valid.flatten())
    assert router.told["sequence_ids"].tolist() == [0] * 5 + [1] * 5  # each row of the batch is one
    moe(torch.randn(2, 5, 8), sequence_ids=ids)
    assert torch.equal(router.told["sequence_ids"], ids.flatten())
    moe(torch.randn(5, 8))
    assert router.told == {"token_ids": None, "sequence_ids": None, "valid": None}


@pytest.mark.parametrize("name", ["token_ids", "sequence_ids", "valid"])
def test_a_keyword_of_another_shape_is_refused_by_name(name: str) -> None:
    moe = MoE(8, 12, 4, 2)
    with pytest.raises(ValueError, match=rf"^{name}\.shape=\(2, 4\): it must be \(2, 5\)"):
        moe(torch.randn(2, 5, 8), **{name: torch.zeros(2, 4, dtype=torch.int64)})


def test_a_dispatcher_brings_tokens_to_experts() -> None:
    seen: list[tuple[Any, ...]] = []

    def dispatch(experts: nn.Module, tokens: Tensor, assignment: Assignment) -> Tensor:
        seen.append((experts, tokens.shape, assignment.expert))
        return 2 * experts(tokens, assignment)

    moe, local = (MoE(8, 12, 4, 2, dispatcher=dispatcher) for dispatcher in (dispatch, None))
    local.load_state_dict(moe.state_dict())
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(moe(x), 2 * local(x))
    ((experts, shape, expert),) = seen
    assert experts is moe.experts
    assert shape == (10, 8)
    assert torch.equal(expert, moe.assignment.expert)


def test_a_layer_that_must_be_causal_refuses_what_reads_ahead() -> None:
    MoE(8, 12, 3, 2, router=Fixed("evaluation"), capacity_factor=1.0, causal=True)
    MoE(8, 12, 3, 2, router=Fixed("never"))
    with pytest.raises(ValueError, match="^router='Fixed': it must be one whose evaluation reads no later token"):
        MoE(8, 12, 3, 2, router=Fixed("never"), causal=True)
    with pytest.raises(ValueError, match="^adjust='Capacity': it must be one whose evaluation"):
        MoE(8, 12, 3, 2, adjust=(Capacity(1.0, evaluation_factor=1.0),), causal=True)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
def test_work_is_what_a_forward_multiplies(activation: str, bias: bool) -> None:
    moe = MoE(8, 12, 6, 2, shared_experts=3, shared_gate=True, activation=activation, bias=bias)
    assert moe.experts_per_token(10) == 2
    with FlopCounterMode(display=False) as counter:
        y = moe(torch.randn(10, 8, requires_grad=True))
    work = moe.work(10)
    assert counter.get_total_flops() == 2 * sum(part.needed for part in work)
    assert {part.kind for part in work} == {"router", "experts", "shared_experts"}
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 2 * sum(part.needed * part.backward for part in work)


@pytest.mark.parametrize("recompute", [False, True])
def test_what_capacity_drops_costs_nothing(recompute: bool) -> None:
    totals = []
    for backend in ("reference", "cpu"):
        torch.manual_seed(0)
        again = recompute and backend == "cpu"
        moe = MoE(8, 12, 4, 2, capacity_factor=0.5, backend=backend, recompute=again)
        x = torch.randn(20, 8, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            moe(x).sum().backward()
        assert moe.stats.dropped > 0
        totals.append(counter.get_total_flops())
    assert totals[0] == totals[1]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"shared_experts": -1}, "shared_experts=-1"),
        ({"shared_gate": True}, "shared_gate=True: it must be False without shared_experts"),
        ({"top_k": 5}, "top_k=5"),
        ({"top_k": 0}, "top_k=0"),
        ({"num_experts": 0}, "num_experts=0"),
        ({"hidden_dim": 0}, "hidden_dim=0"),
        ({"backend": "magic"}, "backend='magic'"),
        ({"activation": "swish"}, "activation='swish'"),
        ({"capacity_factor": 0.0}, "^capacity_factor=0.0: it must be positive"),
        ({"capacity_factor": 1.0, "drop_policy": "random"}, "policy='random'"),
        ({"backend": "reference", "recompute": True}, "recompute=True"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        MoE(**{"dim": 8, "hidden_dim": 12, "num_experts": 4, "top_k": 2, **settings})


@pytest.mark.parametrize(("num_experts", "top_k", "named"), [(6, 2, "num_experts"), (4, 1, "top_k")])
def test_a_router_for_another_layer_is_refused(num_experts: int, top_k: int, named: str) -> None:
    with pytest.raises(ValueError, match=rf"router\.{named}"):
        MoE(8, 16, 4, 2, router=TopKRouter(8, num_experts, top_k))


@pytest.mark.parametrize("backend", ["reference", "cpu", "grouped_mm"])
@pytest.mark.parametrize("settings", [{}, {"capacity_factor": 1.0}, {"activation": Activation("gelu"), "bias": True}])
def test_no_tokens_are_no_trouble(backend: str, settings: dict[str, Any]) -> None:
    moe = MoE(8, 16, 4, 2, backend=backend, shared_experts=1, **settings)
    for shape in ((0, 8), (2, 0, 8), (0, 3, 8)):
        moe.zero_grad()
        y = moe(torch.zeros(shape, requires_grad=True))
        (y.sum() + sum(auxiliary_losses(moe).values())).backward()
        assert y.shape == shape
        assert all(p.grad is not None and (p.grad == 0).all() for p in moe.parameters())
        assert moe.stats.entropy == moe.stats.dropped == 0


def test_inputs_and_parts_of_another_size_are_named() -> None:
    moe = MoE(16, 32, 4, 2)
    with pytest.raises(ValueError, match=r"x.shape=\(3, 12\): it must be \(\.\.\., dim\) with dim=16"):
        moe(torch.randn(3, 12))
    with pytest.raises(ValueError, match="x.dtype=torch.bfloat16: it must be that of the experts' weights"):
        moe(torch.randn(3, 16).bfloat16())
    with pytest.raises(ValueError, match="router.dim=12: it must be this layer's, 16"):
        MoE(16, 32, 4, 2, router=TopKRouter(12, 4, 2))
    with pytest.raises(ValueError, match="router.dim=12: it must be this layer's, 16"):
        MoE(16, 32, 4, 2, router=SoftRouter(12, 4, 1))
    with pytest.raises(ValueError, match="zero_experts.dim=12: it must be this layer's, 16"):
        MoE(16, 32, 4, 2, zero_experts=ZeroComputationExperts(12, 1))
    with pytest.raises(ValueError, match=r"x.shape=\(16,\): it must be \(\.\.\., length, dim\) with a SoftRouter"):
        MoE(16, 32, 4, 2, router=SoftRouter(16, 4, 1))(torch.randn(16))


def test_capacity_does_not_drop_experts_without_computation() -> None:
    moe = MoE(16, 32, 4, 2, zero_experts=ZeroComputationExperts(16, 2, 2), capacity_factor=0.25)
    moe(torch.randn(64, 16))
    free = moe.assignment.choice >= 4
    assert free.any()
    assert torch.equal(moe.assignment.expert[free], moe.assignment.choice[free])
    assert int(moe.assignment.dropped) > 0
