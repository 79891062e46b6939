"""The reference is the definition, token by token; it can be differentiated twice."""

from __future__ import annotations

import math

import pytest
import torch
from expert_cases import CHOICES, EXPERTS, SETTINGS, Problem, settings_id
from torch import Tensor

from toolkit.layers.experts import Activation


def textbook_activation(activation: Activation, hidden: Tensor) -> Tensor:
    """(width,) -> (hidden_dim,), number by number."""
    values = hidden.tolist()
    if activation.name == "gelu":
        return hidden.new_tensor([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in values])
    if activation.name == "relu2":
        return hidden.new_tensor([v * v if v > 0 else 0.0 for v in values])
    half = len(values) // 2
    pairs = list(zip(values[:half], values[half:], strict=True))
    if activation.name == "swiglu":
        return hidden.new_tensor([g / (1 + math.exp(-g)) * u for g, u in pairs])
    alpha, limit = activation.alpha, activation.limit
    made = []
    for g, u in pairs:
        gate, up = min(g, limit), max(-limit, min(u, limit))
        made.append(gate / (1 + math.exp(-alpha * gate)) * (up + 1))
    return hidden.new_tensor(made)


def textbook(problem: Problem) -> Tensor:
    """y_t = sum over t's experts of gate * (second act(first x_t + b) + c)."""
    made = problem.tensors(torch.float64)
    x, gates, first, second = (made[name] for name in ("x", "gates", "first", "second"))
    y, n = torch.zeros_like(x), 0
    for t, experts in enumerate(problem.choices):
        for e in experts:
            if e >= 0:
                hidden, bias = first[e] @ x[t], made["first_bias"]
                active = textbook_activation(problem.activation, hidden if bias is None else hidden + bias[e])
                z, bias = second[e] @ active, made["second_bias"]
                y[t] += gates[n] * (z if bias is None else z + bias[e])
            n += 1
    return y


@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("setting", SETTINGS, ids=settings_id)
def test_the_reference_is_the_definition_token_by_token(choices: list[list[int]], setting: dict) -> None:
    problem = Problem(choices, **setting)
    with torch.no_grad():
        ours = problem.compute("reference", problem.leaves(torch.float64))
    torch.testing.assert_close(ours, textbook(problem), rtol=0, atol=1e-12)


def test_gradcheck_twice() -> None:
    problem = Problem([[1, 0], [2], [], [2, -1]], bias=True, dim=3, hidden_dim=2, num_experts=4)
    leaves = problem.leaves(torch.float64)

    def call(*tensors: Tensor) -> Tensor:
        return problem.compute("reference", dict(zip(leaves, tensors, strict=True)))

    assert torch.autograd.gradcheck(call, tuple(leaves.values()))
    assert torch.autograd.gradgradcheck(call, tuple(leaves.values()))


def test_dropped_triples_get_no_gradient_and_give_none() -> None:
    problem = Problem(CHOICES["dropped"])
    found = problem.run("reference", torch.float64)
    none = [e < 0 for experts in problem.choices for e in experts]
    assert (found["d_gates"][none] == 0).all()
    assert (found["d_x"][1] == 0).all()
    unused = set(range(EXPERTS)) - {e for experts in problem.choices for e in experts}
    assert unused
    for expert in unused:
        assert (found["d_first"][expert] == 0).all()
