"""The cases of the interpreter tests: every pair of two settings occurs in one of them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from expert_kernel_textbook import Problem
from pairwise import pairwise_settings
from torch import Tensor

from toolkit.layers.experts.activations import ACTIVATIONS, Activation
from toolkit.layers.experts.kernels.config import KERNELS, Tile
from toolkit.layers.experts.weights import Weights

EXPERTS = 5
LIMIT = 0.75  # of the clamps: low, so that they bind


@dataclass(frozen=True)
class Case:
    """One problem; ``sizes`` is dim and hidden_dim, ``tile`` block_m, block_n and block_k."""

    activation: str = "swiglu"
    load: str = "ragged"
    sizes: tuple[int, int] = (24, 20)
    dtype: torch.dtype = torch.float32
    tile: tuple[int, int, int] = (16, 16, 16)
    bias: bool = False
    keep: bool = True
    own_dtype: bool = False

    def __str__(self) -> str:
        flags = [name for name in ("bias", "keep", "own_dtype") if getattr(self, name)]
        sizes = ["x".join(map(str, numbers)) for numbers in (self.sizes, self.tile)]
        return "-".join([self.activation, self.load, str(self.dtype)[6:], *sizes, *flags])


LEVELS: dict[str, tuple[object, ...]] = {
    "activation": ACTIVATIONS,
    "load": ("ragged", "top_2", "unassigned", "idle", "one_expert", "one_token", "no_triples", "no_tokens"),
    "sizes": ((16, 16), (24, 20), (19, 33), (40, 16)),
    "dtype": (torch.float32, torch.float16),
    "tile": ((16, 16, 16), (32, 16, 32), (16, 32, 16)),
    "bias": (False, True),
    "keep": (True, False),
    "own_dtype": (False, True),  # the weights' dtype is x's, not fp32
}
assert [field.name for field in fields(Case)] == list(LEVELS)


def pairwise(seed: int) -> list[Case]:
    """Few cases in which any two settings of any two fields meet."""
    return [Case(**settings) for settings in pairwise_settings(LEVELS, seed)]


def triples(load: str) -> tuple[int, Tensor, Tensor]:
    """Tokens, and for each triple its token and its expert."""
    tokens = {"one_token": 1, "no_tokens": 0}.get(load, 23)
    per_token = torch.full((tokens,), 2)
    if load in ("ragged", "unassigned"):
        per_token = torch.randint(0, 5, (tokens,))  # some have none
    if load == "no_triples":
        per_token = torch.zeros_like(per_token)
    token = torch.arange(tokens).repeat_interleave(per_token)
    expert = torch.randint(0, EXPERTS, token.shape)
    if load == "idle":
        expert = torch.tensor([0, 3])[expert % 2]
    if load == "one_expert":
        expert = torch.full_like(expert, 3)
    if load == "unassigned":
        expert = expert.where(torch.rand(expert.shape) < 0.7, -1)
    return tokens, token, expert


def build(case: Case) -> tuple[Problem, dict[str, Tile]]:
    """The problem and the tiles to work on."""
    torch.manual_seed(sum(map(ord, str(case))))
    tokens, token, expert = triples(case.load)
    (dim, hidden_dim), dtype = case.sizes, case.dtype
    activation = Activation(case.activation, limit=LIMIT)
    width = activation.width(hidden_dim)
    weights = Weights(
        torch.randn(EXPERTS, width, dim).div(dim**0.5).to(dtype),
        torch.randn(EXPERTS, dim, hidden_dim).div(hidden_dim**0.5).to(dtype),
        torch.randn(EXPERTS, width).to(dtype) if case.bias else None,
        torch.randn(EXPERTS, dim).to(dtype) if case.bias else None,
    )
    x, d_out = (torch.randn(tokens, dim).to(dtype) for _ in range(2))
    weight = torch.rand(len(token)).to(dtype if case.own_dtype else torch.float32)
    problem = Problem(x, token, expert, weight, weights, activation, d_out)
    return problem, dict.fromkeys(KERNELS, Tile(*case.tile))


def poisoned(problem: Problem) -> Problem:
    """The same with nan in what must not be read: idle experts, weights without one, tokens that none works for."""
    live = problem.expert >= 0
    idle = torch.ones(EXPERTS, dtype=torch.bool).scatter(0, problem.expert[live], False)
    alone = torch.ones(len(problem.x), dtype=torch.bool).scatter(0, problem.token[live], False)
    held = problem.weights

    def blank(parameter: Tensor | None) -> Tensor | None:
        if parameter is None:
            return None
        return parameter.masked_fill(idle.view(-1, *[1] * (parameter.ndim - 1)), torch.nan)

    first, second = blank(held.first), blank(held.second)
    assert first is not None and second is not None
    return replace(
        problem,
        x=beside_nan(problem.x.masked_fill(alone[:, None], torch.nan)),
        d_out=beside_nan(problem.d_out.masked_fill(alone[:, None], torch.nan)),
        weight=problem.weight.masked_fill(~live, torch.nan),
        weights=Weights(first, second, blank(held.first_bias), blank(held.second_bias)),
    )


def beside_nan(x: Tensor) -> Tensor:
    """The same values as part of wider rows of nan: what is read beside them shows."""
    store = torch.full((len(x), x.shape[1] + 8), torch.nan, dtype=x.dtype)
    return store[:, : x.shape[1]].copy_(x)
