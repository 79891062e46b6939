"""Score functions: their formulas, shares that no epsilon moves, and far from zero."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from toolkit.routing.scores import ASYMPTOTE, SCORES, project, sigmoid, softmax, sqrt_softplus

EACH = ("sigmoid", "sqrt_softplus")
GRID = torch.linspace(-80, 80, 41, dtype=torch.float64)


def formula(name: str, z: float) -> float:
    """One score by the formula, in Python's floats, which are fp64."""
    if name == "sigmoid":
        return 1 / (1 + math.exp(-z))
    return math.sqrt(math.log1p(math.exp(z)))


@pytest.mark.parametrize("name", EACH)
def test_a_score_is_its_formula_of_its_own_logit(name: str) -> None:
    raw = SCORES[name](GRID[None]).raw[0]
    torch.testing.assert_close(raw, torch.tensor([formula(name, z) for z in GRID.tolist()]).double(), rtol=1e-7, atol=0)


def test_softmax_is_its_own_share() -> None:
    raw, probabilities = softmax(torch.randn(5, 4).double())
    assert raw is probabilities
    torch.testing.assert_close(raw.sum(-1), torch.ones(5).double())


@pytest.mark.parametrize("name", EACH)
def test_probabilities_are_scores_over_their_sum(name: str) -> None:
    raw, probabilities = SCORES[name](5 * torch.randn(33, 8).double())
    torch.testing.assert_close(probabilities, raw / raw.sum(-1, keepdim=True), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("shift", [-50.0, -200.0, -3000.0])
def test_where_scores_vanish_their_shares_are_those_of_exponentials(name: str, shift: float) -> None:
    # s(z) -> exp(z) for the sigmoid and exp(z / 2) for the root: far down both are a softmax, which no shift moves.
    # An epsilon in the denominator would let a router shrink every score and with it every share.
    logits = torch.randn(9, 6)
    probabilities = SCORES[name](logits + shift).probabilities
    expected = torch.softmax((logits + shift) / (1 if name == "sigmoid" else 2), dim=-1)
    torch.testing.assert_close(probabilities, expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(9))


@pytest.mark.parametrize("name", EACH)
def test_shrinking_every_score_does_not_shrink_the_shares(name: str) -> None:
    logits = torch.full((1, 4), -90.0, requires_grad=True)
    probabilities = SCORES[name](logits).probabilities
    torch.testing.assert_close(probabilities, torch.full((1, 4), 0.25))
    (gradient,) = torch.autograd.grad(probabilities[0, 0], logits)
    assert float(gradient.sum().abs()) < 1e-6  # moving all logits alike changes nothing


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SCORES)
def test_values_and_gradients_are_finite_however_large_the_logits(name: str, dtype: torch.dtype) -> None:
    logits = torch.tensor([[-1e4, -800.0, -104.0, -60.0, 0.0, 60.0, 104.0, 1e4]], dtype=dtype, requires_grad=True)
    for output in SCORES[name](logits):
        assert output.isfinite().all()
        (gradient,) = torch.autograd.grad(output.sum(), logits, retain_graph=True)
        assert gradient.isfinite().all()


def test_the_root_is_smooth_across_its_asymptote() -> None:
    around = ASYMPTOTE + torch.tensor([-1e-6, 1e-6], dtype=torch.float64)
    logits = around[None].requires_grad_()
    raw, _ = sqrt_softplus(logits)
    (slope,) = torch.autograd.grad(raw.sum(), logits)
    torch.testing.assert_close(raw, torch.exp(logits / 2), rtol=1e-12, atol=0)
    torch.testing.assert_close(slope, raw / 2, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", SCORES)
def test_gradcheck(name: str) -> None:
    logits = (4 * torch.randn(3, 5, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: tuple(SCORES[name](z)), logits)


def test_sigmoid_keeps_the_order_of_logits() -> None:
    logits = torch.randn(9, 6)
    assert torch.equal(sigmoid(logits).raw.argsort(-1), logits.argsort(-1))


@pytest.mark.parametrize("bias", [None, torch.randn(4)])
def test_projection_is_a_linear_map_in_at_least_fp32(bias: Tensor | None) -> None:
    x, weight = torch.randn(5, 6), torch.randn(4, 6)
    added = 0 if bias is None else bias.double()
    exact = project(x.double(), weight.double(), None if bias is None else bias.double())
    assert exact.dtype == torch.float64
    torch.testing.assert_close(exact, torch.einsum("td,ed->te", x.double(), weight.double()) + added)
    half = project(x.bfloat16(), weight.bfloat16(), bias)
    assert half.dtype == torch.float32
    rounded = torch.einsum("td,ed->te", x.bfloat16().double(), weight.bfloat16().double()) + added
    torch.testing.assert_close(half.double(), rounded, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(7, 8), (2, 3, 8), (0, 8)])
def test_a_half_precision_token_is_multiplied_wide_and_kept_narrow(shape: tuple[int, ...]) -> None:
    x, weight, bias = torch.randn(shape).bfloat16(), torch.randn(4, 8), torch.randn(4)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    found = []
    for widen in (False, True):
        inputs = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            wide = inputs[0].float() if widen else inputs[0]
            logits = torch.nn.functional.linear(wide, *inputs[1:]) if widen else project(wide, *inputs[1:])
        if not widen:
            assert sum(tensor.nbytes for tensor in kept) == x.nbytes + weight.nbytes
        d_logits = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
        found.append((logits, *torch.autograd.grad(logits, inputs, d_logits)))
    for mine, theirs in zip(*found, strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)
