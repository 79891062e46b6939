"""Shazeer's two losses: in plain Python, at their extremes, and their gradients."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from routed_cases import drawn, padded, routed
from torch import Tensor

from toolkit.routing import Assignment, ImportanceLoss, LoadLoss, NoisyTopK, TopKRouter
from toolkit.routing.importance import squared_variation


def noisy(logits: Tensor, noise: Tensor, std: Tensor, top_k: int, **fields: object) -> Assignment:
    """Top-k of the noisy logits, gates a softmax over those kept."""
    chosen = routed(logits + noise * std, top_k, **fields)
    gates = chosen.logits.topk(top_k).values.softmax(-1).flatten()
    return replace(chosen, logits=logits, weight=gates, noisy_logits=logits + noise * std, noise_std=std)


def variation(values: list[float]) -> float:
    """(population standard deviation / mean)^2."""
    return (statistics.pstdev(values) / statistics.fmean(values)) ** 2


@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(2, 6), st.data())
def test_importance_is_the_variation_of_summed_gates(seed: int, tokens: int, experts: int, data: st.DataObject) -> None:
    assignment = routed(drawn(seed, tokens, experts), data.draw(st.integers(1, experts)))
    gates = [0.0] * experts
    for expert, weight in zip(assignment.expert.tolist(), assignment.weight.tolist(), strict=True):
        gates[expert] += weight
    assert float(ImportanceLoss(0.5)(assignment)) == pytest.approx(0.5 * variation(gates), rel=1e-6, abs=1e-12)


@given(st.integers(0, 2**31), st.integers(1, 10), st.integers(2, 6), st.data())
def test_load_is_the_variation_of_the_chances_to_be_chosen(
    seed: int, tokens: int, experts: int, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, experts - 1))
    logits, noise = drawn(seed, tokens, experts), drawn(seed + 1, tokens, experts)
    std = 0.1 + drawn(seed + 2, tokens, experts).abs()
    assignment = noisy(logits, noise, std, top_k)
    clean, seen, spread = logits.tolist(), (logits + noise * std).tolist(), std.tolist()
    load = [0.0] * experts
    for t in range(tokens):
        for i in range(experts):
            others = sorted((seen[t][j] for j in range(experts) if j != i), reverse=True)
            load[i] += statistics.NormalDist().cdf((clean[t][i] - others[top_k - 1]) / spread[t][i])
    assert float(LoadLoss(0.5)(assignment)) == pytest.approx(0.5 * variation(load), rel=1e-6, abs=1e-12)


def test_the_smooth_load_is_the_mean_count_when_only_one_expert_s_noise_is_drawn_again() -> None:
    logits, noise, std = drawn(0, 1, 4), drawn(1, 1, 4), torch.full((1, 4), 0.8, dtype=torch.float64)
    others = (logits + noise * std)[0, 1:].topk(2).values[-1]
    draws = logits[0, 0] + 0.8 * torch.randn(200_000, dtype=torch.float64)
    share = float((draws > others).double().mean())
    chance = statistics.NormalDist().cdf(float(logits[0, 0] - others) / 0.8)
    assert share == pytest.approx(chance, abs=0.005)  # the law behind the formula above: 4 sigma of 200,000 draws


def test_both_are_zero_at_balance_and_experts_less_one_at_collapse() -> None:
    even = torch.full((8, 4), -20.0, dtype=torch.float64)
    even[torch.arange(8), torch.arange(8) % 4] = 20.0
    gone = torch.full((8, 4), -20.0, dtype=torch.float64)
    gone[:, 1] = 20.0
    std, still = torch.full((8, 4), 0.5, dtype=torch.float64), torch.zeros(8, 4, dtype=torch.float64)
    for loss in (ImportanceLoss(1.0), LoadLoss(1.0)):
        assert float(loss(noisy(even, still, std, 1))) == pytest.approx(0.0, abs=1e-9)
        # One of E values is all of the sum: variance / mean^2 = E - 1 (over E - 1 in the variance it would be E).
        assert float(loss(noisy(gone, still, std, 1))) == pytest.approx(3.0, rel=1e-9)


def test_the_variance_is_the_population_s_and_nothing_is_no_division_by_zero() -> None:
    assert float(squared_variation(torch.tensor([1.0, 3.0]))) == pytest.approx(0.25)
    assert float(squared_variation(torch.zeros(3))) == 0.0
    assert float(ImportanceLoss()(routed(torch.zeros(0, 4), 2))) == 0.0


def test_gradients_are_those_of_finite_differences() -> None:
    noise, valid = drawn(1, 5, 4), torch.tensor([True, False, True, True, True])

    def values(logits: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        assignment = noisy(logits, noise, std, 2, valid=valid)
        weight = torch.where(valid[assignment.token], assignment.weight, 0)
        return ImportanceLoss(1.0)(replace(assignment, weight=weight)), LoadLoss(1.0)(assignment)

    std = 0.3 + drawn(2, 5, 4).abs()
    assert torch.autograd.gradcheck(values, (drawn(0, 5, 4).requires_grad_(), std.requires_grad_()))


def test_padding_is_in_neither() -> None:
    logits, noise, std = drawn(0, 6, 4), drawn(1, 6, 4), 0.3 + drawn(2, 6, 4).abs()
    alone = noisy(logits, noise, std, 2)
    rows, valid = padded(logits, [0, 3, 6], fill=4.0)
    filled = noisy(rows, padded(noise, [0, 3, 6], 1.0)[0], padded(std, [0, 3, 6], 1.0)[0], 2, valid=valid)
    filled = replace(filled, weight=torch.where(valid[filled.token], filled.weight, 0))
    for loss in (ImportanceLoss(1.0), LoadLoss(1.0)):
        torch.testing.assert_close(loss(filled), loss(alone), rtol=1e-13, atol=0)


def test_a_noisy_router_carries_both_and_they_even_it_out() -> None:
    torch.manual_seed(0)
    losses = [ImportanceLoss(1.0), LoadLoss(1.0)]
    router = TopKRouter(8, 4, 2, noise=NoisyTopK(8, 4), losses=losses)
    x = torch.randn(256, 8) + 1
    with torch.no_grad():
        router.weight[0] += 1.0  # the mean token's favourite
    optimizer = torch.optim.Adam(router.parameters(), lr=0.02)
    course = []
    for _ in range(60):
        total = sum(router(x).losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        course.append(float(total.detach()))
    assert course[-1] < 0.2 * course[0]


def test_the_load_loss_needs_noise_and_a_top_k() -> None:
    with pytest.raises(ValueError, match="the router must have some"):
        LoadLoss()(routed(torch.randn(3, 4), 2))
    uneven = noisy(torch.zeros(2, 4), torch.zeros(2, 4), torch.ones(2, 4), 1)
    uneven = replace(uneven, token=torch.tensor([0, 0, 1]), expert=torch.tensor([0, 1, 2]), weight=torch.ones(3))
    with pytest.raises(ValueError, match="LoadLoss.* 3 choices of 2 tokens"):
        LoadLoss()(uneven)


def test_where_every_expert_is_chosen_the_load_is_even() -> None:
    std = torch.ones(3, 4, dtype=torch.float64)
    assert float(LoadLoss()(noisy(drawn(0, 3, 4), drawn(1, 3, 4), std, 4))) == 0.0
    assert not math.isnan(float(LoadLoss()(noisy(drawn(0, 0, 4), drawn(1, 0, 4), std[:0], 2))))
