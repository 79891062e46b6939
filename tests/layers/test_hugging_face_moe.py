"""With their weights, the MoE layer is Hugging Face's blocks: output, and gradients of the input and every weight."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from hugging_face_moe import DIM, EXPERTS, FAMILIES, Family, InDouble
from torch import Tensor, nn

from toolkit.layers import MoE

CASES = [
    (name, theirs, ours, torch.float32)
    for name, family in FAMILIES.items()
    for theirs, ours in (("eager", "cpu"), ("eager", "grouped_mm"), ("grouped_mm", "cpu"))
    if theirs in family.implementations
] + [(name, "eager", ours, torch.float64) for name in FAMILIES for ours in ("cpu", "reference")]


def drawn(theirs: nn.Module) -> nn.Module:
    """Every weight and bias random: logits of unit variance, and biases that move the choice."""
    with torch.no_grad():
        for name, tensor in theirs.state_dict().items():
            tensor.normal_(std=0.3 if tensor.ndim == 1 or name.endswith("bias") else tensor.shape[-1] ** -0.5)
    return theirs.eval()


def copied(family: Family, theirs: nn.Module, ours: MoE) -> MoE:
    """``ours`` with all of their weights and nothing else."""
    state = {name: tensor.clone() for name, tensor in family.convert(dict(theirs.state_dict())).items()}
    ours.load_state_dict(state, strict=True)
    return ours


def gradients(module: nn.Module, y: Tensor, x: Tensor, d_y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Of x, and of every parameter by name."""
    named = dict(module.named_parameters())
    d_x, *found = torch.autograd.grad(y, (x, *named.values()), d_y, materialize_grads=True)
    return d_x, dict(zip(named, found, strict=True))


def error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, over the largest value."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())


@pytest.mark.parametrize(("name", "implementation", "backend", "dtype"), CASES)
def test_output_and_every_gradient_are_theirs(name: str, implementation: str, backend: str, dtype: torch.dtype) -> None:
    family = FAMILIES[name]
    theirs = drawn(family.theirs(implementation).to(dtype))
    ours = copied(family, theirs, family.ours(backend).to(dtype))
    x, d_y = torch.randn(2, 2, 33, DIM, dtype=dtype).unbind()
    x.requires_grad_()
    with InDouble() if dtype == torch.float64 else nullcontext():
        expected = theirs(x)
        expected = expected[0] if isinstance(expected, tuple) else expected
        expected_d_x, theirs_by_name = gradients(theirs, expected, x, d_y)
    y = ours(x)
    d_x, ours_by_name = gradients(ours, y, x, d_y)
    converted = family.convert(theirs_by_name | _no_gradient(theirs))
    converted.pop("router.balancer.bias", None)
    assert ours_by_name.keys() == converted.keys()
    assert all((gradient != 0).any() for gradient in ours_by_name.values())
    errors = {"y": error(y, expected), "d_x": error(d_x, expected_d_x)}
    errors |= {key: error(ours_by_name[key], gradient) for key, gradient in converted.items()}
    print(f"{name} {implementation} {backend} {dtype}: {max(errors.values()):.1e} ({max(errors, key=errors.get)})")
    assert max(errors.values()) < (1e-12 if dtype == torch.float64 else 1e-5), errors


def _no_gradient(theirs: nn.Module) -> dict[str, Tensor]:
    """Buffers, which are in a state and have no gradient."""
    return {name: torch.zeros_like(buffer) for name, buffer in theirs.named_buffers()}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_routers_choose_the_same_experts_with_the_same_gates(name: str) -> None:
    family = FAMILIES[name]
    theirs = drawn(family.theirs("eager"))
    ours = copied(family, theirs, family.ours("cpu"))
    x = torch.randn(50, DIM)
    assignment = ours.router(x)
    if name == "switch_transformers":  # a one-hot table of the expert, then its probability
        one_hot, gates, _ = (made[0] for made in theirs.router(x[None]))
        indices = one_hot.argmax(-1, keepdim=True)
    else:
        _, gates, indices = (theirs.gate if hasattr(theirs, "gate") else theirs.router)(x)
    choices = assignment.num_experts
    dense = torch.zeros(50, choices).scatter(1, indices, gates.float())
    torch.testing.assert_close(torch.zeros(50, choices).scatter(1, assignment.indices, assignment.weights), dense)
    assert (assignment.counts() > 0).sum() > EXPERTS // 2
