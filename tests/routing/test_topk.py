"""The top-k router against Hugging Face's, against brute force, and its gradients."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from router_twins import DIM, EXPERTS, FAMILIES, Bias, dense, twins
from torch import Tensor, nn

from toolkit.routing import TopKRouter

SCORES = ("softmax", "sigmoid", "sqrt_softplus")


def scored(name: str, logit: float) -> float:
    """One expert's score before any normalising over experts, by the textbook."""
    if name == "sigmoid":
        return 1 / (1 + math.exp(-logit))
    return math.sqrt(math.log(1 + math.exp(logit))) if name == "sqrt_softplus" else math.exp(logit)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_experts_gates_and_gradients_are_hugging_faces(family: str) -> None:
    ours, theirs = twins(family)
    x, cotangent = torch.randn(65, DIM, requires_grad=True), torch.randn(65, EXPERTS)
    assignment = ours(x)
    logits, weights, experts = theirs(x)
    torch.testing.assert_close(assignment.logits, logits)
    assert torch.equal(assignment.indices.sort().values, experts.sort().values)
    here, there = dense(assignment.weights, assignment.indices), dense(weights, experts)
    torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-6)
    found = torch.autograd.grad((here * cotangent).sum(), (x, *ours.parameters()))
    expected = torch.autograd.grad((there * cotangent).sum(), (x, *theirs.parameters()))
    for mine, yours in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, yours, rtol=1e-5, atol=1e-5)


def test_gates_are_jetmoes() -> None:
    from transformers.models.jetmoe.modeling_jetmoe import JetMoeTopKGating

    theirs = JetMoeTopKGating(DIM, EXPERTS, 2)
    router = TopKRouter(DIM, EXPERTS, 2, pre_softmax=False, losses=[])
    router.weight.data.copy_(theirs.layer.weight.data)
    x = torch.randn(33, DIM)
    _, token, gates, sizes, logits = theirs(x)
    assignment = router(x)
    torch.testing.assert_close(assignment.logits, logits)
    experts = torch.arange(EXPERTS).repeat_interleave(torch.tensor(sizes))
    expected = torch.zeros(33, EXPERTS).index_put((token, experts), gates)
    torch.testing.assert_close(dense(assignment.weights, assignment.indices), expected)


@given(
    st.integers(0, 2**31),
    st.sampled_from(SCORES),
    st.sampled_from([None, True, False]),
    st.integers(1, 6),
    st.booleans(),
)
def test_experts_and_gates_are_the_textbooks_by_brute_force(
    seed: int, score: str, normalize: bool | None, top_k: int, biased: bool
) -> None:
    torch.manual_seed(seed)
    balancer = Bias(torch.randn(6).double()) if biased else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        router = TopKRouter(
            3, 6, top_k, score=score, normalize=normalize, scale=1.5, balancer=balancer, losses=[]
        ).double()
    x = torch.randn(4, 3).double()
    assignment = router(x)
    for t in range(4):
        logits = (router.weight @ x[t]).tolist()
        each = [scored(score, z) for z in logits]
        shares = [s / sum(each) for s in each]
        scores = shares if score == "softmax" else each
        bias = balancer.bias.tolist() if balancer else [0.0] * 6
        best = sorted(range(6), key=lambda e: -(scores[e] + bias[e]))[:top_k]
        total = sum(scores[e] for e in best) if router.normalize else 1.0
        assert assignment.indices[t].tolist() == best
        assert assignment.weights[t].tolist() == pytest.approx([1.5 * scores[e] / total for e in best], rel=1e-9)
        assert assignment.probabilities[t].tolist() == pytest.approx(shares, rel=1e-9)


def test_tokens_stand_in_order_with_their_experts_best_first() -> None:
    assignment = TopKRouter(6, 5, 3, losses=[])(torch.randn(9, 6))
    assert assignment.token.tolist() == [t for t in range(9) for _ in range(3)]
    assert (assignment.weights.diff(dim=-1) <= 0).all()


@pytest.mark.parametrize("top_k", [2, 5])
def test_softmax_over_the_chosen_is_the_normalised_softmax_over_all(top_k: int) -> None:
    before, after = TopKRouter(6, 5, top_k).double(), TopKRouter(6, 5, top_k, pre_softmax=False).double()
    after.load_state_dict(before.state_dict())
    x = torch.randn(9, 6).double()
    assert torch.equal(before(x).expert, after(x).expert)
    torch.testing.assert_close(before(x).weight, after(x).weight, rtol=1e-12, atol=0)
    torch.testing.assert_close(before(x).probabilities, after(x).probabilities, rtol=1e-12, atol=0)


@pytest.mark.parametrize("score", SCORES)
def test_normalised_gates_sum_to_the_scale(score: str) -> None:
    assignment = TopKRouter(6, 5, 3, score=score, scale=2.5)(torch.randn(9, 6))
    torch.testing.assert_close(assignment.weights.sum(-1), torch.full((9,), 2.5))


