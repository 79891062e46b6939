"""Routing statistics: brute-force numbers, extremes, and sums that add up however they are cut."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from toolkit.routing import Assignment, RoutingStats, TopKRouter


def assigned(logits: Tensor, top_k: int, dropped: int = 0) -> Assignment:
    probabilities = logits.softmax(dim=-1)
    gates, expert = probabilities.topk(top_k)
    token = torch.arange(len(logits)).repeat_interleave(top_k)
    return Assignment(token, expert.flatten(), gates.flatten(), logits, probabilities, {}, dropped)


def drawn(seed: int, tokens: int, num_experts: int) -> Tensor:
    return torch.randn(tokens, num_experts, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SEEDS, TOKENS, EXPERTS = st.integers(0, 2**31), st.integers(1, 20), st.integers(2, 6)


@given(SEEDS, TOKENS, EXPERTS, st.data())
def test_figures_are_the_brute_force_ones(seed: int, tokens: int, num_experts: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, num_experts))
    assignment = assigned(drawn(seed, tokens, num_experts), top_k, dropped=3)
    stats = RoutingStats.of(assignment)
    p, chosen = assignment.probabilities.tolist(), assignment.expert.tolist()
    counts = [chosen.count(e) for e in range(num_experts)]
    mean = [sum(row[e] for row in p) / tokens for e in range(num_experts)]
    assert stats.counts.tolist() == counts
    assert stats.load.tolist() == pytest.approx([count / (tokens * top_k) for count in counts])
    assert stats.importance.tolist() == pytest.approx(mean)
    assert stats.entropy == pytest.approx(-sum(x * math.log(x) for row in p for x in row) / tokens)
    assert stats.marginal_entropy == pytest.approx(-sum(x * math.log(x) for x in mean))
    average = tokens * top_k / num_experts
    assert stats.max_violation == pytest.approx((max(counts) - average) / average)
    assert stats.dead == counts.count(0)
    assert stats.dropped == pytest.approx(3 / (tokens * top_k + 3))


@given(SEEDS, st.integers(2, 20), EXPERTS, st.data())
def test_the_statistics_of_parts_add_to_those_of_the_whole(
    seed: int, tokens: int, num_experts: int, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(1, tokens - 1))
    logits = drawn(seed, tokens, num_experts)
    whole = RoutingStats.of(assigned(logits, 1, dropped=5))
    parts = RoutingStats.of(assigned(logits[:cut], 1, 2)) + RoutingStats.of(assigned(logits[cut:], 1, 3))
    torch.testing.assert_close(parts.pack(), whole.pack(), rtol=1e-12, atol=1e-12)
    assert parts.max_violation == pytest.approx(whole.max_violation)
    assert parts.entropy == pytest.approx(whole.entropy)


def test_packing_and_unpacking_lose_nothing() -> None:
    stats = RoutingStats.of(assigned(drawn(0, 9, 5), 2, dropped=4))
    packed = stats.pack()
    assert packed.shape == (2 * 5 + 3,)
    assert packed.dtype == torch.float64
    again = RoutingStats.unpack(packed)
    for name in ("counts", "probability_sums", "entropy_sum", "tokens", "dropped_count"):
        assert torch.equal(getattr(again, name), getattr(stats, name)), name


def test_max_violation_is_zero_at_balance_and_experts_over_top_k_less_one_at_collapse() -> None:
    balanced = assigned(10 * torch.eye(6).repeat(3, 1), 1)
    assert RoutingStats.of(balanced).max_violation == pytest.approx(0.0)
    assert RoutingStats.of(balanced).dead == 0
    for top_k in (1, 2, 3):
        collapsed = RoutingStats.of(assigned(torch.arange(6.0).expand(8, 6), top_k))
        assert collapsed.max_violation == pytest.approx(6 / top_k - 1)
        assert collapsed.dead == 6 - top_k


def test_entropies_at_their_extremes() -> None:
    undecided = RoutingStats.of(assigned(torch.zeros(4, 8), 1))
    assert undecided.entropy == pytest.approx(math.log(8))
    assert undecided.marginal_entropy == pytest.approx(math.log(8))
    # Certain of each token, and tokens spread evenly: all the entropy is between tokens.
    certain = RoutingStats.of(assigned(torch.full((8, 8), -torch.inf).fill_diagonal_(0.0), 1))
    assert certain.entropy == 0.0
    assert certain.marginal_entropy == pytest.approx(math.log(8))


@given(SEEDS, TOKENS, EXPERTS)
def test_a_token_cannot_be_less_certain_than_all_of_them_together(seed: int, tokens: int, num_experts: int) -> None:
    stats = RoutingStats.of(assigned(3 * drawn(seed, tokens, num_experts), 1))
    assert stats.entropy <= stats.marginal_entropy + 1e-9
    assert stats.marginal_entropy <= math.log(num_experts) + 1e-9


def test_nothing_routed_is_no_division_by_zero() -> None:
    stats = RoutingStats.of(assigned(torch.zeros(0, 4), 1))
    assert stats.load.tolist() == [0.0] * 4
    assert stats.entropy == 0.0
    assert stats.dropped == 0.0
    assert stats.dead == 4


def test_it_holds_no_graph_and_sums_large_numbers_exactly() -> None:
    stats = RoutingStats.of(TopKRouter(6, 4, 2)(torch.randn(5, 6)))
    assert not stats.pack().requires_grad
    assert stats.probability_sums.dtype == stats.entropy_sum.dtype == torch.float64  # of fp32 probabilities
    many = replace(stats, counts=torch.full((4,), 2.0**40, dtype=torch.float64))
    one = replace(stats, counts=torch.ones(4, dtype=torch.float64))
    assert (many + one).counts.tolist() == [2.0**40 + 1] * 4  # fp32 would lose the 1


def test_without_processes_all_reduce_changes_nothing_and_with_them_it_adds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here, there = (RoutingStats.of(assigned(drawn(seed, 7, 4), 2)) for seed in (1, 2))
    assert here.all_reduce() is here
    alone = here.pack().clone()
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", lambda packed: packed.add_(there.pack()))
    both = here.all_reduce()
    torch.testing.assert_close(both.pack(), (here + there).pack())
    assert torch.equal(here.pack(), alone)
