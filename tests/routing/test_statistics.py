"""Routing statistics: brute-force numbers, extremes, and sums that add up however they are cut."""

from __future__ import annotations

import math
import statistics
from dataclasses import fields, replace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from routed_cases import drawn, padded, routed
from torch import Tensor

from toolkit.routing import Assignment, RoutingStats, TopKRouter

SEEDS, TOKENS, EXPERTS = st.integers(0, 2**31), st.integers(1, 20), st.integers(2, 6)


def dropping(assignment: Assignment, dropped: int) -> Assignment:
    """The last ``dropped`` choices removed."""
    expert, weight = assignment.expert.clone(), assignment.weight.clone()
    expert[len(expert) - dropped :] = -1
    weight[len(expert) - dropped :] = 0
    return replace(assignment, expert=expert, weight=weight, chosen=assignment.choice)


@given(SEEDS, TOKENS, EXPERTS, st.data())
def test_figures_are_the_brute_force_ones(seed: int, tokens: int, num_experts: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, num_experts))
    dropped = data.draw(st.integers(0, tokens * top_k))
    assignment = dropping(routed(drawn(seed, tokens, num_experts), top_k), dropped)
    stats = RoutingStats.of(assignment)
    p, z = assignment.probabilities.tolist(), assignment.logits.tolist()
    chosen = [sorted(range(num_experts), key=row.__getitem__, reverse=True)[:top_k] for row in p]
    counts = [sum(row.count(e) for row in chosen) for e in range(num_experts)]  # dropped ones too
    mean = [sum(row[e] for row in p) / tokens for e in range(num_experts)]
    token_entropy = -sum(x * math.log(x) for row in p for x in row) / tokens
    marginal = -sum(x * math.log(x) for x in mean)
    average = tokens * top_k / num_experts
    assert stats.counts.tolist() == counts
    assert stats.load.tolist() == pytest.approx([count / (tokens * top_k) for count in counts])
    assert stats.importance.tolist() == pytest.approx(mean)
    assert stats.entropy == pytest.approx(token_entropy)
    assert stats.marginal_entropy == pytest.approx(marginal)
    assert stats.mutual_information == pytest.approx(marginal - token_entropy, abs=1e-12)
    assert stats.max_violation == pytest.approx((max(counts) - average) / average)
    assert stats.min_load == pytest.approx(min(counts) / average)
    assert stats.load_variation == pytest.approx(statistics.pstdev(counts) / average)
    assert stats.dead == counts.count(0)
    assert stats.dropped == pytest.approx(dropped / (tokens * top_k))
    assert stats.gate_mass == pytest.approx(sum(p[t][e] for t, row in enumerate(chosen) for e in row) / tokens)
    assert stats.logit_rms == pytest.approx(math.sqrt(statistics.fmean(x * x for row in z for x in row)))
    assert float(stats.logit_max) == max(abs(x) for row in z for x in row)
    assert float(stats.non_finite) == 0


@given(SEEDS, st.integers(2, 20), EXPERTS, st.data())
def test_the_statistics_of_parts_add_to_those_of_the_whole(
    seed: int, tokens: int, num_experts: int, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(1, tokens - 1))
    logits = drawn(seed, tokens, num_experts)
    whole = RoutingStats.of(routed(logits, 1))
    parts = RoutingStats.of(routed(logits[:cut], 1)) + RoutingStats.of(routed(logits[cut:], 1))
    torch.testing.assert_close(parts.pack(), whole.pack(), rtol=1e-12, atol=1e-12)
    assert parts.max_violation == pytest.approx(whole.max_violation)
    assert parts.entropy == pytest.approx(whole.entropy)


def test_over_a_whole_pass_violations_of_batches_can_cancel() -> None:
    first, second = (
        RoutingStats.of(routed(logits, 1)) for logits in (10 * torch.eye(2)[[0, 0]], 10 * torch.eye(2)[[1, 1]])
    )
    assert first.max_violation == second.max_violation == pytest.approx(1.0)
    assert (first + second).max_violation == pytest.approx(0.0)


@given(SEEDS, TOKENS, EXPERTS, st.data())
def test_padding_is_in_no_figure_whatever_it_holds(
    seed: int, tokens: int, num_experts: int, data: st.DataObject
) -> None:
    holes = data.draw(st.lists(st.integers(0, tokens), max_size=5))
    logits = drawn(seed, tokens, num_experts)
    rows, valid = padded(logits, holes)
    filled = routed(rows, 1, valid=valid)
    torch.testing.assert_close(
        RoutingStats.of(filled).pack(), RoutingStats.of(routed(logits, 1)).pack(), rtol=1e-13, atol=1e-13
    )


def test_packing_and_unpacking_lose_nothing() -> None:
    stats = RoutingStats.of(dropping(routed(drawn(0, 9, 5), 2), 4))
    packed = stats.pack()
    assert packed.shape == (2 * 5 + 7,)
    assert packed.dtype == torch.float64
    for again in (RoutingStats.unpack(packed), stats.cpu()):
        for field in fields(RoutingStats):
            assert torch.equal(getattr(again, field.name), getattr(stats, field.name)), field.name
    values = [float(getattr(stats, field.name).sum()) for field in fields(RoutingStats)]
    assert len(set(values)) == len(values)  # so that two swapped fields would show


