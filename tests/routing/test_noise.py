"""Noise of routers: its distribution, where it acts and where it does not, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from toolkit.routing import GaussianNoise, Jitter, NoisyTopK, TopKRouter
from toolkit.routing.noise import Noise

DIM, EXPERTS = 6, 5
NOISES: dict[str, Callable[[], Noise]] = {
    "jitter": lambda: Jitter(0.3),
    "gaussian": lambda: GaussianNoise(0.7),
    "noisy top-k": lambda: NoisyTopK(DIM, EXPERTS),
}


def noisy_router(noise: Noise, top_k: int = 2) -> TopKRouter:
    """A router with weights that are not zero, and no losses."""
    router = TopKRouter(DIM, EXPERTS, top_k, noise=noise, losses=[])
    nn.init.normal_(router.weight)
    if isinstance(noise, NoisyTopK):
        nn.init.normal_(noise.weight)
    return router


def drawn(router: TopKRouter, draws: int) -> tuple[Tensor, Tensor]:
    """Clean logits (EXPERTS,) of one token, and noisy ones (draws, EXPERTS)."""
    x = torch.randn(1, DIM).expand(draws, DIM)
    assignment = router(x)
    assert assignment.noisy_logits is not None
    return assignment.logits[0].detach(), assignment.noisy_logits.detach()


@pytest.mark.parametrize("noise", NOISES)
def test_the_choice_and_its_gates_are_of_the_noisy_logits_the_kept_logits_clean(noise: str) -> None:
    router = noisy_router(NOISES[noise]())
    x = torch.randn(200, DIM)
    assignment, clean = router(x), router.eval()(x)
    assert torch.equal(assignment.logits, clean.logits)
    noisy = assignment.noisy_logits
    assert noisy is not None
    values, experts = noisy.topk(2)
    assert torch.equal(assignment.indices, experts)
    # Shazeer et al.'s equations 3 to 5: the softmax of what is kept.
    torch.testing.assert_close(assignment.weights, values.softmax(-1))
    torch.testing.assert_close(assignment.probabilities, noisy.softmax(-1))
    assert not torch.equal(assignment.expert, clean.expert)


@pytest.mark.parametrize("noise", NOISES)
def test_in_evaluation_there_is_none(noise: str) -> None:
    router = noisy_router(NOISES[noise]()).eval()
    plain = TopKRouter(DIM, EXPERTS, 2, losses=[]).eval()
    plain.weight.data.copy_(router.weight.data)
    x = torch.randn(9, DIM)
    before = torch.get_rng_state()
    assignment = router(x)
    assert torch.equal(torch.get_rng_state(), before)
    assert assignment.noisy_logits is None and assignment.noise_std is None
    assert torch.equal(assignment.expert, plain(x).expert)
    assert torch.equal(assignment.weight, plain(x).weight)


@pytest.mark.parametrize("noise", NOISES)
def test_draws_are_of_torchs_generator(noise: str) -> None:
    router = noisy_router(NOISES[noise]())
    x = torch.randn(9, DIM)
    torch.manual_seed(5)
    first = router(x).noisy_logits
    assert not torch.equal(first, router(x).noisy_logits)
    torch.manual_seed(5)
    assert torch.equal(first, router(x).noisy_logits)


@pytest.mark.parametrize("noise", NOISES)
def test_the_callers_tensor_stays_as_it_was(noise: str) -> None:
    router = noisy_router(NOISES[noise]())
    x = torch.randn(9, DIM)
    before = x.clone()
    router(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("noise", NOISES)
def test_gradcheck_of_the_gates_through_a_held_draw(noise: str) -> None:
    torch.manual_seed(2)
    router = noisy_router(NOISES[noise](), top_k=3).double()
    x = torch.randn(4, DIM, dtype=torch.float64, requires_grad=True)
    learned = dict(router.named_parameters())

    def gates(x: Tensor, *values: Tensor) -> Tensor:
        torch.manual_seed(11)
        return torch.func.functional_call(router, dict(zip(learned, values, strict=True)), (x,)).weight

    torch.manual_seed(11)
    noisy = router(x).noisy_logits
    assert noisy is not None
    ordered = noisy.detach().sort(dim=-1).values
    assert float((ordered[:, 2] - ordered[:, 1]).min()) > 1e-3  # the finite differences change no choice
    assert torch.autograd.gradcheck(gates, (x, *learned.values()))


@pytest.mark.parametrize("noise", NOISES)
def test_noise_is_fp32_under_autocast_and_for_bf16_tokens(noise: str) -> None:
    router = noisy_router(NOISES[noise]())
    x = torch.randn(9, DIM).bfloat16()
    torch.manual_seed(5)
    plain = router(x.float())
    torch.manual_seed(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = router(x)
    assert cast.noisy_logits is not None and cast.noisy_logits.dtype == torch.float32
    assert torch.equal(cast.noisy_logits, plain.noisy_logits)


def test_jitter_multiplies_each_entry_within_its_width() -> None:
    # With the identity as weights a logit is its entry: the ratio to the clean one is the factor drawn.
    router = TopKRouter(EXPERTS, EXPERTS, 1, noise=Jitter(0.25), losses=[])
    router.weight.data = torch.eye(EXPERTS)
    x = torch.randn(20_000, EXPERTS)
    noisy = router(x).noisy_logits
    assert noisy is not None
    factors = ((noisy / x).detach()[x.abs() > 1e-2] - 0.75) / 0.5  # uniform on [0, 1], if the law holds
    assert 0 <= float(factors.min()) < 1e-3 and 1 - 1e-3 < float(factors.max()) <= 1 + 1e-5
    deviation = math.sqrt(1 / 12 / len(factors))
    assert abs(float(factors.mean()) - 0.5) < 4 * deviation
    assert float(factors.var()) == pytest.approx(1 / 12, rel=0.02)
    pairs = (noisy / x).detach()
    assert not torch.allclose(pairs[:, 0], pairs[:, 1])


@pytest.mark.parametrize(("std", "expected"), [(None, 1 / EXPERTS), (0.7, 0.7)])
def test_gaussian_noise_has_its_standard_deviation(std: float | None, expected: float) -> None:
    router = noisy_router(GaussianNoise(std))
    clean, noisy = drawn(router, 40_000)
    difference = noisy - clean
    assert (difference.mean(0).abs() < 4 * expected / 200).all()
    torch.testing.assert_close(difference.std(0), torch.full((EXPERTS,), expected), rtol=0.03, atol=0)
    off_diagonal = torch.corrcoef(difference.T) - torch.eye(EXPERTS)
    assert float(off_diagonal.abs().max()) < 0.03
    stated = router(torch.randn(3, DIM)).noise_std
    assert stated is not None
    torch.testing.assert_close(stated, torch.full((3, EXPERTS), expected))


def test_noisy_top_k_has_shazeers_standard_deviation() -> None:
    noise = NoisyTopK(DIM, EXPERTS)
    router = noisy_router(noise)
    x = torch.randn(1, DIM)
    assignment = router(x.expand(40_000, DIM))
    assert assignment.noisy_logits is not None and assignment.noise_std is not None
    expected = torch.tensor([math.log1p(math.exp(z)) + 0.01 for z in (noise.weight @ x[0]).tolist()])
    torch.testing.assert_close(assignment.noise_std[0].detach(), expected)
    difference = (assignment.noisy_logits - assignment.logits).detach()
    torch.testing.assert_close(difference.std(0), expected, rtol=0.03, atol=0)
    assert (difference.mean(0).abs() < 4 * expected / 200).all()


def test_noisy_top_k_starts_with_no_signal_and_some_noise_and_learns_both() -> None:
    noise = NoisyTopK(DIM, EXPERTS)
    router = TopKRouter(DIM, EXPERTS, 2, noise=noise, losses=[])
    assert (router.weight == 0).all() and (noise.weight == 0).all()
    assignment = router(torch.randn(100, DIM))
    assert (assignment.logits == 0).all()
    assert (assignment.counts() > 0).all()
    found = torch.autograd.grad((assignment.weight * torch.randn(200)).sum(), (router.weight, noise.weight))
    assert all((gradient != 0).any() for gradient in found)
    nn.init.ones_(router.weight)
    router.reset_parameters()
    assert (router.weight == 0).all()


def test_noisy_top_k_is_in_the_checkpoint() -> None:
    assert set(TopKRouter(DIM, EXPERTS, 2, noise=NoisyTopK(DIM, EXPERTS)).state_dict()) == {"weight", "noise.weight"}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Jitter(0.0), "epsilon=0.0: it must be above 0 and below 1"),
        (lambda: Jitter(1.0), "epsilon=1.0: it must be above 0 and below 1"),
        (lambda: GaussianNoise(0.0), "std=0.0: it must be positive, or None"),
        (lambda: NoisyTopK(4, 0), "num_experts=0: it must be positive"),
        (lambda: NoisyTopK(4, 4, floor=0.0), "floor=0.0: it must be positive"),
        (
            lambda: TopKRouter(4, 5, 2, noise=NoisyTopK(4, 6)),
            r"noise.weight.shape=\(6, 4\): it must be the router's \(num_experts, dim\) = \(5, 4\)",
        ),
    ],
)
def test_what_is_wrong_is_named(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_it_prints_its_settings() -> None:
    text = repr(TopKRouter(4, 5, 2, noise=Jitter(0.1)))
    assert "Jitter(epsilon=0.1)" in text
    assert repr(GaussianNoise()) == "GaussianNoise(std=1 / num_experts)"
