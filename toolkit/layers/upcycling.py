"""From a dense feed-forward layer to a Mixture of Experts that computes the same.

The dense layer F is cut along its hidden dimension into g shards, F = F_1 + ... + F_g. The first n of them become the
shared experts, where the MoE has n; the other m = g - n are the routed experts, each num_experts / m times.

*Virtual groups.* Experts c m, ..., c m + m - 1 are the m different shards, and their rows of the router are equal.
A token's num_experts logits are then num_experts / m values, each m times. Where those values differ, its top_k = q m
highest are the q highest groups as a whole, however ties inside a group are broken: every expert of another group
scores strictly less. So every shard is chosen q times. (Two groups tie by rounding for about one token in 1 / eps, and
for x = 0, where F is 0 unless it has biases.)

*Scale.* Let G be the sum of a token's gates. Gates are equal in a group, so those of the chosen groups add up to
G / m, and the routed experts give (G / m) (F_n+1 + ... + F_g). They are therefore scaled by s = m / G:

- gates that are normalised: G is the router's ``scale``, 1 by default, so s = m, and s = 1 for whole experts;
- gates that are not: G depends on the token, but for a router near zero, where G = scale * top_k * score(0). For
  softmax score(0) = 1 / num_experts and s = m num_experts / top_k, which with num_experts = g copies and n = 0 is the
  paper's factor copies g^2 / top_k.

*Where s goes.* The gate's projection is never scaled, as silu is not homogeneous.

| activation | up | down | because |
|---|---|---|---|
| swiglu | s^(1/2) | s^(1/2) | silu(gate) up is linear in up |
| relu2 | s^(1/3) | s^(1/3) | max(t up, 0)^2 = t^2 max(up, 0)^2 for t > 0 |
| gelu, clamped_swiglu | 1 | s | not homogeneous in up |

Source: He et al. 2024, Upcycling LLMs into MoE (arXiv 2410.07524), virtual groups and weight scaling, with the powers
that are exact for each activation; copying itself: Komatsuzaki et al. 2022, Sparse Upcycling (arXiv 2212.05055).
"""

from __future__ import annotations

import math

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from toolkit.checks import require
from toolkit.layers.experts import Experts
from toolkit.layers.feed_forward import FeedForward
from toolkit.layers.moe import MoE
from toolkit.routing import TopKRouter

POWERS = {"swiglu": (1 / 2, 1 / 2), "relu2": (1 / 3, 1 / 3), "gelu": (0.0, 1.0), "clamped_swiglu": (0.0, 1.0)}
"""Of s, for the up and the down projection."""

NEAR_ZERO = 8
"""Roundings that a router near zero differs from it by; with one, scores of many experts tie and loads are uneven."""

SCORE_AT_ZERO = {"sigmoid": 0.5, "sqrt_softplus": math.sqrt(math.log(2))}
"""What a router's score function gives a logit of 0; for softmax it is 1 / num_experts."""


