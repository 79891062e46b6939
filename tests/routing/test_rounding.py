"""Token rounding: loads are multiples of the tile, by a plain loop over experts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from routing_laws import DIM, EXPERTS, pairs

from toolkit.routing import (
    Assignment,
    BiasBalancer,
    Capacity,
    GShardRouter,
    HashRouter,
    SinkhornRouter,
    TokenRounding,
    TopKRouter,
)
from toolkit.routing.assignment import count
from toolkit.routing.scores import SCORES


def routed(seed: int, tokens: int, top_k: int) -> Assignment:
    torch.manual_seed(seed)
    valid = torch.rand(tokens) < 0.8
    return TopKRouter(DIM, EXPERTS, top_k)(torch.randn(tokens, DIM) + torch.randn(DIM), valid=valid)


def plain_rounding(assignment: Assignment, multiple: int) -> dict[tuple[int, int], float]:
    """Each expert alone: sort who chose it by gate and all others by probability, and cut at the nearest multiple.

    Top-k gates are probabilities over their sum, so an added one is a probability over the sum of those chosen.
    """
    chosen, probabilities = pairs(assignment), assignment.probabilities.detach()
    real = [token for token in range(assignment.tokens) if assignment.valid is None or bool(assignment.valid[token])]
    chosen_of = {token: [e for t, e in chosen if t == token] for token in real}
    rounded = {}
    for expert in range(assignment.computing_experts):
        inside = sorted((token for token, e in chosen if e == expert), key=lambda token: -chosen[token, expert])
        outside = [token for token in real if (token, expert) not in chosen]
        outside.sort(key=lambda token: -float(probabilities[token, expert]))
        below = len(inside) // multiple * multiple
        above = below + multiple
        up = above - len(inside) <= len(inside) - below and above <= len(real)
        for token in (inside + outside)[: above if up else below]:
            mine = chosen_of[token]
            denominator = float(probabilities[token, mine].sum()) if len(mine) > 1 else 1.0
            added = float(probabilities[token, expert]) / denominator
            rounded[token, expert] = chosen.get((token, expert), added)
    return rounded


@given(st.integers(0, 2**31), st.integers(0, 40), st.integers(1, 3), st.integers(1, 9))
def test_each_expert_takes_its_best_up_to_the_nearest_multiple(
    seed: int, tokens: int, top_k: int, multiple: int
) -> None:
    assignment = routed(seed, tokens, top_k)
    found = TokenRounding(multiple)(assignment)
    assert pairs(found) == pytest.approx(plain_rounding(assignment, multiple))
    before, after = (count(a.expert, EXPERTS) for a in (assignment, found))
    assert (after % multiple == 0).all()
    assert ((after - before).abs() < multiple).all()


@given(st.integers(0, 2**31), st.integers(0, 40), st.integers(1, 3), st.integers(1, 9))
def test_the_triples_stay_in_order_and_what_was_chosen_stays_counted(
    seed: int, tokens: int, top_k: int, multiple: int
) -> None:
    assignment = routed(seed, tokens, top_k)
    found = TokenRounding(multiple)(assignment)
    assert len(found.token) == tokens * top_k + EXPERTS * min(multiple // 2, tokens)  # whatever the data is
    assert (found.token.diff() >= 0).all()
    assert (found.weight[found.expert < 0] == 0).all()
    assert torch.equal(found.counts(), assignment.counts())
    lost = pairs(assignment).keys() - pairs(found).keys()
    assert int(found.dropped) == len(lost)


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "sqrt_softplus"])
@pytest.mark.parametrize("normalize", [True, False])
def test_an_added_gate_is_the_score_under_the_denominator_of_those_chosen(score: str, normalize: bool) -> None:
    router = TopKRouter(DIM, EXPERTS, 2, score=score, normalize=normalize, scale=2.5).double()
    assignment = router(torch.randn(50, DIM, dtype=torch.float64))
    raw = SCORES[score](assignment.logits).raw.detach()
    added = pairs(TokenRounding(8)(assignment)).items() - pairs(assignment).items()
    assert added
    for (token, expert), gate in added:
        denominator = raw[token, assignment.indices[token]].sum() if normalize else 1.0
        assert gate == pytest.approx(float(2.5 * raw[token, expert] / denominator), rel=1e-9)


@pytest.mark.parametrize("kind", ["hash", "sinkhorn", "biased", "gshard"])
def test_an_added_gate_is_at_most_the_least_of_those_the_token_has(kind: str) -> None:
    """Also where the choice was not by probability, which may then be tiny."""
    balancer = BiasBalancer(EXPERTS)
    balancer.bias.copy_(torch.linspace(-1, 1, EXPERTS))
    router = {
        "hash": HashRouter(EXPERTS, 2, vocab_size=7, dim=DIM, score="softmax"),
        "sinkhorn": SinkhornRouter(DIM, EXPERTS, 1),
        "biased": TopKRouter(DIM, EXPERTS, 2, balancer=balancer),
        "gshard": GShardRouter(DIM, EXPERTS),
    }[kind]
    assignment = router(4 * torch.randn(100, DIM), token_ids=torch.randint(7, (100,)))
    before, some = pairs(assignment), False
    for multiple in (16, 20, 50):
        after = pairs(TokenRounding(multiple)(assignment))
        for token, expert in after.keys() - before.keys():
            assert after[token, expert] <= min(gate for (t, _), gate in before.items() if t == token)
            some = True
    assert some


def test_experts_without_computation_are_left_alone() -> None:
    assignment = replace(routed(0, 60, 2), computing=3)
    found = TokenRounding(8)(assignment)
    before, after = (count(a.expert, EXPERTS) for a in (assignment, found))
    assert (after[:3] % 8 == 0).all()
    assert torch.equal(after[3:], before[3:])
    assert (before[3:] % 8 != 0).any()


def test_enough_tokens_round_by_half_a_tile_at_most() -> None:
    assignment = TopKRouter(DIM, EXPERTS, 2)(torch.randn(500, DIM))
    found = TokenRounding(32)(assignment)
    change = count(found.expert, EXPERTS) - assignment.counts()
    assert int(change.abs().max()) <= 16
    assert int(change.max()) > 0 > int(change.min())


def test_half_a_tile_rounds_up() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.3, 0.7]])
    token, expert = torch.arange(4), torch.tensor([0, 0, 1, 1])
    assignment = Assignment(token, expert, probabilities.amax(1), probabilities.log(), probabilities)
    assert TokenRounding(4)(assignment).expert.tolist() == [0, 1, 0, 1, 1, 0, 1, 0]
    assert count(TokenRounding(5)(assignment).expert, 2).tolist() == [0, 0]  # there are not five tokens


def test_evaluation_is_left_as_it_is_and_training_reads_the_future() -> None:
    router, x = TopKRouter(DIM, EXPERTS, 2), torch.randn(60, DIM)
    rounding = TokenRounding(8)
    assert rounding.causal == "evaluation"
    assignment = router(x)
    assert rounding(assignment, training=False) is assignment
    early = {pair for pair in pairs(rounding(assignment)) if pair[0] < 30}
    x[30:] = torch.randn(30, DIM) + 3 * x[:1]
    assert early != {pair for pair in pairs(rounding(router(x))) if pair[0] < 30}


def test_a_multiple_of_one_changes_nothing() -> None:
    assignment = routed(0, 20, 2)
    assert pairs(TokenRounding(1)(assignment)) == pairs(assignment)


def test_it_works_after_capacity() -> None:
    assignment = Capacity(1.0)(routed(0, 40, 2))
    found = TokenRounding(4)(assignment)
    assert (count(found.expert, EXPERTS) % 4 == 0).all()
    assert torch.equal(found.counts(), assignment.counts())


def test_what_a_capacity_dropped_does_not_come_back() -> None:
    assignment = Capacity(0.7)(routed(0, 60, 2))
    found = TokenRounding(8)(assignment)
    before, after = (count(a.expert, EXPERTS) for a in (assignment, found))
    cut = before < assignment.counts()
    assert cut.any()
    assert (after[cut] <= before[cut]).all()
    assert int(found.dropped) == len(pairs(replace(assignment, expert=assignment.choice)).keys() - pairs(found).keys())
    without = {token for token in range(60) if token not in {t for t, _ in pairs(assignment)}}
    assert not without & {t for t, _ in pairs(found)}


def test_gradcheck_of_kept_and_added_gates_in_fp64() -> None:
    router, rounding = TopKRouter(3, 4, 2).double(), TokenRounding(5)
    x = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    found = rounding(router(x))
    assert pairs(found).keys() - pairs(router(x)).keys()
    assert torch.autograd.gradcheck(lambda x: rounding(router(x)).weight, x)


def test_it_compiles_in_one_graph() -> None:
    router, x, valid = TopKRouter(DIM, EXPERTS, 2), torch.randn(16, DIM), torch.arange(16) % 5 != 2
    rounding = TokenRounding(4)
    torch._dynamo.reset()
    forward = torch.compile(lambda x: rounding(router(x, valid=valid)), fullgraph=True, backend="aot_eager")
    assert pairs(forward(x)) == pytest.approx(pairs(rounding(router(x, valid=valid))))


def test_a_multiple_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple=0: it must be positive"):
        TokenRounding(0)
