"""Rows sorted by expert: the same triples, stable, each expert's share padded with what adds nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toolkit.routing import Assignment, sort_by_expert

EXPERTS = 5
CHOICES = st.lists(st.sets(st.integers(0, EXPERTS - 1), max_size=EXPERTS), min_size=1, max_size=12)
MULTIPLES = st.integers(1, 9)


def assigned(choices: list[set[int]]) -> Assignment:
    """Tokens with any number of experts each, weights told apart by their value."""
    pairs = [(token, expert) for token, experts in enumerate(choices) for expert in sorted(experts, reverse=True)]
    token, expert = (torch.tensor([pair[side] for pair in pairs], dtype=torch.long) for side in (0, 1))
    logits = torch.zeros(len(choices), EXPERTS)
    return Assignment(token, expert, torch.arange(1.0, len(pairs) + 1), logits, logits)


@given(CHOICES, MULTIPLES)
def test_rows_hold_every_triple_once_in_expert_then_token_order(choices: list[set[int]], multiple: int) -> None:
    assignment = assigned(choices)
    rows = sort_by_expert(assignment, multiple)
    assert len(rows.token) == len(rows.weight) == sum(rows.counts)
    assert len(rows.counts) == EXPERTS
    triples = sorted(
        zip(assignment.expert.tolist(), assignment.token.tolist(), assignment.weight.tolist(), strict=True)
    )
    shares = zip(rows.token.split(rows.counts), rows.weight.split(rows.counts), strict=True)
    found = [
        (expert, token, weight)
        for expert, (tokens, weights) in enumerate(shares)
        for token, weight in zip(tokens.tolist(), weights.tolist(), strict=True)
        if weight != 0.0
    ]
    assert found == triples


@given(CHOICES, MULTIPLES)
def test_shares_are_the_next_multiple_and_padding_comes_last_with_weight_zero(
    choices: list[set[int]], multiple: int
) -> None:
    assignment = assigned(choices)
    rows = sort_by_expert(assignment, multiple)
    received = torch.bincount(assignment.expert, minlength=EXPERTS).tolist()
    for expert, (tokens, weights) in enumerate(
        zip(rows.token.split(rows.counts), rows.weight.split(rows.counts), strict=True)
    ):
        assert len(tokens) % multiple == 0
        assert 0 <= len(tokens) - received[expert] < multiple  # and so an unused expert has none
        assert (weights[: received[expert]] != 0).all()
        assert (weights[received[expert] :] == 0).all()
        assert (tokens[received[expert] :] == 0).all()


@given(CHOICES)
def test_padding_aside_a_multiple_changes_nothing(choices: list[set[int]]) -> None:
    plain, padded = sort_by_expert(assigned(choices)), sort_by_expert(assigned(choices), 4)
    real = padded.weight != 0
    assert torch.equal(padded.token[real], plain.token)
    assert torch.equal(padded.weight[real], plain.weight)


@pytest.mark.parametrize("multiple", [1, 4])
def test_a_tokens_repeated_expert_keeps_its_order(multiple: int) -> None:
    # Stable: equal experts stay as they came, so sums over rows come out the same on every run.
    logits = torch.zeros(3, 2)
    assignment = Assignment(
        torch.tensor([0, 1, 1, 2]),
        torch.tensor([1, 0, 1, 1]),
        torch.tensor([1.0, 2.0, 3.0, 4.0]),
        logits,
        logits,
    )
    rows = sort_by_expert(assignment, multiple)
    assert rows.weight[rows.weight != 0].tolist() == [2.0, 1.0, 3.0, 4.0]


@pytest.mark.parametrize("multiple", [1, 3])
def test_each_gate_gets_its_own_rows_gradient(multiple: int) -> None:
    assignment = assigned([{0, 3}, {3}, {0, 1, 3}])
    weight = assignment.weight.clone().requires_grad_()
    given_weight = Assignment(assignment.token, assignment.expert, weight, assignment.logits, assignment.probabilities)
    rows = sort_by_expert(given_weight, multiple)
    d_rows = torch.randn(len(rows.weight))
    (gradient,) = torch.autograd.grad(rows.weight, weight, d_rows)
    place = {float(w): n for n, w in enumerate(rows.weight.tolist()) if w}
    assert gradient.tolist() == [float(d_rows[place[float(w)]]) for w in weight.tolist()]


def test_no_triples_at_all() -> None:
    for multiple in (1, 4):
        rows = sort_by_expert(assigned([set(), set()]), multiple)
        assert rows.counts == [0] * EXPERTS
        assert len(rows.token) == 0


def test_a_multiple_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple=0: it must be positive"):
        sort_by_expert(assigned([{0}]), 0)
