"""GShard's router: its gates against Hugging Face's NLLB, and how often the second expert stays."""

from __future__ import annotations

import math

import pytest
import torch
from router_twins import DIM, EXPERTS, dense
from torch import Tensor

from toolkit.routing import GShardRouter, TopKRouter


def with_second_gate(g2: float, tokens: int) -> tuple[GShardRouter, Tensor]:
    """A router of three experts and tokens that all have this second gate; the third expert has next to nothing."""
    router = GShardRouter(1, 3, losses=[])
    router.weight.data = torch.tensor([[0.0], [math.log(g2 / (1 - g2))], [-30.0]])
    return router, torch.ones(tokens, 1)


@pytest.mark.parametrize("second", ["always", "random"])
def test_in_evaluation_gates_are_nllbs_with_every_second_expert(second: str) -> None:
    from transformers import NllbMoeConfig
    from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeTop2Router

    config = NllbMoeConfig(
        d_model=DIM,
        num_experts=EXPERTS,
        second_expert_policy="all",
        normalize_router_prob_before_dropping=True,
        moe_eval_capacity_token_fraction=1.0,
        router_bias=False,
    )
    theirs = NllbMoeTop2Router(config).eval()
    router = GShardRouter(DIM, EXPERTS, second=second).eval()
    router.weight.data.copy_(theirs.classifier.weight.data)
    x = torch.randn(65, DIM)
    assignment = router(x)
    first, gates, logits = theirs(x)
    torch.testing.assert_close(assignment.logits, logits)
    assert torch.equal(assignment.indices[:, 0], first.argmax(-1))
    here = dense(assignment.weights, assignment.indices)
    torch.testing.assert_close(here, gates)
    cotangent = torch.randn(65, EXPERTS)
    (found,) = torch.autograd.grad((here * cotangent).sum(), router.weight)
    (expected,) = torch.autograd.grad((gates * cotangent).sum(), theirs.classifier.weight)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("g2", [0.02, 0.15, 0.35, 0.49])
def test_the_second_expert_stays_with_probability_twice_its_gate(g2: float) -> None:
    tokens = 20_000
    router, x = with_second_gate(g2, tokens)
    kept = int((router(x).expert.view(-1, 2)[:, 1] == 1).sum())
    p = min(1.0, 2 * g2)
    assert abs(kept - tokens * p) < 4 * math.sqrt(tokens * p * (1 - p))


def test_two_equal_gates_always_stay() -> None:
    router, x = with_second_gate(0.5, 1000)
    assert (router(x).expert >= 0).all()


def test_draws_are_of_torchs_generator() -> None:
    router, x = with_second_gate(0.25, 100)
    torch.manual_seed(5)
    first = router(x).expert
    assert not torch.equal(first, router(x).expert)
    torch.manual_seed(5)
    assert torch.equal(first, router(x).expert)


def test_what_is_left_out_was_not_chosen_and_not_dropped_and_the_rest_is_as_it_was() -> None:
    router, always = GShardRouter(6, 5, losses=[]), TopKRouter(6, 5, 2, losses=[])
    always.load_state_dict(router.state_dict())
    x = torch.randn(200, 6)
    random, both = router(x), always(x)
    out = random.expert < 0
    assert out.any()
    assert not out.view(-1, 2)[:, 0].any()
    assert (random.choice[out] == -1).all()
    assert (random.weight[out] == 0).all()
    assert int(random.dropped) == 0
    assert int(random.counts().sum()) == int((~out).sum())
    assert torch.equal(random.expert[~out], both.expert[~out])
    assert torch.equal(random.weight[~out], both.weight[~out])  # normalised over both, kept or not


def test_a_second_expert_left_out_gives_no_gradient_through_its_gate() -> None:
    router = GShardRouter(6, 5, losses=[])
    assignment = router(torch.randn(50, 6))
    (gradient,) = torch.autograd.grad(assignment.weight[assignment.expert < 0].sum(), router.weight, retain_graph=True)
    assert (gradient == 0).all()
    (gradient,) = torch.autograd.grad(assignment.weight[assignment.expert >= 0].sum(), router.weight)
    assert (gradient != 0).any()


def test_padding_and_its_second_expert_are_left_out() -> None:
    router = GShardRouter(6, 5, losses=[])
    valid = torch.tensor([True, False, True])
    assignment = router(torch.randn(3, 6), valid=valid)
    assert (assignment.expert.view(3, 2)[1] == -1).all()
    assert (assignment.choice.view(3, 2)[1] == -1).all()


@pytest.mark.parametrize(
    ("num_experts", "second", "message"),
    [
        (1, "random", "num_experts=1: it must be 2 or more"),
        (0, "random", "num_experts=0: it must be 2 or more"),
        (4, "sampling", "second='sampling'.*'random', 'always'"),
    ],
)
def test_what_is_wrong_is_named(num_experts: int, second: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GShardRouter(6, num_experts, second=second)
