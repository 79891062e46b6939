"""Switch Transformer's router against Hugging Face's."""

from __future__ import annotations

import pytest
import torch
from router_twins import DIM, EXPERTS, dense

from toolkit.routing import SwitchRouter, TopKRouter


@pytest.mark.parametrize("training", [True, False])
def test_expert_gate_logits_and_gradients_are_hugging_faces_jitter_included(training: bool) -> None:
    from transformers import SwitchTransformersConfig
    from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersTop1Router

    config = SwitchTransformersConfig(
        d_model=DIM, num_experts=EXPERTS, expert_capacity=1000, router_jitter_noise=0.2, router_bias=False
    )
    theirs = SwitchTransformersTop1Router(config).train(training)
    router = SwitchRouter(DIM, EXPERTS, jitter=0.2, losses=[]).train(training)
    router.weight.data.copy_(theirs.classifier.weight.data)
    x = torch.randn(65, DIM)
    torch.manual_seed(7)
    assignment = router(x)
    torch.manual_seed(7)
    chosen, gates, logits = theirs(x[None].clone())  # it multiplies its input in place
    torch.testing.assert_close(assignment.noisy_logits if training else assignment.logits, logits[0])
    there = chosen[0] * gates[0]
    here = dense(assignment.weights, assignment.indices)
    torch.testing.assert_close(here, there)
    cotangent = torch.randn(65, EXPERTS)
    (found,) = torch.autograd.grad((here * cotangent).sum(), router.weight)
    (expected,) = torch.autograd.grad((there * cotangent).sum(), theirs.classifier.weight)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_without_jitter_it_is_the_plain_top_1_router() -> None:
    router, plain = SwitchRouter(6, 4, jitter=0.0, losses=[]), TopKRouter(6, 4, 1, losses=[])
    plain.load_state_dict(router.state_dict())
    x = torch.randn(9, 6)
    assert torch.equal(router(x).weight, plain(x).weight)
    assert torch.equal(router(x).weight, router(x).probabilities.amax(-1))


def test_its_gate_gives_the_router_a_gradient() -> None:
    router = SwitchRouter(6, 4, losses=[])
    (gradient,) = torch.autograd.grad(router(torch.randn(9, 6)).weight.sum(), router.weight)
    assert (gradient != 0).any()


def test_its_jitter_is_the_papers() -> None:
    noise = SwitchRouter(6, 4).noise
    assert noise is not None and noise.epsilon == 0.01


@pytest.mark.parametrize("jitter", [-0.1, 1.0])
def test_a_jitter_out_of_range_is_refused(jitter: float) -> None:
    with pytest.raises(ValueError, match=rf"jitter={jitter}: it must be 0 or more and below 1"):
        SwitchRouter(6, 4, jitter=jitter)


def test_a_normalised_gate_is_refused() -> None:
    with pytest.raises(ValueError, match=r"normalize=True: it must be False.*gives the router no gradient"):
        SwitchRouter(6, 4, normalize=True)
