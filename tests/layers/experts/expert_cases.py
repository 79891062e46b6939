"""Tokens that go to experts, the tensors they go with, and every backend's output and gradients for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from toolkit.layers.experts.activations import ACTIVATIONS, Activation
from toolkit.layers.experts.grouped_mm import grouped_mm_experts
from toolkit.layers.experts.operator import operator_experts
from toolkit.layers.experts.reference import reference_experts
from toolkit.layers.experts.weights import Weights
from toolkit.routing import Assignment

EXPERTS = 7
CLAMPED = Activation("clamped_swiglu", alpha=1.3, limit=0.8)  # tight, so that many values are beyond it


def random_choices(tokens: int, top_k: int, num_experts: int = EXPERTS) -> list[list[int]]:
    """Each token's experts, drawn without replacement."""
    generator = torch.Generator().manual_seed(tokens)
    return torch.rand(tokens, num_experts, generator=generator).topk(top_k).indices.tolist()


CHOICES: dict[str, list[list[int]]] = {
    "random": random_choices(33, 2),
    "every expert": random_choices(9, EXPERTS),
    "all to one": [[2]] * 75,
    "one token": [[3, 0]],
    "no tokens": [],
    "no experts": [[], []],
    "ragged": [[1], [], [0, 3, 2], [3], [1, 0]],
    "dropped": [[1, -1], [-1, -1], [0, 3], [-1, 5], [6, 1]],
    "all dropped": [[-1], [-1, -1]],
    "the same twice": [[1, 1], [4, 1]],
}
SETTINGS = [
    {"activation": CLAMPED if name == "clamped_swiglu" else Activation(name), "bias": bias}
    for name, bias in product(ACTIVATIONS, (False, True))
]


def tokens_and_choices(num_experts: int = EXPERTS) -> st.SearchStrategy[list[list[int]]]:
    """Any number of tokens, each with any experts, some of them none."""
    return st.lists(st.lists(st.integers(-1, num_experts - 1), max_size=num_experts), max_size=12)


def assigned(choices: list[list[int]], gates: Tensor, num_experts: int = EXPERTS) -> Assignment:
    """Token t goes to experts ``choices[t]`` with the next of ``gates``."""
    token = torch.tensor([t for t, experts in enumerate(choices) for _ in experts], dtype=torch.int64)
    expert = torch.tensor([e for experts in choices for e in experts], dtype=torch.int64)
    logits = torch.zeros(len(choices), num_experts)
    return Assignment(token, expert, gates, logits, logits)


@dataclass(frozen=True)
class Problem:
    """Tokens, gates and weights: the same numbers in every dtype."""

    choices: list[list[int]]
    activation: Activation = field(default_factory=Activation)
    bias: bool = False
    dim: int = 8  # rows that are multiples of 16 bytes in bf16, as grouped_mm wants
    hidden_dim: int = 16
    num_experts: int = EXPERTS

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor | None]:
        """x, gates, first, second and the biases."""
        generator = torch.Generator().manual_seed(1)
        draw = lambda *size: torch.randn(size, generator=generator, dtype=torch.float64)  # noqa: E731
        e, d, h = self.num_experts, self.dim, self.hidden_dim
        width = self.activation.width(h)
        made = {
            "x": draw(len(self.choices), d),
            "gates": draw(sum(map(len, self.choices))),
            "first": draw(e, width, d) * d**-0.5,
            "second": draw(e, d, h) * h**-0.5,
            "first_bias": draw(e, width) if self.bias else None,
            "second_bias": draw(e, d) if self.bias else None,
        }
        return {name: None if tensor is None else tensor.to(dtype) for name, tensor in made.items()}

    def leaves(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Those that there are, ready to be differentiated by."""
        made = self.tensors(dtype).items()
        return {name: tensor.requires_grad_() for name, tensor in made if tensor is not None}

    def compute(self, backend: str, tensors: dict[str, Tensor], recompute: bool = False) -> Tensor:
        """``backend``'s output (tokens, dim)."""
        x, assignment = tensors["x"], assigned(self.choices, tensors["gates"], self.num_experts)
        names = "first", "second", "first_bias", "second_bias"
        weights = Weights(*(tensors.get(name) for name in names))  # type: ignore[arg-type]
        if backend == "reference":
            return reference_experts(x, assignment, weights, self.activation)
        if backend == "grouped_mm":
            return grouped_mm_experts(x, assignment, weights, self.activation)
        return operator_experts(x, assignment, weights, self.activation, recompute, backend)

    def run(self, backend: str, dtype: torch.dtype, recompute: bool = False) -> dict[str, Tensor]:
        """The output, and the gradient by every tensor."""
        tensors = self.leaves(dtype)
        out = self.compute(backend, tensors, recompute)
        generator = torch.Generator().manual_seed(2)
        d_out = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(dtype)
        gradients = torch.autograd.grad(out, tuple(tensors.values()), d_out, materialize_grads=True)
        return {"out": out.detach(), **{f"d_{name}": g for name, g in zip(tensors, gradients, strict=True)}}


def assert_same(ours: dict[str, Tensor], expected: dict[str, Tensor], atol: float, rtol: float = 0.0) -> None:
    """Every output and gradient, by name."""
    assert ours.keys() == expected.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, expected[name], atol=atol, rtol=rtol, msg=lambda m, n=name: f"{n}: {m}")


def assert_as_accurate(ours: dict[str, Tensor], other: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    """An error of at most twice the textbook's in the same dtype, and 4 units in the last place of the largest."""
    for name, truth in exact.items():
        if truth.numel() == 0:
            assert ours[name].shape == truth.shape
            continue
        ulp = torch.finfo(ours[name].dtype).eps * truth.abs().max()
        error, allowed = ((made[name] - truth).abs().max() for made in (ours, other))
        assert error <= 2 * allowed + 4 * ulp, f"{name}: {error} where the textbook errs by {allowed}, ulp {ulp}"


@contextmanager
def poisoned() -> Iterator[None]:
    """Uninitialised memory is NaN, so that whatever reads it is seen."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.zeros(1).new_empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def settings_id(setting: dict[str, Any]) -> str:
    """What pytest calls one of ``SETTINGS``."""
    return f"{setting['activation'].name}{'-bias' if setting['bias'] else ''}"
