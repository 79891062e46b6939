"""The bias that is solved for: exact quantiles, one step to balance, and its histogram's bounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from routed_cases import drawn, padded, routed
from torch import Tensor

from toolkit.routing import Assignment, QuantileBalancer, RoutingStats, TopKRouter, update_balancers
from toolkit.routing.scores import SCORES


def lacking(scores: Tensor, bias: Tensor, top_k: int) -> np.ndarray:
    """What each expert lacked to be chosen, token by token."""
    rows = []
    for row in scores.tolist():
        biased = sorted((s + b for s, b in zip(row, bias.tolist(), strict=True)), reverse=True)
        rows.append([biased[top_k] - s for s in row])
    return np.array(rows)


@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(2, 6), st.sampled_from(["softmax", "sigmoid"]), st.data())
def test_it_is_the_quantile_of_what_was_lacking_to_within_a_bin(
    seed: int, tokens: int, experts: int, score: str, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, experts - 1))
    logits = drawn(seed, tokens, experts)
    before = 0.2 * drawn(seed + 1, 1, experts)[0].float()
    balancer = QuantileBalancer(experts, top_k, score=score)
    balancer.bias.copy_(before)
    balancer.observe(routed(logits, top_k))
    width = float(before.max() - before.min() + 2) / 1000
    low = np.quantile(lacking(SCORES[score](logits).raw, before, top_k), top_k / experts, axis=0, method="inverted_cdf")
    solved = balancer.solve(balancer.pending) + 0  # before it is centred, and after, up to one number for all
    shift = solved.double().numpy() - low
    assert shift.max() - shift.min() <= 2 * width + 1e-6
    assert float(solved.mean()) == pytest.approx(0.0, abs=1e-6)


def test_a_few_steps_balance_fixed_tokens_wherever_they_lean() -> None:
    torch.manual_seed(0)
    for score in ("softmax", "sigmoid"):
        router = TopKRouter(16, 8, 2, score=score, balancer=QuantileBalancer(8, 2, score=score), losses=[])
        x = torch.randn(2000, 16) + torch.randn(16)
        violations = []
        for _ in range(12):
            violations.append(RoutingStats.of(router(x)).max_violation)
            update_balancers(router)
        assert violations[0] > 0.8
        assert violations[-1] < 0.1


def test_padding_is_not_counted() -> None:
    logits = drawn(0, 20, 5)
    rows, valid = padded(logits, [0, 4, 4, 20])
    alone, filled = QuantileBalancer(5, 2), QuantileBalancer(5, 2)
    alone.observe(routed(logits, 2))
    filled.observe(routed(rows.nan_to_num(3.0), 2, valid=valid))
    assert torch.equal(alone.pending, filled.pending)
    assert int(alone.pending.sum()) == 20 * 5


def test_the_moving_average_keeps_its_share_of_the_old_bias() -> None:
    assignment, before = routed(drawn(0, 50, 5), 2), torch.tensor([0.2, 0.1, 0.0, -0.1, -0.2])
    plain, slow = QuantileBalancer(5, 2), QuantileBalancer(5, 2, ema=0.75)
    for balancer in (plain, slow):
        balancer.bias.copy_(before)
        balancer.observe(assignment)
        balancer.update()
    torch.testing.assert_close(slow.bias, 0.75 * before + 0.25 * plain.bias, rtol=1e-5, atol=1e-6)


def test_every_margin_of_scores_up_to_one_has_a_bin_within_the_range() -> None:
    # The extremes: one expert certain, the others at 0, under a bias that spreads by 5.
    balancer = QuantileBalancer(4, 1, score="sigmoid")
    balancer.bias.copy_(torch.tensor([3.0, 0.0, -2.0, 1.0]))
    logits = torch.tensor([[-50.0, -50.0, 50.0, -50.0], [50.0, 50.0, -50.0, 50.0]])
    low, width = balancer._range()
    margins = torch.tensor(lacking(logits.sigmoid(), balancer.bias, 1))
    assert (margins >= low).all()
    assert (margins <= low + 1000 * width).all()


def test_larger_scores_are_reached_in_several_steps() -> None:
    router = TopKRouter(4, 5, 2, pre_softmax=False, balancer=QuantileBalancer(5, 2, score="logits"), losses=[])
    x = 3 * torch.randn(400, 4) + 4
    before = RoutingStats.of(router(x)).max_violation
    update_balancers(router)
    assert float(router.balancer.bias.max() - router.balancer.bias.min()) <= 2 + 1e-6  # the first step's range
    for _ in range(30):
        router(x)
        update_balancers(router)
    assert float(router.balancer.bias.max() - router.balancer.bias.min()) > 2
    assert RoutingStats.of(router(x)).max_violation < 0.25 * before


def test_it_looks_at_scores_whatever_was_chosen() -> None:
    assignment: Assignment = routed(drawn(0, 12, 5), 2)
    moved = replace(assignment, expert=(assignment.expert + 1) % 5)
    one, two = QuantileBalancer(5, 2), QuantileBalancer(5, 2)
    one.observe(assignment)
    two.observe(moved)
    assert torch.equal(one.pending, two.pending)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 4}, r"top_k=4: it must be between 1 and num_experts - 1 = 3"),
        ({"top_k": 0}, "top_k=0"),
        ({"score": "tanh"}, "score='tanh'.*'softmax'"),
        ({"ema": 1.0}, r"ema=1\.0: it must be 0 or more and below 1"),
        ({"bins": 0}, "bins=0: it must be positive"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantileBalancer(**{"num_experts": 4, "top_k": 2, **settings})


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"score": "sigmoid"}, "balancer.score='softmax'"), ({"pre_softmax": False}, "balancer.score='softmax'")],
)
def test_a_router_that_ranks_something_else_is_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        TopKRouter(8, 4, 2, balancer=QuantileBalancer(4, 2), **settings)
    with pytest.raises(ValueError, match=r"balancer\.top_k=1: it must be the router's, 2"):
        TopKRouter(8, 4, 2, balancer=QuantileBalancer(4, 1))
