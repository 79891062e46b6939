"""Our statistics in the units of others: their formulas in loops, and Hugging Face's own function."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from routed_cases import drawn, routed
from torch import Tensor

from toolkit.routing import Assignment, LoadBalancingLoss, RoutingStats, balance_value

SEEDS = st.integers(0, 2**31)


def megatron(assignment: Assignment, top_k: int) -> float:
    """E / (K T^2) * sum_i (sum_t p_ti) c_i."""
    p, tokens, experts = assignment.probabilities.tolist(), assignment.tokens, assignment.num_experts
    chosen = assignment.expert.tolist()
    total = sum(sum(row[i] for row in p) * chosen.count(i) for i in range(experts))
    return experts * total / (top_k * tokens**2)


def olmo(assignment: Assignment, top_k: int) -> float:
    """(E / K) * sum_i (c_i / T) P_i."""
    p, tokens, experts = assignment.probabilities.tolist(), assignment.tokens, assignment.num_experts
    chosen = assignment.expert.tolist()
    total = sum(chosen.count(i) / tokens * (sum(row[i] for row in p) / tokens) for i in range(experts))
    return experts / top_k * total


def megablocks(layers: list[Assignment], top_k: int) -> float:
    """E / (L T K) * sum over layers of the dot product of counts and mean scores."""
    tokens, experts = layers[0].tokens, layers[0].num_experts
    total = 0.0
    for layer in layers:
        p, chosen = layer.probabilities.tolist(), layer.expert.tolist()
        total += sum(chosen.count(i) * sum(row[i] for row in p) / tokens for i in range(experts))
    return experts * total / (len(layers) * tokens * top_k)


def hugging_face(layers: list[Tensor], top_k: int, mask: Tensor | None = None) -> float:
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    return float(load_balancing_loss_func(tuple(layers), layers[0].shape[1], top_k, mask))


@given(SEEDS, st.integers(1, 12), st.integers(2, 6), st.integers(1, 3), st.data())
def test_megatron_olmo_and_megablocks(seed: int, tokens: int, experts: int, layers: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, experts))
    routes = [routed(drawn(seed + layer, tokens, experts), top_k) for layer in range(layers)]
    stats = [RoutingStats.of(route) for route in routes]
    assert balance_value(stats, "megatron") == pytest.approx(sum(megatron(r, top_k) for r in routes) / layers)
    assert balance_value(stats, "olmo") == pytest.approx(sum(olmo(r, top_k) for r in routes) / layers)
    assert balance_value(stats, "megablocks") == pytest.approx(megablocks(routes, top_k))
    ours = sum(float(LoadBalancingLoss(1.0)(route)) for route in routes) / layers
    assert balance_value(stats) == pytest.approx(ours)


@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("layers", [1, 3])
def test_hugging_face_pools_layers_and_multiplies_by_top_k(top_k: int, layers: int) -> None:
    logits = [drawn(layer, 21, 6) for layer in range(layers)]
    mask = torch.ones(3, 7)
    mask[0, 4:] = mask[2, 1:] = 0
    plain = [RoutingStats.of(routed(layer, top_k)) for layer in logits]
    masked = [RoutingStats.of(routed(layer, top_k, valid=mask.flatten().bool())) for layer in logits]
    assert balance_value(plain, "hugging_face") == pytest.approx(hugging_face(logits, top_k), rel=1e-6)
    assert balance_value(masked, "hugging_face") == pytest.approx(hugging_face(logits, top_k, mask), rel=1e-6)
    if layers == 1:
        assert balance_value(plain, "hugging_face") == pytest.approx(top_k * balance_value(plain))


def test_pooling_hides_what_ours_shows() -> None:
    one, other = torch.full((8, 4), -20.0), torch.full((8, 4), -20.0)
    one[:, 0] = other[:, 3] = 20.0
    stats = [RoutingStats.of(routed(logits, 1)) for logits in (one, other)]
    assert balance_value(stats) == pytest.approx(4.0)
    assert balance_value(stats, "hugging_face") == pytest.approx(2.0)
    assert balance_value(stats, "hugging_face") == pytest.approx(hugging_face([one, other], 1))


def test_bad_arguments_are_refused() -> None:
    stats = [RoutingStats.of(routed(drawn(0, 3, experts), 2)) for experts in (4, 5)]
    with pytest.raises(ValueError, match="convention='tutel'.*'megatron'"):
        balance_value(stats, "tutel")
    with pytest.raises(ValueError, match=r"layers='of \[4, 5\] experts'"):
        balance_value(stats, "hugging_face")
    with pytest.raises(ValueError, match=r"layers=\[\]"):
        balance_value([])
