"""Rows sorted by expert: the same triples, stable, those of no expert last, in shapes that no value decides."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from toolkit.routing import sort_by_expert, token_starts

EXPERTS = 5
CHOICES = st.lists(st.lists(st.integers(-1, EXPERTS - 1), max_size=EXPERTS), max_size=12)


def flat(choices: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token and expert of each triple; a token's experts in any order, some twice, some none."""
    token = torch.tensor([t for t, experts in enumerate(choices) for _ in experts], dtype=torch.int64)
    return token, torch.tensor([e for experts in choices for e in experts], dtype=torch.int64)


@given(CHOICES)
def test_rows_are_pythons_stable_sort_with_no_expert_last(choices: list[list[int]]) -> None:
    token, expert = flat(choices)
    rows = sort_by_expert(token, expert, EXPERTS)
    expected = sorted(range(len(token)), key=lambda n: expert[n] if expert[n] >= 0 else EXPERTS)
    assert rows.order.tolist() == expected
    assert rows.token.tolist() == token[expected].tolist()


@given(CHOICES)
def test_each_experts_rows_are_between_its_ends(choices: list[list[int]]) -> None:
    token, expert = flat(choices)
    rows = sort_by_expert(token, expert, EXPERTS)
    assert rows.counts() == [sum(chosen.count(e) for chosen in choices) for e in range(EXPERTS)]
    start = 0
    for e, end in enumerate(rows.ends.tolist()):
        assert (expert[rows.order[start:end]] == e).all()
        start = end
    assert (expert[rows.order[start:]] == -1).all()
    assert rows.ends.dtype == torch.int32  # as torch's grouped product wants them


@given(CHOICES)
def test_place_is_the_inverse_of_order(choices: list[list[int]]) -> None:
    rows = sort_by_expert(*flat(choices), EXPERTS)
    n = torch.arange(len(rows.order))
    assert torch.equal(rows.place[rows.order], n)
    assert torch.equal(rows.order[rows.place], n)


@given(CHOICES)
def test_token_starts_cut_the_triples_by_token(choices: list[list[int]]) -> None:
    token, expert = flat(choices)
    starts = token_starts(token, len(choices)).tolist()
    assert [expert[a:b].tolist() for a, b in pairwise(starts)] == choices


def test_shapes_are_known_without_a_value() -> None:
    with FakeTensorMode() as mode:  # refuses whatever would need one
        token, expert = (mode.from_tensor(tensor) for tensor in flat([[1, -1], [0, 1]]))
        rows = sort_by_expert(token, expert, EXPERTS)
        shapes = [tensor.shape for tensor in (rows.order, rows.token, rows.place, rows.ends, token_starts(token, 2))]
    assert shapes == [(4,), (4,), (4,), (EXPERTS,), (3,)]
