"""Sinkhorn routing: the balanced plan, the exact assignment it relaxes, and when it reads the future."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from routing_laws import (
    DIM,
    EXPERTS,
    check_compiles,
    check_equivariance,
    check_few_tokens,
    check_padding,
    check_precision,
    check_replay,
    check_triples,
    earlier_pairs_after_a_change,
    pairs,
)
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from toolkit.routing import LoadBalancingLoss, RouterZLoss, RoutingStats, SinkhornRouter, TopKRouter
from toolkit.routing.sinkhorn import balancing_bias


def plain_plan(logits: Tensor, iterations: int) -> np.ndarray:
    """exp(logits) with its rows and columns scaled in turn, in the linear domain: rows 1, columns tokens / experts."""
    plan = np.exp(logits.double().numpy())
    for _ in range(iterations):
        plan /= plan.sum(axis=1, keepdims=True)
        plan *= len(plan) / plan.shape[1] / plan.sum(axis=0, keepdims=True)
    return plan


@pytest.mark.parametrize("top_k", [1, 3])
@pytest.mark.parametrize("iterations", [1, 4, 20])
def test_training_chooses_the_largest_entries_of_the_plan(top_k: int, iterations: int) -> None:
    router = SinkhornRouter(DIM, EXPERTS, top_k, iterations=iterations)
    router.weight.data *= 3
    x = torch.randn(23, DIM)
    assignment = router(x)
    plan = plain_plan((x @ router.weight.T).detach(), iterations)
    assert assignment.indices.tolist() == (-plan).argsort(axis=1)[:, :top_k].tolist()


@pytest.mark.parametrize(("spread", "iterations"), [(1.0, 5), (3.0, 20), (10.0, 80)])
def test_every_expert_gets_its_mass_within_a_tolerance(spread: float, iterations: int) -> None:
    logits = spread * torch.randn(512, 16) + spread * torch.randn(16)
    mass = torch.softmax(logits + balancing_bias(logits, iterations=iterations), dim=-1).mean(0) * 16
    assert float((mass - 1).abs().max()) < 1e-4


def test_of_sharp_logits_it_is_the_best_balanced_assignment() -> None:
    # BASE's linear assignment: every expert has as many tokens, and the sum of the scores is the highest there is.
    for seed in range(5):
        scores = torch.randn(20, EXPERTS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        _, seats = linear_sum_assignment(-scores.repeat_interleave(4, dim=1).numpy())
        logits = scores * 100
        chosen = (logits + balancing_bias(logits, iterations=5000)).argmax(dim=1)
        assert chosen.tolist() == (seats // 4).tolist()


def test_loads_are_more_even_than_those_of_top_k() -> None:
    sinkhorn = SinkhornRouter(DIM, EXPERTS)
    top_1 = TopKRouter(DIM, EXPERTS, 1)
    top_1.load_state_dict(sinkhorn.state_dict())
    x = torch.randn(400, DIM) + 2 * torch.randn(DIM)  # tokens with much in common
    skewed = RoutingStats.of(top_1(x)).max_violation
    assert RoutingStats.of(sinkhorn(x)).max_violation < 0.25 * skewed


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_no_logit_is_too_large(size: float) -> None:
    logits = size * torch.randn(33, EXPERTS)
    assert torch.isfinite(balancing_bias(logits)).all()
    constant = torch.full((33, EXPERTS), size)
    assert balancing_bias(constant).tolist() == [0.0] * EXPERTS


@pytest.mark.parametrize("top_k", [1, 2])
def test_gates_are_the_plain_scores_of_what_was_chosen(top_k: int) -> None:
    router, x = SinkhornRouter(DIM, EXPERTS, top_k), torch.randn(23, DIM)
    for training in (True, False):
        assignment = router.train(training)(x)
        logits = x @ router.weight.T
        scores = torch.sigmoid(logits) if top_k == 1 else torch.softmax(logits, dim=-1)
        torch.testing.assert_close(assignment.weights, scores.gather(1, assignment.indices))


@pytest.mark.parametrize("top_k", [1, 2])
def test_evaluation_is_plain_top_k(top_k: int) -> None:
    router, plain = SinkhornRouter(DIM, EXPERTS, top_k), TopKRouter(DIM, EXPERTS, top_k)
    plain.load_state_dict(router.state_dict())
    x = torch.randn(23, DIM)
    assert torch.equal(router.eval()(x).indices, plain.eval()(x).indices)


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_laws_of_every_router(top_k: int) -> None:
    router = SinkhornRouter(DIM, EXPERTS, top_k, iterations=4, losses=[RouterZLoss()])
    check_triples(deepcopy(router))
    check_few_tokens(deepcopy(router))
    check_replay(deepcopy(router))
    check_padding(router)
    check_precision(router)
    check_equivariance(router)
    check_compiles(router)


def test_training_reads_the_future_and_evaluation_does_not() -> None:
    router = SinkhornRouter(DIM, EXPERTS)
    assert router.causal == "evaluation"
    assert not earlier_pairs_after_a_change(router)
    assert earlier_pairs_after_a_change(router.eval())


@pytest.mark.parametrize("top_k", [1, 2])
def test_gradcheck_of_the_gates_in_fp64_and_none_of_the_plan(top_k: int) -> None:
    router = SinkhornRouter(3, 4, top_k).double()
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    logits = router(x).logits.detach().requires_grad_()
    plan = logits + balancing_bias(logits)
    assert not balancing_bias(logits).requires_grad
    ordered = plan.detach().sort(dim=-1, descending=True).values
    assert float((ordered[:, top_k - 1] - ordered[:, top_k]).min()) > 1e-3

    def gates(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(router, {"weight": weight}, (x,)).weight

    assert torch.autograd.gradcheck(gates, (x, router.weight))


def test_a_balance_loss_is_refused_and_the_z_loss_is_not() -> None:
    with pytest.raises(ValueError, match=r"losses=.*it must be RouterZLoss or nothing: Sinkhorn balances already"):
        SinkhornRouter(DIM, EXPERTS, losses=[RouterZLoss(), LoadBalancingLoss()])
    router = SinkhornRouter(DIM, EXPERTS, losses=[RouterZLoss(0.5)])
    assert router(torch.randn(4, DIM)).losses.keys() == {"z"}
    assert SinkhornRouter(DIM, EXPERTS)(torch.randn(4, DIM)).losses == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 0}, "top_k=0: it must be between 1 and num_experts=5"),
        ({"top_k": 6}, "top_k=6: it must be between 1 and num_experts=5"),
        ({"iterations": 0}, "iterations=0: it must be positive"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SinkhornRouter(DIM, EXPERTS, **settings)


def test_padding_has_no_mass() -> None:
    x, valid = torch.randn(30, DIM), torch.arange(30) < 20
    router = SinkhornRouter(DIM, EXPERTS)
    other = torch.where(valid[:, None], x, 10 * torch.randn(30, DIM))
    assert pairs(router(x, valid=valid)) == pairs(router(other, valid=valid)) == pairs(router(x[:20]))
