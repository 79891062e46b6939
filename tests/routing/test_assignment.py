"""An assignment is a list of triples, and a table where every token has as many; what was chosen stays."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from toolkit.routing import Assignment, SoftAssignment, TopKRouter
from toolkit.routing.assignment import count


def triples(token: list[int], expert: list[int], tokens: int = 3, num_experts: int = 4) -> Assignment:
    logits = torch.zeros(tokens, num_experts)
    weight = torch.arange(1.0, len(token) + 1)
    return Assignment(torch.tensor(token), torch.tensor(expert), weight, logits, logits.softmax(-1))


def test_sizes_are_those_of_the_logits() -> None:
    assignment = triples([0], [3])
    assert (assignment.tokens, assignment.num_experts) == (3, 4)
    assert assignment.dropped == 0
    assert assignment.losses == {}


def test_indices_and_weights_are_tables_of_the_triples() -> None:
    assignment = triples([0, 0, 1, 1, 2, 2], [3, 1, 0, 2, 1, 0])
    assert assignment.indices.tolist() == [[3, 1], [0, 2], [1, 0]]
    assert assignment.weights.tolist() == [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]


def test_a_routers_tables_hold_its_triples() -> None:
    assignment = TopKRouter(6, 5, 3)(torch.randn(7, 6))
    assert assignment.indices.shape == assignment.weights.shape == (7, 3)
    for n, token in enumerate(assignment.token.tolist()):
        assert assignment.indices[token, n % 3] == assignment.expert[n]
        assert assignment.weights[token, n % 3] == assignment.weight[n]


@pytest.mark.parametrize("token", [[0, 0, 1], [0, 0, 0], [0, 0, 1, 1, 1, 2]])
def test_tokens_with_different_numbers_of_experts_have_no_table(token: list[int]) -> None:
    assignment = triples(token, [0] * len(token))
    with pytest.raises(ValueError, match=r"assignment='\d to \d experts a token'.*same number for every"):
        _ = assignment.indices
    with pytest.raises(ValueError, match="use token, expert and weight"):
        _ = assignment.weights


def test_no_token_at_all_is_an_empty_table() -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    assignment = Assignment(empty, empty, torch.zeros(0), torch.zeros(0, 4), torch.zeros(0, 4))
    assert assignment.indices.shape[0] == 0
    assert assignment.counts().tolist() == [0] * 4


def test_losses_are_not_shared_between_assignments() -> None:
    first, second = triples([0], [0]), triples([0], [0])
    first.losses["z"] = torch.zeros(())
    assert second.losses == {}
    soft = [SoftAssignment(*[torch.zeros(1, 2, 3, 4)] * 3) for _ in range(2)]
    soft[0].losses["z"] = torch.zeros(())
    assert soft[1].losses == {}


@given(st.lists(st.integers(-1, 4), max_size=30))
def test_a_count_is_pythons_without_those_of_no_expert(experts: list[int]) -> None:
    expert = torch.tensor(experts, dtype=torch.int64)
    assert count(expert, 5).tolist() == [experts.count(e) for e in range(5)]
    assert count(expert, 5).dtype == torch.int64


@given(st.lists(st.tuples(st.integers(-1, 3), st.booleans()), max_size=30))
def test_counts_are_of_what_was_chosen_and_dropped_is_what_is_gone(choices: list[tuple[int, bool]]) -> None:
    chosen = [e for e, _ in choices]
    kept = [e if stays else -1 for e, stays in choices]
    assignment = triples([0] * len(choices), kept)
    assignment = replace(assignment, expert=torch.tensor(kept, dtype=torch.int64))
    assert assignment.choice is assignment.expert  # by default nothing was dropped
    dropped = replace(assignment, chosen=torch.tensor(chosen, dtype=torch.int64))
    assert dropped.choice.tolist() == chosen
    assert dropped.counts().tolist() == [chosen.count(e) for e in range(4)]
    assert int(dropped.dropped) == sum(e >= 0 and not stays for e, stays in choices)


def test_counting_and_dropping_need_no_value() -> None:
    with FakeTensorMode() as mode:  # refuses whatever would wait for one
        assignment = triples([0, 0, 1], [1, -1, 2])
        chosen = mode.from_tensor(torch.zeros(3, dtype=torch.int64))
        assignment = replace(assignment, chosen=chosen)
        assert assignment.counts().shape == (4,)
        assert assignment.dropped.shape == ()
