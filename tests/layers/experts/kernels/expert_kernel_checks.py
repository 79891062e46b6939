"""What is checked of the kernels where they run; each function raises an ``AssertionError`` that says what is off."""

from __future__ import annotations

import torch
from expert_kernel_cases import Case, build, poisoned
from expert_kernel_textbook import NAMES, Problem, compare, parameters
from guard_bands import guarded
from torch import Tensor

from toolkit.layers.experts.kernels.config import Tile
from toolkit.routing import sort_by_expert, token_starts


def run(problem: Problem, keep: bool, tiles: dict[str, Tile] | None) -> dict[str, Tensor]:
    """Outputs and all gradients of the backend, or with ``tiles`` of the kernels on those."""
    from toolkit.layers.experts import triton
    from toolkit.layers.experts.kernels import launch

    rows = sort_by_expert(problem.token, problem.expert, len(problem.weights.first))
    starts = token_starts(problem.token, len(problem.x))
    inputs = problem.x, problem.weight, rows, starts, problem.weights, problem.activation
    if tiles is None:
        out, hidden = triton.forward(*inputs, keep)
        d_x, d_weight, d_weights = triton.backward(problem.d_out, *inputs, hidden)
    else:
        out, hidden = launch.forward(*inputs, keep, tiles=tiles)
        d_x, d_weight, d_weights = launch.backward(problem.d_out, *inputs, hidden, tiles=tiles)
    assert len(hidden) == (triton.kept_rows(len(problem.token), problem.x.dtype) if keep else 0)
    assert all(value.dtype == problem.x.dtype for value in (out, hidden, d_x, *parameters(d_weights)))
    assert d_weight.dtype == problem.weight.dtype
    gradients = d_x, d_weight, *parameters(d_weights)
    return {"out": out, **dict(zip(NAMES, gradients, strict=False))}


def check(case: Case) -> float:
    """Outputs and gradients against the textbook, from poisoned memory; exact zeros where there is nothing."""
    problem, tiles = build(case)
    with guarded():
        got = run(poisoned(problem), case.keep, tiles)
    live = problem.expert >= 0
    alone = torch.ones(len(problem.x), dtype=torch.bool).scatter(0, problem.token[live], False)
    idle = torch.ones(len(problem.weights.first), dtype=torch.bool).scatter(0, problem.expert[live], False)
    for name in ("out", "d_x"):
        assert bool((got[name][alone] == 0).all()), f"{name}: a token without experts"
    for name in NAMES[2:]:
        assert name not in got or bool((got[name][idle] == 0).all()), f"{name}: an expert without rows"
    assert bool((got["d_weight"][~live] == 0).all()), "d_weight: a triple without an expert"
    return compare(got, problem)


def check_twice(case: Case) -> None:
    """Kept or computed again, and run again, results are the same to the bit."""
    problem, tiles = build(case)
    first, again, anew = (run(problem, keep, tiles) for keep in (True, True, False))
    for name, value in first.items():
        assert torch.equal(value, again[name]), f"{name}: a second run differs"
        assert torch.equal(value, anew[name]), f"{name}: differs where the pre-activations are computed again"


def check_backend(case: Case) -> float:
    """The backend on the tiles of the table, which are cut to the size of the problem."""
    problem, _ = build(case)
    return compare(run(problem, case.keep, None), problem)


def check_activation(name: str) -> None:
    """``activate`` and its gradient against autograd in fp64, at and beside the limits of the clamps too."""
    from expert_kernel_probes import activation_kernel

    from toolkit.layers.experts.activations import Activation

    activation = Activation(name, limit=1.5)
    edge = torch.tensor([-1.5, 0.0, 1.5])
    values = torch.cat([edge, edge + 1e-4, edge - 1e-4, torch.linspace(-9, 9, 23)])
    gate, up = (x.flatten() for x in torch.meshgrid(values, values, indexing="ij"))
    gradient = torch.randn(len(gate))
    act, d_gate, d_up = (torch.full_like(gate, torch.nan) for _ in range(3))
    activation_kernel[(1,)](
        gate, up, gradient, act, d_gate, d_up, activation.alpha, activation.limit, name, activation.gated, N=len(gate)
    )
    hidden = torch.stack([gate, up][: activation.width(1)], 1).double().requires_grad_()
    right = activation(hidden)
    (d_hidden,) = torch.autograd.grad((right[:, 0] * gradient).sum(), hidden)
    pairs = [(act, right[:, 0]), (d_gate, d_hidden[:, 0])] + ([(d_up, d_hidden[:, 1])] if activation.gated else [])
    for mine, exact in pairs:
        error = (mine - exact).abs().max().item()
        assert error <= 4 * torch.finfo(torch.float32).eps * exact.abs().max().item(), error
