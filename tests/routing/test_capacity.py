"""Capacity: what is kept, by a plain loop over queues; what is counted; what the gates become."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from routing_laws import DIM, EXPERTS, pairs
from torch import Tensor

from toolkit.routing import Assignment, Capacity, GShardRouter, LoadBalancingLoss, RoutingStats, TopKRouter

POLICIES = ("probability", "position")
SETTINGS = st.fixed_dictionaries(
    {
        "factor": st.sampled_from([0.1, 0.5, 1.0, 1.25, 9.0]),
        "policy": st.sampled_from(POLICIES),
        "min_capacity": st.sampled_from([1, 2, 4]),
        "per": st.sampled_from(["batch", "sequence"]),
    }
)


def routed(seed: int, tokens: int, top_k: int, levels: int = 3) -> Assignment:
    """Tokens with different experts each, few levels of gates so that many tie, some padding, three sequences."""
    torch.manual_seed(seed)
    router = TopKRouter(DIM, EXPERTS, top_k)
    valid = torch.rand(tokens) < 0.8
    assignment = router(torch.randn(tokens, DIM), valid=valid, sequence_ids=torch.arange(tokens) * 3 // max(tokens, 1))
    gates = torch.randint(1, levels + 1, assignment.weight.shape) / levels
    return replace(assignment, weight=torch.where(assignment.expert < 0, 0.0, gates))


def plain_kept(assignment: Assignment, settings: Capacity) -> list[bool]:
    """Every sequence and every expert in turn calls the choices it keeps."""
    tokens = assignment.token.tolist()
    sequences = assignment.sequence_ids.tolist() if settings.per == "sequence" else [0] * assignment.tokens
    triples = [
        {"n": n, "token": token, "rank": tokens[:n].count(token), "expert": expert, "gate": gate}
        for n, (token, expert, gate) in enumerate(
            zip(tokens, assignment.expert.tolist(), assignment.weight.tolist(), strict=True)
        )
    ]
    kept = [False] * len(tokens)
    for sequence in set(sequences):
        here = [triple for triple in triples if sequences[triple["token"]] == sequence and triple["expert"] >= 0]
        room = max(settings.min_capacity, math.ceil(round(settings.factor * len(here) / EXPERTS, 9)))
        for expert in range(EXPERTS):
            queue = [triple for triple in here if triple["expert"] == expert]
            if settings.policy == "probability":
                queue.sort(key=lambda triple: (-triple["gate"], triple["token"]))
            else:
                queue.sort(key=lambda triple: (triple["rank"], triple["token"]))
            for triple in queue[:room]:
                kept[triple["n"]] = True
    return kept


@given(st.integers(0, 2**31), st.integers(0, 20), st.integers(1, 3), SETTINGS)
def test_each_expert_keeps_the_first_of_its_queue(seed: int, tokens: int, top_k: int, settings: dict[str, str]) -> None:
    assignment, capacity = routed(seed, tokens, top_k), Capacity(**settings)
    found, kept = capacity(assignment), plain_kept(assignment, capacity)
    assert (found.expert >= 0).tolist() == kept
    for n, keep in enumerate(kept):
        assert int(found.expert[n]) == (int(assignment.expert[n]) if keep else -1)
        assert float(found.weight[n]) == (float(assignment.weight[n]) if keep else 0.0)
    assert torch.equal(found.token, assignment.token)
    assert int(found.dropped) == int((assignment.expert >= 0).sum()) - sum(kept)


@pytest.mark.parametrize("policy", POLICIES)
def test_experts_without_computation_take_all_that_comes(policy: str) -> None:
    assignment, capacity = routed(0, 40, 2), Capacity(0.3, policy)
    every, some = capacity(assignment), capacity(replace(assignment, computing=2))
    free = assignment.expert >= 2
    assert torch.equal(some.expert[free], assignment.expert[free])
    assert not torch.equal(every.expert[free], assignment.expert[free])
    assert torch.equal(some.expert[~free], every.expert[~free])


@given(st.integers(0, 2**31), st.integers(0, 20), st.integers(1, 3), SETTINGS)
def test_what_the_router_chose_is_counted_before_dropping(
    seed: int, tokens: int, top_k: int, settings: dict[str, str]
) -> None:
    assignment = routed(seed, tokens, top_k)
    found = Capacity(**settings)(assignment)
    assert torch.equal(found.counts(), assignment.counts())
    assert torch.equal(LoadBalancingLoss()(found), LoadBalancingLoss()(assignment))
    assert torch.equal(RoutingStats.of(found).load, RoutingStats.of(assignment).load)
    again = Capacity(**settings)(found)
    assert torch.equal(again.counts(), assignment.counts())
    assert torch.equal(again.expert, found.expert)  # C is of what was chosen, so there is nothing left to drop


@given(st.integers(0, 2**31), st.integers(1, 20), st.integers(1, 3), SETTINGS)
def test_renormalised_after_dropping_the_gates_of_a_token_sum_to_what_they_did(
    seed: int, tokens: int, top_k: int, settings: dict[str, str]
) -> None:
    assignment = routed(seed, tokens, top_k)
    before = Capacity(**settings)(assignment)
    after = Capacity(**settings, renormalize="after")(assignment)
    assert torch.equal(after.expert, before.expert)
    for token in range(tokens):
        own = assignment.token == token
        given_gates, left, made_up = assignment.weight[own], before.weight[own], after.weight[own]
        if float(left.sum()) == 0:
            assert made_up.tolist() == [0.0] * top_k
            continue
        torch.testing.assert_close(made_up.sum(), given_gates.sum())
        torch.testing.assert_close(made_up / made_up.sum(), left / left.sum())


@pytest.mark.parametrize("policy", POLICIES)
def test_of_normalised_gates_after_is_division_by_the_kept_sum(policy: str) -> None:
    assignment = TopKRouter(DIM, EXPERTS, 2)(torch.randn(30, DIM))
    found = Capacity(0.8, policy, renormalize="after")(assignment)
    some_lost_one = 0
    for token in range(30):
        own = (found.token == token) & (found.expert >= 0)
        if own.any():
            torch.testing.assert_close(found.weight[own].sum(), torch.tensor(1.0))
            some_lost_one += int(own.sum() == 1)
    assert some_lost_one > 0


@pytest.mark.parametrize("policy", POLICIES)
def test_with_ample_room_nothing_changes(policy: str) -> None:
    assignment = routed(0, 20, 2)
    for renormalize in ("before", "after"):
        found = Capacity(EXPERTS, policy, renormalize=renormalize)(assignment)
        assert pairs(found) == pairs(assignment)
        assert int(found.dropped) == 0


def test_all_first_choices_queue_before_any_second() -> None:
    # Token 0's second choice is expert 0, the first choice of token 1, which is later but comes before.
    logits = torch.zeros(2, 2)
    token, expert = torch.tensor([0, 0, 1, 1]), torch.tensor([1, 0, 0, 1])
    assignment = Assignment(token, expert, torch.tensor([0.6, 0.4, 0.6, 0.4]), logits, logits.softmax(-1))
    assert Capacity(0.5, "position")(assignment).expert.tolist() == [1, -1, 0, -1]


def test_a_second_expert_that_gshard_did_not_keep_takes_no_room() -> None:
    assignment = GShardRouter(DIM, EXPERTS)(torch.randn(60, DIM))
    chosen = int((assignment.choice >= 0).sum())
    assert chosen < 120
    found = Capacity(1.0, "position")(assignment)
    kept = found.expert[found.expert >= 0].bincount(minlength=EXPERTS)
    assert int(kept.max()) <= math.ceil(chosen / EXPERTS)
    assert int(found.dropped) == chosen - int(kept.sum())


@pytest.mark.parametrize("renormalize", ["before", "after"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_kept_gates_have_their_gradient_in_fp64_and_dropped_ones_none(renormalize: str, top_k: int) -> None:
    router = TopKRouter(3, 4, top_k, normalize=False).double()
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    capacity = Capacity(0.75, renormalize=renormalize)
    found = capacity(router(x))
    assert int(found.dropped) > 0
    dropped = found.weight[found.expert < 0].sum()
    (none,) = torch.autograd.grad(dropped, x, retain_graph=True)
    assert (none == 0).all()
    (some,) = torch.autograd.grad(found.weight.sum(), x)
    assert (some != 0).any()
    assert torch.autograd.gradcheck(lambda x: capacity(router(x)).weight, x)


@pytest.mark.parametrize("policy", POLICIES)
def test_dropping_reads_the_future_so_evaluation_drops_nothing_unless_told(policy: str) -> None:
    router, x = TopKRouter(DIM, EXPERTS, 2), torch.randn(24, DIM)
    dropless, dropping = Capacity(0.5, policy), Capacity(0.5, policy, evaluation_factor=0.75)
    assert (dropless.causal, dropping.causal) == ("evaluation", "never")
    assignment = router(x)
    assert dropless(assignment, training=False) is assignment
    assert pairs(dropping(assignment, training=False)) == pairs(Capacity(0.75, policy)(assignment))
    # The first half alone has less room, and for its second choices less of a queue, than with what follows.
    whole = {pair for pair in pairs(dropless(assignment)) if pair[0] < 12}
    assert whole != pairs(dropless(router(x[:12]))).keys()


def test_per_sequence_each_sequence_is_as_alone() -> None:
    router, x = TopKRouter(DIM, EXPERTS, 2), torch.randn(30, DIM)
    capacity = Capacity(0.7, "position", per="sequence")
    whole = pairs(capacity(router(x, sequence_ids=torch.arange(30) // 10)))
    for start in (0, 10, 20):
        alone = pairs(capacity(router(x[start : start + 10])))
        here = {(token - start, expert) for token, expert in whole if start <= token < start + 10}
        assert here == alone.keys()


def test_it_compiles_in_one_graph() -> None:
    router, x = TopKRouter(DIM, EXPERTS, 2), torch.randn(16, DIM)
    ids = torch.arange(16) // 4
    capacity = Capacity(0.75, "position", renormalize="after", per="sequence")

    def forward(x: Tensor) -> Assignment:
        return capacity(router(x, sequence_ids=ids))

    torch._dynamo.reset()
    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")
    assert pairs(compiled(x)) == pytest.approx(pairs(forward(x)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"factor": 0.0}, "factor=0.0: it must be positive"),
        ({"factor": -1.0}, "factor=-1.0: it must be positive"),
        ({"factor": 1.0, "policy": "random"}, "policy='random': it must be one of 'probability', 'position'"),
        ({"factor": 1.0, "renormalize": "no"}, "renormalize='no': it must be one of 'before', 'after'"),
        ({"factor": 1.0, "min_capacity": 0}, "min_capacity=0: it must be positive"),
        ({"factor": 1.0, "per": "token"}, "per='token': it must be one of 'batch', 'sequence'"),
        ({"factor": 1.0, "evaluation_factor": 0.0}, "evaluation_factor=0.0: it must be positive, or None"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Capacity(**settings)
