"""Routers that look at no token: uniform draws, and a round robin that is balanced."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from routing_laws import (
    DIM,
    EXPERTS,
    check_compiles,
    check_few_tokens,
    check_padding,
    check_precision,
    check_replay,
    check_triples,
    earlier_pairs_after_a_change,
)

from toolkit.routing import RandomRouter, Router, RoutingStats, UniformRouter

KINDS = [RandomRouter, UniformRouter]


@pytest.mark.parametrize("kind", KINDS)
def test_the_laws_of_every_router(kind: type[RandomRouter] | type[UniformRouter]) -> None:
    router = kind(EXPERTS, 2)
    check_triples(deepcopy(router))
    check_few_tokens(deepcopy(router))
    check_replay(deepcopy(router))
    if kind is UniformRouter:
        check_padding(router)
        check_precision(router)
    check_compiles(router)
    assert router.causal == "always"
    assert earlier_pairs_after_a_change(router)
    assert earlier_pairs_after_a_change(router.eval())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top_k", [1, 3, EXPERTS])
def test_every_token_has_as_many_different_experts_with_equal_gates(kind: type[Router], top_k: int) -> None:
    for training in (True, False):
        router = kind(EXPERTS, top_k).train(training)
        assignment = router(torch.randn(11, DIM))
        assert all(len(set(row)) == top_k for row in assignment.indices.tolist())
        torch.testing.assert_close(assignment.weights, torch.full((11, top_k), 1 / top_k))
        assert assignment.losses == {}
        assert list(router.parameters()) == []
        assert router.work(9) == []


def test_draws_are_uniform_over_sets_of_experts_and_follow_torchs_generator() -> None:
    router = RandomRouter(4, 2)
    indices = router(torch.randn(6000, DIM)).indices
    sets = (1 << indices).sum(-1).bincount(minlength=16)
    drawn = sets[sets > 0]
    assert len(drawn) == 6
    # Chi-square with 5 degrees of freedom is above 20.5 once in a thousand.
    assert float(((drawn - 1000.0) ** 2 / 1000).sum()) < 20.5
    torch.manual_seed(5)
    first = router(torch.randn(20, DIM)).expert
    torch.manual_seed(5)
    assert torch.equal(first, router(torch.randn(20, DIM)).expert)
    assert not torch.equal(first, router(torch.randn(20, DIM)).expert)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_round_robin_is_balanced_to_one_token(top_k: int) -> None:
    for tokens in (1, 7, 10, 40):
        counts = UniformRouter(EXPERTS, top_k)(torch.randn(tokens, DIM)).counts()
        assert int(counts.max() - counts.min()) <= 1
    assert RoutingStats.of(UniformRouter(EXPERTS, top_k)(torch.randn(40, DIM))).max_violation == pytest.approx(0)


def test_the_round_robin_says_what_it_is_for() -> None:
    assert "benchmarks only" in repr(UniformRouter(4, 2))
    assert "BENCHMARKS ONLY" in str(UniformRouter.__doc__)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_settings_are_refused(kind: type[RandomRouter]) -> None:
    with pytest.raises(ValueError, match="top_k=5: it must be between 1 and num_experts=4"):
        kind(4, 5)
    with pytest.raises(ValueError, match="num_experts=0: it must be positive"):
        kind(0, 1)
    with pytest.raises(ValueError, match=r"valid.shape=\(3,\)"):
        kind(4, 2)(torch.randn(4, DIM), valid=torch.ones(3, dtype=torch.bool))