@pytest.mark.parametrize(
    ("score", "normalize", "pre_softmax"),
    [(score, normalize, True) for score in SCORES for normalize in (True, False)] + [("softmax", True, False)],
)
def test_gradcheck_of_gates_probabilities_and_bias(score: str, normalize: bool, pre_softmax: bool) -> None:
    torch.manual_seed(3)
    router = TopKRouter(
        3, 4, 2, score=score, normalize=normalize, pre_softmax=pre_softmax, bias=True, scale=1.5, losses=[]
    ).double()
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    # The finite differences must not change which experts are chosen.
    ordered = router(x).probabilities.detach().sort(dim=-1).values
    assert float((ordered[:, 2] - ordered[:, 1]).min()) > 1e-4

    def outputs(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        assignment = torch.func.functional_call(router, {"weight": weight, "bias": bias}, (x,))
        return assignment.weight, assignment.probabilities, assignment.logits

    assert torch.autograd.gradcheck(outputs, (x, router.weight, router.bias))


def test_a_bias_moves_the_choice_and_never_a_gate() -> None:
    x, bias = torch.randn(33, 6), torch.tensor([1.0, -1.0, 0.0, 0.0, 0.5])
    plain = TopKRouter(6, 5, 2, score="sigmoid", normalize=False, losses=[])
    biased = TopKRouter(6, 5, 2, score="sigmoid", normalize=False, balancer=Bias(bias), losses=[])
    biased.load_state_dict(plain.state_dict(), strict=False)
    before, after = plain(x), biased(x)
    assert not torch.equal(before.expert, after.expert)
    torch.testing.assert_close(after.weights, torch.sigmoid(before.logits).gather(1, after.indices))
    assert torch.equal(before.probabilities, after.probabilities)


def test_a_balancer_sees_training_forwards_only_and_without_padding() -> None:
    balancer = Bias(torch.zeros(5))
    router = TopKRouter(6, 5, 2, balancer=balancer, losses=[])
    x, valid = torch.randn(4, 6), torch.tensor([True, False, True, True])
    router.eval()(x)
    assert balancer.observed == []
    router.train()(x, valid=valid)
    (seen,) = balancer.observed
    assert (seen.choice.view(4, 2)[1] == -1).all()
    assert int(seen.counts().sum()) == 6


def test_a_balancers_bias_stays_in_evaluation() -> None:
    router = TopKRouter(6, 5, 1, balancer=Bias(torch.tensor([0.0, 0.0, 9.0, 0.0, 0.0])), losses=[]).eval()
    assert (router(torch.randn(7, 6)).expert == 2).all()


def test_normalize_defaults_to_more_than_one_expert() -> None:
    assert not TopKRouter(4, 4, 1).normalize
    assert TopKRouter(4, 4, 2).normalize
    assert not TopKRouter(4, 4, 2, normalize=False).normalize


@pytest.mark.parametrize("settings", [{"normalize": True}, {"pre_softmax": False}])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_normalised_top_1_warns_and_gives_the_router_no_gradient(settings: dict[str, bool], scale: float) -> None:
    with pytest.warns(UserWarning, match="top_k=1 makes every gate 1"):
        router = TopKRouter(4, 4, 1, **settings, scale=scale, losses=[])
    assignment = router(torch.randn(5, 4))
    assert (assignment.weight == scale).all()
    (gradient,) = torch.autograd.grad(assignment.weight.sum(), router.weight)
    assert float(gradient.abs().max()) < 1e-6


def test_nothing_else_warns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TopKRouter(4, 4, 1)
        TopKRouter(4, 4, 1, normalize=False)
        TopKRouter(4, 4, 2, normalize=True)
        TopKRouter(4, 4, 2, pre_softmax=False)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(("top_k", "normalize"), [(1, None), (2, None), (2, False)])
def test_the_gates_gradient_reaches_the_routers_weight(score: str, top_k: int, normalize: bool | None) -> None:
    router = TopKRouter(4, 5, top_k, score=score, normalize=normalize, losses=[])
    assignment = router(torch.randn(9, 4))
    (gradient,) = torch.autograd.grad((assignment.weight * torch.randn(9 * top_k)).sum(), router.weight)
    assert (gradient != 0).any()


def test_relabelling_the_experts_relabels_the_choice() -> None:
    router, relabelled = TopKRouter(6, 5, 2, losses=[]), TopKRouter(6, 5, 2, losses=[])
    order = torch.randperm(5)
    relabelled.load_state_dict({"weight": router.weight[order]})
    x = torch.randn(9, 6)
    assert torch.equal(order[relabelled(x).indices], router(x).indices)


def test_resetting_clears_the_learned_bias() -> None:
    router = TopKRouter(6, 5, 2, bias=True)
    nn.init.ones_(router.bias)
    before = router.weight.clone()
    router.reset_parameters()
    assert (router.bias == 0).all()
    assert not torch.equal(router.weight, before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 0}, r"top_k=0: it must be between 1 and num_experts=8"),
        ({"top_k": 9}, r"top_k=9: it must be between 1 and num_experts=8"),
        ({"score": "relu"}, r"score='relu'.*'softmax', 'sigmoid', 'sqrt_softplus'"),
        ({"scale": 0.0}, r"scale=0.0: it must be positive"),
        ({"pre_softmax": False, "score": "sigmoid"}, r"score='sigmoid'.*'softmax' where pre_softmax=False"),
        ({"pre_softmax": False, "normalize": False}, r"normalize=False.*True or None where pre_softmax=False"),
        ({"groups": 4}, r"top_groups=None: it must be 1 to groups=4"),
        ({"top_groups": 2}, r"top_groups=2: it must be given together with groups"),
        ({"groups": 3, "top_groups": 1}, r"groups=3: it must be a divisor of num_experts=8"),
        ({"balancer": Bias(torch.zeros(7))}, r"balancer.bias.shape=\(7,\): it must be \(num_experts,\) = \(8,\)"),
    ],
)
def test_what_is_wrong_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TopKRouter(4, 8, **({"top_k": 2} | settings))


def test_it_prints_what_was_set() -> None:
    text = repr(TopKRouter(4, 8, 2, score="sigmoid", groups=4, top_groups=2, scale=2.5))
    assert "top_k=2" in text and "score_function=sigmoid" in text
    assert "GroupLimit(groups=4, top_groups=2, score='top2_sum')" in text and "scale=2.5" in text
