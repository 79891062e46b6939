"""The kernels on a GPU: against the textbook in fp64, in bf16 too, which the interpreter cannot multiply.

Skipped where there is none. The same laws run everywhere under the interpreter, see ``test_launch``.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from expert_kernel_cases import Case, build
from expert_kernel_textbook import NAMES, Problem, compare, parameters
from torch import Tensor

from toolkit.layers.experts import triton
from toolkit.layers.experts.activations import ACTIVATIONS, Activation
from toolkit.layers.experts.weights import Weights
from toolkit.routing import sort_by_expert, token_starts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def on_gpu(problem: Problem) -> Problem:
    held = problem.weights
    biases = (None if bias is None else bias.cuda() for bias in (held.first_bias, held.second_bias))
    moved = {name: getattr(problem, name).cuda() for name in ("x", "token", "expert", "weight", "d_out")}
    return replace(problem, **moved, weights=Weights(held.first.cuda(), held.second.cuda(), *biases))


def run(problem: Problem, keep: bool = True) -> dict[str, Tensor]:
    """Outputs and all gradients."""
    rows = sort_by_expert(problem.token, problem.expert, len(problem.weights.first))
    starts = token_starts(problem.token, len(problem.x))
    inputs = problem.x, problem.weight, rows, starts, problem.weights, problem.activation
    out, hidden = triton.forward(*inputs, keep)
    d_x, d_weight, d_weights = triton.backward(problem.d_out, *inputs, hidden)
    return {"out": out, **dict(zip(NAMES, (d_x, d_weight, *parameters(d_weights)), strict=False))}


def large(dtype: torch.dtype, activation: str, sizes: tuple[int, int]) -> Problem:
    """Many tokens over 32 experts, a few of which are nobody's."""
    tokens, top_k, experts, (dim, hidden_dim) = 3000, 4, 32, sizes
    act = Activation(activation)
    token = torch.arange(tokens).repeat_interleave(top_k)
    expert = torch.randint(-1, experts - 3, token.shape)
    shapes = (experts, act.width(hidden_dim), dim), (experts, dim, hidden_dim)
    first, second = (torch.randn(shape).div(shape[2] ** 0.5).to(dtype) for shape in shapes)
    x, d_out = (torch.randn(tokens, dim).to(dtype) for _ in range(2))
    return on_gpu(Problem(x, token, expert, torch.rand(len(token)), Weights(first, second), act, d_out))


@pytest.mark.parametrize("load", ["ragged", "unassigned", "idle", "one_token", "no_triples", "no_tokens"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_small_problems_are_as_accurate_as_the_textbook(dtype: torch.dtype, activation: str, load: str) -> None:
    for sizes, keep in (((72, 48), True), ((19, 33), False)):
        problem, _ = build(Case(activation, load, sizes, dtype, bias=True))
        problem = on_gpu(problem)
        assert compare(run(problem, keep), problem) <= 1


@pytest.mark.parametrize("sizes", [(512, 256), (1000, 344), (509, 251)], ids=str)
@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_problems_are_as_accurate_as_the_textbook(
    dtype: torch.dtype, activation: str, sizes: tuple[int, int]
) -> None:
    problem = large(dtype, activation, sizes)
    assert compare(run(problem), problem) <= 1


def test_reruns_and_recomputation_are_equal_to_the_bit() -> None:
    problem = large(torch.bfloat16, "swiglu", (512, 256))
    first, again, anew = run(problem), run(problem), run(problem, keep=False)
    assert all(torch.equal(value, again[name]) and torch.equal(value, anew[name]) for name, value in first.items())


def test_nothing_waits_for_the_device() -> None:
    problem = large(torch.bfloat16, "swiglu", (512, 256))
    run(problem)  # compiled now
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(problem)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_parameters_of_more_than_2_to_the_31_elements() -> None:
    """The last expert's matrices lie beyond what 32 bits can address."""
    experts, dim, hidden_dim = 2**31 // (1024 * 1024) + 2, 1024, 512
    first = torch.zeros(experts, 2 * hidden_dim, dim, dtype=torch.bfloat16, device="cuda")
    second = torch.zeros(experts, dim, hidden_dim, dtype=torch.bfloat16, device="cuda")
    small = large(torch.bfloat16, "swiglu", (dim, hidden_dim))
    first[-1], second[-1] = small.weights.first[0], small.weights.second[0]
    small = replace(small, expert=torch.zeros_like(small.expert))
    alone = run(replace(small, weights=Weights(small.weights.first[:1], small.weights.second[:1])))
    last = run(replace(small, expert=small.expert + experts - 1, weights=Weights(first, second)))
    for name, value in alone.items():
        mine = last[name][-1:] if name in NAMES[2:] else last[name]
        torch.testing.assert_close(mine, value)
