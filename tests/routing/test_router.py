"""The top-k router against Hugging Face's, and its gradients, precision and losses."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from toolkit.routing import LoadBalancingLoss, RouterZLoss, TopKRouter


def test_normalised_gates_are_mixtrals() -> None:
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

    router = TopKRouter(16, 8, 2)
    theirs = MixtralTopKRouter(MixtralConfig(hidden_size=16, num_local_experts=8, num_experts_per_tok=2))
    theirs.load_state_dict(router.state_dict(), strict=True)
    x = torch.randn(33, 16)
    assignment = router(x)
    logits, weights, indices = theirs(x)
    torch.testing.assert_close(assignment.logits, logits)
    assert torch.equal(assignment.indices, indices)
    torch.testing.assert_close(assignment.weights, weights)


@pytest.mark.parametrize(("top_k", "normalize"), [(1, False), (4, False), (4, True)])
def test_plain_gates_are_olmoes(top_k: int, normalize: bool) -> None:
    from transformers import OlmoeConfig
    from transformers.models.olmoe.modeling_olmoe import OlmoeTopKRouter

    router = TopKRouter(16, 8, top_k, normalize=normalize)
    config = OlmoeConfig(hidden_size=16, num_experts=8, num_experts_per_tok=top_k, norm_topk_prob=normalize)
    theirs = OlmoeTopKRouter(config)
    theirs.load_state_dict(router.state_dict(), strict=True)
    x = torch.randn(33, 16)
    assignment = router(x)
    _, weights, indices = theirs(x)
    assert torch.equal(assignment.indices, indices)
    torch.testing.assert_close(assignment.weights, weights)


@pytest.mark.parametrize("top_k", [1, 3, 5])
def test_each_token_goes_to_its_highest_experts_with_their_probabilities(top_k: int) -> None:
    router = TopKRouter(6, 5, top_k, normalize=False)
    router.requires_grad_(False)
    x = torch.randn(9, 6)
    assignment = router(x)
    assert assignment.token.tolist() == [t for t in range(9) for _ in range(top_k)]
    for t in range(9):
        scores = torch.softmax(router.weight @ x[t], dim=0)
        best = sorted(range(5), key=lambda e: -float(scores[e]))[:top_k]
        assert assignment.indices[t].tolist() == best
        torch.testing.assert_close(assignment.weights[t], scores[best])
        torch.testing.assert_close(assignment.probabilities[t], scores)


def test_normalised_gates_sum_to_one_and_with_all_experts_are_the_softmax() -> None:
    x = torch.randn(9, 6)
    assignment = TopKRouter(6, 5, 3)(x)
    torch.testing.assert_close(assignment.weights.sum(-1), torch.ones(9))
    every = TopKRouter(6, 5, 5)(x)
    torch.testing.assert_close(every.weights, every.probabilities.gather(1, every.indices))


def test_normalize_defaults_to_more_than_one_expert() -> None:
    assert not TopKRouter(4, 4, 1).normalize
    assert TopKRouter(4, 4, 2).normalize
    assert not TopKRouter(4, 4, 2, normalize=False).normalize


def test_an_explicit_normalised_top_1_warns_and_gives_the_router_no_gradient() -> None:
    with pytest.warns(UserWarning, match="top_k=1 makes every gate 1"):
        router = TopKRouter(4, 4, 1, normalize=True, losses=[])
    assignment = router(torch.randn(5, 4))
    assert (assignment.weight == 1).all()
    (gradient,) = torch.autograd.grad(assignment.weight.sum(), router.weight)
    assert float(gradient.abs().max()) < 1e-7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TopKRouter(4, 4, 1)
        TopKRouter(4, 4, 2, normalize=True)


@pytest.mark.parametrize(("top_k", "normalize"), [(1, None), (2, None), (2, False)])
def test_the_gates_gradient_reaches_the_routers_weight(top_k: int, normalize: bool | None) -> None:
    router = TopKRouter(4, 5, top_k, normalize, losses=[])
    assignment = router(torch.randn(9, 4))
    (gradient,) = torch.autograd.grad((assignment.weight * torch.randn(9 * top_k)).sum(), router.weight)
    assert (gradient != 0).any()


@pytest.mark.parametrize("normalize", [True, False])
def test_gradcheck_of_gates_and_losses_in_fp64(normalize: bool) -> None:
    torch.manual_seed(3)
    router = TopKRouter(3, 4, 2, normalize).double()
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    # The finite differences must not change which experts are chosen.
    ordered = router(x).probabilities.detach().sort(dim=-1).values
    assert float((ordered[:, 2] - ordered[:, 1]).min()) > 1e-3

    def outputs(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        assignment = torch.func.functional_call(router, {"weight": weight}, (x,))
        return assignment.weight, assignment.losses["z"]

    assert torch.autograd.gradcheck(outputs, (x, router.weight))


def test_gradcheck_of_the_balance_loss_with_its_choices_held() -> None:
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    expert = torch.tensor([0, 1, 0, 3, 2, 0])
    loss = LoadBalancingLoss(0.5)
    assert torch.autograd.gradcheck(lambda z: loss(z, z.softmax(-1), expert), logits)


def test_scores_are_fp32_under_bf16_autocast_and_for_a_bf16_model() -> None:
    router = TopKRouter(64, 8, 2)
    x = torch.randn(33, 64)
    plain = router(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = router(x)
    assert cast.logits.dtype == cast.weight.dtype == torch.float32
    assert torch.equal(plain.logits, cast.logits)
    assert torch.equal(plain.weight, cast.weight)
    half = router.bfloat16()(x.bfloat16())
    assert half.logits.dtype == half.probabilities.dtype == half.weight.dtype == torch.float32
    exact = x.bfloat16().double() @ router.weight.detach().double().t()
    torch.testing.assert_close(half.logits.double(), exact, rtol=1e-5, atol=1e-5)


def test_fp64_weights_are_scored_in_fp64() -> None:
    assert TopKRouter(4, 4, 2).double()(torch.randn(3, 4)).logits.dtype == torch.float64


def test_losses_are_there_in_training_by_name_and_absent_in_evaluation() -> None:
    router = TopKRouter(6, 4, 2)
    x = torch.randn(9, 6)
    assignment = router(x)
    assert set(assignment.losses) == {"balance", "z"}
    inputs = assignment.logits, assignment.probabilities, assignment.expert
    assert torch.equal(assignment.losses["balance"], LoadBalancingLoss(0.01)(*inputs))
    assert torch.equal(assignment.losses["z"], RouterZLoss(0.001)(*inputs))
    for loss in assignment.losses.values():
        (gradient,) = torch.autograd.grad(loss, router.weight, retain_graph=True)
        assert (gradient != 0).any()
    assert router.eval()(x).losses == {}
    assert TopKRouter(6, 4, 2, losses=[])(x).losses == {}


def test_a_tokens_experts_depend_on_that_token_alone() -> None:
    router = TopKRouter(6, 4, 2, losses=[])
    x = torch.randn(9, 6)
    changed = x.clone()
    changed[5:] = torch.randn(4, 6)
    before, after = router(x), router(changed)
    assert torch.equal(before.indices[:5], after.indices[:5])
    assert torch.equal(before.weights[:5], after.weights[:5])


def test_relabelling_the_experts_relabels_the_choice() -> None:
    router, relabelled = TopKRouter(6, 5, 2, losses=[]), TopKRouter(6, 5, 2, losses=[])
    order = torch.randperm(5)
    relabelled.load_state_dict({"weight": router.weight[order]})
    x = torch.randn(9, 6)
    assert torch.equal(order[relabelled(x).indices], router(x).indices)


def test_at_the_start_logits_of_normalised_tokens_have_unit_variance() -> None:
    router = TopKRouter(256, 64, 2)
    x = torch.nn.functional.rms_norm(torch.randn(512, 256), (256,))
    assert float(router(x).logits.detach().std()) == pytest.approx(1.0, rel=0.03)


def test_no_token_at_all_is_an_empty_assignment() -> None:
    assignment = TopKRouter(6, 4, 2).eval()(torch.randn(0, 6))
    assert assignment.token.shape == assignment.expert.shape == assignment.weight.shape == (0,)
    assert assignment.tokens == 0


def test_its_work_is_one_product_of_every_token_with_every_expert() -> None:
    (work,) = TopKRouter(6, 4, 2).work(10)
    assert work.kind == "router"
    assert work.needed == work.square == work.computed == 10 * 6 * 4


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"dim": 0}, "dim=0"),
        ({"num_experts": 0}, "num_experts=0"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_k": 5}, r"top_k=5: it must be between 1 and num_experts=4"),
    ],
)
def test_bad_sizes_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        TopKRouter(**{"dim": 6, "num_experts": 4, "top_k": 2, **settings})