def test_max_violation_is_zero_at_balance_and_experts_over_top_k_less_one_at_collapse() -> None:
    balanced = RoutingStats.of(routed(10 * torch.eye(6).repeat(3, 1), 1))
    assert balanced.max_violation == pytest.approx(0.0)
    assert balanced.load_variation == pytest.approx(0.0)
    assert balanced.min_load == pytest.approx(1.0)
    assert balanced.dead == 0
    for top_k in (1, 2, 3):
        collapsed = RoutingStats.of(routed(torch.arange(6.0).expand(8, 6), top_k))
        assert collapsed.max_violation == pytest.approx(6 / top_k - 1)
        assert collapsed.min_load == 0.0
        assert collapsed.dead == 6 - top_k


def test_entropies_at_their_extremes() -> None:
    undecided = RoutingStats.of(routed(torch.zeros(4, 8), 2))
    assert undecided.entropy == pytest.approx(math.log(8))
    assert undecided.marginal_entropy == pytest.approx(math.log(8))
    assert undecided.mutual_information == pytest.approx(0.0, abs=1e-6)
    assert undecided.gate_mass == pytest.approx(2 / 8)
    # Certain of each token, and tokens spread evenly: all the entropy is between tokens.
    certain = RoutingStats.of(routed(torch.full((8, 8), -torch.inf).fill_diagonal_(0.0), 1))
    assert certain.entropy == 0.0
    assert certain.mutual_information == pytest.approx(math.log(8))
    assert certain.gate_mass == 1.0


@given(SEEDS, TOKENS, EXPERTS)
def test_a_token_cannot_be_less_certain_than_all_of_them_together(seed: int, tokens: int, num_experts: int) -> None:
    stats = RoutingStats.of(routed(3 * drawn(seed, tokens, num_experts), 1))
    assert stats.entropy <= stats.marginal_entropy + 1e-9
    assert stats.marginal_entropy <= math.log(num_experts) + 1e-9


def test_a_choice_that_is_none_of_a_real_token_is_in_no_figure() -> None:
    # As GShard's second expert where it was not kept.
    one, two = routed(drawn(0, 4, 5), 1), routed(drawn(0, 4, 5), 2)
    second = torch.arange(8) % 2 == 1
    stats = RoutingStats.of(replace(two, expert=torch.where(second, -1, two.expert)))
    torch.testing.assert_close(stats.pack(), RoutingStats.of(one).pack(), rtol=1e-14, atol=0)


def test_nothing_routed_is_no_division_by_zero() -> None:
    stats = RoutingStats.of(routed(torch.zeros(0, 4), 1))
    assert stats.load.tolist() == [0.0] * 4
    assert (stats.entropy, stats.dropped, stats.gate_mass, stats.logit_rms) == (0.0, 0.0, 0.0, 0.0)
    assert stats.dead == 4


def test_of_fp32_logits_the_sums_are_right_to_a_millionth() -> None:
    logits = (3 * torch.randn(20_000, 64, generator=torch.Generator().manual_seed(0))).float()
    short, exact = RoutingStats.of(routed(logits, 8)), RoutingStats.of(routed(logits.double(), 8))
    torch.testing.assert_close(short.pack(), exact.pack(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_no_numbers_are_counted(bad: float) -> None:
    logits = torch.randn(5, 4)
    logits[1, 2] = logits[3, 0] = bad
    assert float(RoutingStats.of(routed(logits, 1)).non_finite) == 2


def test_it_holds_no_graph_and_sums_large_numbers_exactly() -> None:
    stats = RoutingStats.of(TopKRouter(6, 4, 2)(torch.randn(5, 6)))
    assert not stats.pack().requires_grad
    assert all(getattr(stats, field.name).dtype == torch.float64 for field in fields(RoutingStats))
    many = replace(stats, counts=torch.full((4,), 2.0**40, dtype=torch.float64))
    one = replace(stats, counts=torch.ones(4, dtype=torch.float64))
    assert (many + one).counts.tolist() == [2.0**40 + 1] * 4  # fp32 would lose the 1


def test_without_processes_all_reduce_changes_nothing_and_with_them_it_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = (RoutingStats.of(routed(drawn(seed, 7, 4), 2)) for seed in (1, 2))
    assert torch.equal(here.all_reduce().pack(), here.pack())
    alone = here.pack().clone()
    monkeypatch.setattr(dist, "is_initialized", lambda: True)

    def other(values: Tensor, op: dist.ReduceOp, group: None) -> None:
        theirs = there.pack()[-len(values) :] if len(values) == 1 else there.pack()[: len(values)]
        values.copy_(torch.maximum(values, theirs) if op == dist.ReduceOp.MAX else values + theirs)

    monkeypatch.setattr(dist, "all_reduce", other)
    torch.testing.assert_close(here.all_reduce().pack(), (here + there).pack())
    assert torch.equal(here.pack(), alone)
