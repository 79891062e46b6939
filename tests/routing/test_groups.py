"""Groups of experts: which stay, by brute force, and what keeps a masked expert out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from router_twins import Bias

from toolkit.routing import GroupLimit, TopKRouter


@st.composite
def limits(draw: st.DrawFn) -> tuple[GroupLimit, int, int]:
    """A limit, the experts of a group, and a top_k that fits."""
    groups, size = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    top_groups = draw(st.integers(1, groups))
    score = draw(st.sampled_from(["max"] if size == 1 else ["max", "top2_sum"]))
    return GroupLimit(groups, top_groups, score), size, draw(st.integers(1, top_groups * size))


@given(limits(), st.integers(0, 2**31))
def test_experts_are_those_of_the_best_groups_by_brute_force(case: tuple[GroupLimit, int, int], seed: int) -> None:
    limit, size, top_k = case
    limit.check(limit.groups * size, top_k)
    ranking = torch.randn(4, limit.groups * size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    masked = limit(ranking)
    for row, kept in zip(ranking.tolist(), masked.tolist(), strict=True):
        members = [row[g * size : (g + 1) * size] for g in range(limit.groups)]
        worth = [max(group) if limit.score == "max" else sum(sorted(group)[-2:]) for group in members]
        best = sorted(range(limit.groups), key=lambda g: -worth[g])[: limit.top_groups]
        assert kept == [value if e // size in best else -float("inf") for e, value in enumerate(row)]
    assert masked.topk(top_k).values.isfinite().all()


@pytest.mark.parametrize("group_score", ["max", "top2_sum"])
def test_a_router_chooses_within_the_groups_that_stay(group_score: str) -> None:
    limited = {"groups": 4, "top_groups": 2, "group_score": group_score}
    router = TopKRouter(6, 12, 5, score="sigmoid", **limited, losses=[])
    groups = router(torch.randn(33, 6)).indices // 3
    assert all(len(set(row)) <= 2 for row in groups.tolist())


def test_all_groups_staying_is_no_limit() -> None:
    limited = TopKRouter(6, 8, 3, groups=4, top_groups=4, losses=[])
    free = TopKRouter(6, 8, 3, losses=[])
    free.load_state_dict(limited.state_dict())
    x = torch.randn(33, 6)
    assert torch.equal(limited(x).expert, free(x).expert)


def test_a_masked_expert_never_beats_a_negative_score() -> None:
    # Masked with 0, an expert of another group would stand above every biased score here.
    router = TopKRouter(
        6, 8, 4, score="sigmoid", groups=2, top_groups=1, balancer=Bias(torch.full((8,), -3.0)), losses=[]
    )
    groups = router(torch.randn(65, 6)).indices // 4
    assert (groups == groups[:, :1]).all()
    assert set(groups.flatten().tolist()) == {0, 1}


def test_the_balancers_bias_is_in_the_groups_worth() -> None:
    bias = torch.tensor([0.0, 0.0, 0.0, 0.0, 5.0, 5.0, 0.0, 0.0])
    router = TopKRouter(6, 8, 2, score="sigmoid", groups=2, top_groups=1, balancer=Bias(bias), losses=[])
    assert (router(torch.randn(9, 6)).indices >= 4).all()


def test_no_token_at_all() -> None:
    assert GroupLimit(4, 2)(torch.zeros(0, 8)).shape == (0, 8)


@pytest.mark.parametrize(
    ("groups", "top_groups", "score", "message"),
    [
        (0, 1, "max", r"groups=0: it must be 1 or more"),
        (4, 0, "max", r"top_groups=0: it must be 1 to groups=4"),
        (4, 5, "max", r"top_groups=5: it must be 1 to groups=4"),
        (4, 2, "mean", r"group_score='mean'.*'top2_sum', 'max'"),
    ],
)
def test_an_impossible_limit_is_refused(groups: int, top_groups: int, score: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GroupLimit(groups, top_groups, score)


@pytest.mark.parametrize(
    ("limit", "num_experts", "top_k", "message"),
    [
        (GroupLimit(3, 1), 8, 1, r"groups=3: it must be a divisor of num_experts=8"),
        (GroupLimit(4, 1), 8, 3, r"top_groups=1: it must be enough that top_k=3 fit, 2 experts a group"),
        (GroupLimit(8, 4), 8, 2, r"groups=8: it must be such that a group has 2 experts or more"),
    ],
)
def test_a_limit_that_does_not_fit_its_experts_is_refused(
    limit: GroupLimit, num_experts: int, top_k: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        limit.check(num_experts, top_k)


def test_one_expert_a_group_has_a_best_one() -> None:
    GroupLimit(8, 4, "max").check(8, 4)