@torch.no_grad()
def upcycle_feed_forward(
    dense: FeedForward, moe: MoE, noise: float = 0.0, generator: torch.Generator | None = None
) -> None:
    """Set the weights of ``moe``, in place, so that it computes what ``dense`` does.

    The granularity g is dense hidden_dim / expert hidden_dim. Equal up to rounding: in evaluation, and in training
    where nothing is dropped and the router leaves nothing to chance; with a balancer, before it has moved its bias.

    What is frozen in ``dense`` is in the experts; the router is trained.

    Args:
        dense: any activation, with biases or without.
        moe: with a ``TopKRouter``, and the same activation and biases.
        noise: standard deviation of what is added to the routed experts' matrices, as a share of their own; 0 for
            equality.
        generator: of the router's rows and the noise, on the CPU.

    Raises:
        ValueError: if the two do not fit together, num_experts or top_k is no multiple of m, ``noise`` is negative,
            or gates are such that no scale is right (see :func:`gate_sum`).
    """
    hidden_dim, width = dense.down_proj.shape[1], moe.experts.down_proj.shape[2]
    require(hidden_dim % width == 0, "moe hidden_dim", width, f"a divisor of the dense layer's, {hidden_dim}")
    granularity = hidden_dim // width
    shared = 0 if moe.shared is None else moe.shared.down_proj.shape[1] // width
    check_sizes(granularity, moe.num_experts, moe.top_k, shared)
    require(noise >= 0, "noise", noise, "0 or more")
    routed = granularity - shared
    router = _fitting_router(dense, moe, routed)
    scale = routed / gate_sum(router, routed)
    _set_router(router, routed, generator)
    shards = _cut(dense, granularity)
    for name, shard in shards.items():
        parameter = getattr(moe.experts, name)
        copies = repeat(shard[shared:], "j ... -> (c j) ...", c=moe.num_experts // routed)
        parameter.copy_(_scaled(name, copies, scale, dense, width))
        parameter.requires_grad_(getattr(dense, name).requires_grad)
    if moe.shared is not None:
        _join(shards, shared, moe.shared, {name: value.requires_grad for name, value in dense.named_parameters()})
    if noise:
        _perturb(moe.experts, noise, generator)


def gate_sum(router: TopKRouter, routed: int = 1) -> float:
    """G, the sum of a token's gates: the same for every token, or for a router near zero that of all.

    ``routed`` is m, the number of experts in a group.

    Raises:
        ValueError: where gates are not normalised and m > 1: groups must be told apart by their scores, which then do
            not add up to a constant.

    >>> gate_sum(TopKRouter(16, 8, 2)), gate_sum(TopKRouter(16, 8, 2, normalize=False))
    (1.0, 0.25)
    """
    if router.normalize:
        return router.scale
    right = "True where more than one shard is routed: no scale of the weights is right for every token's gates"
    require(routed == 1, "router.normalize", router.normalize, right)
    return router.scale * router.top_k * SCORE_AT_ZERO.get(router.score_function, 1 / router.num_experts)


def check_sizes(granularity: int, num_experts: int, top_k: int, shared_experts: int) -> None:
    """Refuse numbers with which a token does not get every shard equally often.

    Raises:
        ValueError: naming the one that does not fit.
    """
    require(granularity >= 1, "granularity", granularity, "1 or more")
    fits = 0 <= shared_experts < granularity
    require(fits, "shared_experts", shared_experts, f"at least 0 and below granularity={granularity}")
    routed = granularity - shared_experts
    for name, value in (("num_experts", num_experts), ("top_k", top_k)):
        fits = value > 0 and value % routed == 0
        require(fits, name, value, f"a multiple of granularity - shared_experts = {routed}, one full set of shards")


def _fitting_router(dense: FeedForward, moe: MoE, routed: int) -> TopKRouter:
    """The MoE's router, if the MoE can be made to compute what ``dense`` does."""
    router, activation = moe.router, moe.experts.activation
    require(activation == dense.activation, "moe activation", activation, f"the dense layer's, {dense.activation}")
    mine, theirs = (sorted(name for name, _ in layer.named_parameters()) for layer in (dense, moe.experts))
    require(mine == theirs, "moe.experts parameters", theirs, f"those of the dense layer, {mine}")
    for name in ("shared_gate", "zero_experts"):
        require(getattr(moe, name) is None, f"moe.{name}", getattr(moe, name), "None")
    if not isinstance(router, TopKRouter):
        raise ValueError(f"moe.router={type(router).__name__}: it must be a TopKRouter")
    if router.group_limit is not None:
        size = moe.num_experts // router.group_limit.groups
        require(
            size % routed == 0, "experts of a router's group", size, f"a multiple of {routed}, whole sets of shards"
        )
    return router


def _set_router(router: TopKRouter, routed: int, generator: torch.Generator | None) -> None:
    """Rows equal inside a group of ``routed`` experts; near zero where gates are not normalised.

    There ``NEAR_ZERO`` roundings large: enough to tell experts apart, and every score is what it is at zero up to them.
    """
    experts, dim = router.weight.shape
    rows = torch.randn(experts // routed, dim, dtype=torch.float64, generator=generator) * dim**-0.5
    if not router.normalize:
        rows = rows * NEAR_ZERO * torch.finfo(torch.promote_types(router.weight.dtype, torch.float32)).eps
    router.weight.copy_(repeat(rows, "c d -> (c j) d", j=routed))
    if router.bias is not None:
        nn.init.zeros_(router.bias)


def _cut(dense: FeedForward, granularity: int) -> dict[str, Tensor]:
    """Every parameter of ``dense`` as (granularity, ...), shard by shard, each with its part of the output's bias."""
    parts, shards = 2 if dense.activation.gated else 1, dict[str, Tensor]()
    for name, value in dense.named_parameters():
        if name == "down_proj":
            shards[name] = rearrange(value, "d (g h) -> g d h", g=granularity)
        elif name == "down_proj_bias":
            shards[name] = repeat(value / granularity, "d -> g d", g=granularity)
        else:
            shards[name] = rearrange(value, "(p g h) ... -> g (p h) ...", p=parts, g=granularity)
    return shards


def _scaled(name: str, value: Tensor, scale: float, dense: FeedForward, width: int) -> Tensor:
    """The experts' parameter ``name`` (num_experts, rows, ...) times what makes their output ``scale`` as large."""
    up, down = (scale**power for power in POWERS[dense.activation.name])
    if name == "down_proj":
        return value * down
    if name == "down_proj_bias":
        return value * scale
    factor = value.new_ones(value.shape[1])
    factor[width if dense.activation.gated else 0 :] = up  # the gate's rows come first
    return value * (factor if value.ndim == 2 else factor[:, None])


def _join(shards: dict[str, Tensor], shared: int, into: FeedForward, trained: dict[str, bool]) -> None:
    """The first ``shared`` shards as one dense layer, its parameters ``trained`` as the dense ones are."""
    for name, shard in shards.items():
        first = shard[:shared]
        if name == "down_proj":
            value = rearrange(first, "g d h -> d (g h)")
        elif name == "down_proj_bias":
            value = first.sum(0)
        else:
            value = rearrange(first, "g (p h) ... -> (p g h) ...", p=2 if into.activation.gated else 1)
        getattr(into, name).copy_(value).requires_grad_(trained[name])


def _perturb(experts: Experts, noise: float, generator: torch.Generator | None) -> None:
    for parameter in experts.parameters():
        if parameter.ndim == 3:
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * parameter.std() * drawn.to(parameter))
