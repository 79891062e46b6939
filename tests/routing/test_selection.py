"""Which experts are chosen together, and what share of the choices changed: brute force over sets."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from routed_cases import drawn, routed

from toolkit.routing import Assignment, co_selection, flip_rate
from toolkit.routing.selection import selection

SEEDS, TOKENS, EXPERTS = st.integers(0, 2**31), st.integers(1, 12), st.integers(2, 6)


def sets(assignment: Assignment) -> list[set[int]]:
    chosen: list[set[int]] = [set() for _ in range(assignment.tokens)]
    for token, expert in zip(assignment.token.tolist(), assignment.choice.tolist(), strict=True):
        if expert >= 0:
            chosen[token].add(expert)
    return chosen


def some(seed: int, tokens: int, experts: int, data: st.DataObject) -> Assignment:
    valid = torch.tensor(data.draw(st.lists(st.booleans(), min_size=tokens, max_size=tokens)))
    return routed(drawn(seed, tokens, experts), data.draw(st.integers(1, experts)), valid=valid)


@given(SEEDS, TOKENS, EXPERTS, st.data())
def test_pairs_are_counted_token_by_token(seed: int, tokens: int, experts: int, data: st.DataObject) -> None:
    assignment = some(seed, tokens, experts, data)
    expected = [[sum({i, j} <= chosen for chosen in sets(assignment)) for j in range(experts)] for i in range(experts)]
    assert co_selection(assignment).tolist() == expected
    assert co_selection(assignment).diagonal().tolist() == assignment.counts().tolist()
    assert [set(row.nonzero().flatten().tolist()) for row in selection(assignment)] == sets(assignment)


@given(SEEDS, TOKENS, EXPERTS, st.data())
def test_changed_choices_are_what_is_in_one_of_the_two_only(
    seed: int, tokens: int, experts: int, data: st.DataObject
) -> None:
    before, after = some(seed, tokens, experts, data), some(seed + 1, tokens, experts, data)
    changed = sum(len(a ^ b) for a, b in zip(sets(before), sets(after), strict=True))
    both = sum(len(a) + len(b) for a, b in zip(sets(before), sets(after), strict=True))
    assert flip_rate(before, after) == pytest.approx(changed / both if both else 0.0)
    assert flip_rate(before, after) == flip_rate(after, before)
    assert flip_rate(before, before) == 0.0


def test_it_is_the_share_of_the_top_k_that_was_replaced() -> None:
    before = routed(torch.tensor([[9.0, 8.0, 1.0, 0.0]] * 2), 2)
    assert flip_rate(before, replace(before, expert=torch.tensor([1, 0, 0, 1]))) == 0.0  # the order is no change
    assert flip_rate(before, replace(before, expert=torch.tensor([0, 2, 0, 1]))) == 0.25
    assert flip_rate(before, replace(before, expert=torch.tensor([2, 3, 3, 2]))) == 1.0


def test_what_was_dropped_was_chosen_all_the_same() -> None:
    before = routed(drawn(0, 5, 4), 2)
    after = replace(before, expert=torch.full_like(before.expert, -1), chosen=before.expert)
    assert flip_rate(before, after) == 0.0


def test_other_tokens_or_experts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"after=\(3, 5\): it must be of before's shape, \(3, 4\)"):
        flip_rate(routed(drawn(0, 3, 4), 2), routed(drawn(0, 3, 5), 2))
