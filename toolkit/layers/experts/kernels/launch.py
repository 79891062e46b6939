"""The experts by the kernels: forward and backward of sorted rows, as the other backends offer them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from toolkit.checks import require
from toolkit.kernels.families import next_power_of_two
from toolkit.kernels.launch import run
from toolkit.layers.experts.activations import Activation
from toolkit.layers.experts.kernels.call import Call, Tiles, laid_out
from toolkit.layers.experts.kernels.combine import combine_kernel, weight_kernel
from toolkit.layers.experts.kernels.config import Tile
from toolkit.layers.experts.kernels.gradient import gradient_kernel
from toolkit.layers.experts.kernels.outer import bias_kernel, outer_kernel
from toolkit.layers.experts.kernels.products import hidden_kernel, product_kernel
from toolkit.layers.experts.weights import Weights
from toolkit.routing import ExpertRows

WIDEST = 1024
"""Columns that one program of ``combine`` adds up."""


def forward(
    x: Tensor, weight: Tensor, rows: ExpertRows, starts: Tensor, weights: Weights, activation: Activation, keep: bool,
    *, tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """out_t = sum over token t's triples of weight * (second_e act(first_e x_t + first_bias_e) + second_bias_e).

    Args:
        x: (tokens, dim), fp16, bf16 or fp32.
        weight: (n,) by triple, any floating dtype; used in fp32.
        rows: the n triples sorted by expert; those of no expert give nothing, whatever their weight.
        starts: int64 (tokens + 1,), triples of token t are those from ``starts[t]`` to ``starts[t + 1]``.
        weights: the experts' parameters in x's dtype; copied where they are not contiguous.
        activation: what stands between the products.
        keep: whether to return the pre-activations.
        tiles: a tile by kernel name, in place of the shipped ones.

    Returns:
        out (tokens, dim), and by sorted row the pre-activations (n, width), (0, width) unless ``keep``; rows of no
        expert are not written.

    Raises:
        ValueError: a dtype or shape the kernels do not take.
    """
    call = Call.of(x, weight, rows, starts, weights, activation, tiles)
    dim, width, hidden_dim = call.sizes
    hidden = call.empty(call.n if keep else 0, width)
    act = call.empty(call.n, hidden_dim)
    _hidden(call, hidden if keep else None, act)
    y = call.empty(call.n, dim)
    down: dict[str, Any] = {"left": act, "right": call.weights.second, "bias": call.weights.second_bias, "out": y}
    down |= {"LENGTH": hidden_dim, "WIDTH": dim, "RIGHT_K": 1, "RIGHT_N": hidden_dim}
    call.by_rows(product_kernel, "product", dim, hidden_dim, call.arguments() | down)
    return _combined(call, y, call.weight), hidden


def backward(
    d_out: Tensor, x: Tensor, weight: Tensor, rows: ExpertRows, starts: Tensor, weights: Weights,
    activation: Activation, hidden: Tensor, *, tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor, Weights]:  # fmt: skip
    """Gradients of ``forward`` by x, weight and the parameters: deterministic, no atomics.

    ``d_out`` is (tokens, dim) and ``hidden`` what ``forward`` returned, or of no rows: then it is computed again. The
    other arguments are those ``forward`` was given. The gate's gradient is <dA', A>, dA' = d_out second_e, so that no
    expert's output is kept for it (Guo et al. 2025, arXiv 2512.14080, section 3).

    Returns:
        d_x (tokens, dim); d_weight (n,) by triple in weight's dtype, 0 where there is no expert; and the gradients of
        the parameters, 0 for an expert without rows.

    Raises:
        ValueError: as ``forward`` does.
    """
    call = Call.of(x, weight, rows, starts, weights, activation, tiles)
    dim, width, hidden_dim = call.sizes
    require(d_out.shape == x.shape, "d_out.shape", tuple(d_out.shape), f"{tuple(x.shape)}, as x has")
    right = f"(0, {width}) or ({call.n}, {width})"
    require(hidden.shape in ((0, width), (call.n, width)), "hidden.shape", tuple(hidden.shape), right)
    d_out = laid_out(d_out.to(x.dtype))
    if len(hidden) < call.n:
        hidden = call.empty(call.n, width)
        _hidden(call, hidden, None)
    d_hidden, weighted, d_weight = _through_activation(call, d_out, hidden)
    gathered = {"left": d_out, "left_token": rows.token, "LEFT_ROW": d_out.stride(0)}
    d_second = _outer(call, dim, hidden_dim, gathered, {"right": weighted, "right_token": None})
    del weighted
    gathered = {"right": call.x, "right_token": rows.token, "RIGHT_ROW": call.x.stride(0)}
    d_first = _outer(call, width, dim, {"left": d_hidden, "left_token": None}, gathered)
    d_first_bias = None if weights.first_bias is None else _sums(call, width, d_hidden, None, None)
    d_second_bias = None if weights.second_bias is None else _sums(call, dim, d_out, rows.token, call.weight)
    d_rows = call.empty(call.n, dim)
    up: dict[str, Any] = {"left": d_hidden, "right": call.weights.first, "bias": None, "out": d_rows}
    up |= {"LENGTH": width, "WIDTH": dim, "RIGHT_K": dim, "RIGHT_N": 1}
    call.by_rows(product_kernel, "product", dim, width, call.arguments() | up)
    d_x = _combined(call, d_rows, None)
    return d_x, d_weight.to(weight.dtype), Weights(d_first, d_second, d_first_bias, d_second_bias)


def _hidden(call: Call, hidden: Tensor | None, act: Tensor | None) -> None:
    """Write the pre-activations (n, width) or the activations (n, hidden_dim), or both."""
    dim, _, hidden_dim = call.sizes
    arguments = call.arguments() | {"hidden": hidden, "act": act}
    call.by_rows(hidden_kernel, "hidden", hidden_dim, dim, arguments)


def _through_activation(call: Call, d_out: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient by the pre-activations (n, width), w A (n, hidden_dim), and gradient by the gates (n,) by triple."""
    dim, width, hidden_dim = call.sizes
    parts = call.column_tiles("gradient", hidden_dim, dim)
    d_hidden, weighted = call.empty(call.n, width), call.empty(call.n, hidden_dim)
    partial, d_weight = (call.empty(*shape, dtype=torch.float32) for shape in ((parts, call.n), (call.n,)))
    arguments = call.arguments() | {"d_out": d_out, "D_OUT_ROW": d_out.stride(0), "hidden": hidden}
    arguments |= {"d_hidden": d_hidden, "weighted": weighted, "partial": partial, "d_weight": d_weight}
    call.by_rows(gradient_kernel, "gradient", hidden_dim, dim, arguments)
    tile = Tile(32, 0, 64)
    arguments |= {"PARTS": parts, "BLOCK_M": tile.block_m, "BLOCK_K": tile.block_k}
    run(weight_kernel, (-(-call.n // tile.block_m), 1, 1), tile, arguments)
    return d_hidden, weighted, d_weight


def _outer(call: Call, height: int, width: int, left: dict[str, Any], right: dict[str, Any]) -> Tensor:
    """(experts, height, width): each expert's sum over its rows of left^T right."""
    out = call.empty(call.experts, height, width)
    arguments = {**call.arguments(), "LEFT_ROW": height, "RIGHT_ROW": width, **left, **right, "out": out}
    call.by_expert(outer_kernel, "outer", height, width, arguments)
    return out


def _sums(call: Call, width: int, values: Tensor, token: Tensor | None, weight: Tensor | None) -> Tensor:
    """(experts, width): each expert's sum of its rows of ``values``, gathered by ``token``, times ``weight``."""
    out = call.empty(call.experts, width)
    tile = Tile(0, min(64, max(16, next_power_of_two(width))), 16)
    arguments = call.arguments() | {"values": values, "VALUES_ROW": values.stride(0), "token": token, "weight": weight}
    arguments |= {"out": out, "WIDTH": width, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k}
    run(bias_kernel, (-(-width // tile.block_n), call.experts, 1), tile, arguments)
    return out


def _combined(call: Call, y: Tensor, weight: Tensor | None) -> Tensor:
    """(tokens, dim): each token's rows of ``y`` (n, dim) summed, times ``weight`` if given."""
    dim = y.shape[1]
    out = call.empty(len(call.x), dim)
    tile = Tile(1, min(WIDEST, max(16, next_power_of_two(dim))), 0)
    arguments = call.arguments() | {"y": y, "weight": weight, "place": call.rows.place, "out": out}
    arguments["BLOCK_N"] = tile.block_n
    run(combine_kernel, (len(call.x) * -(-dim // tile.block_n), 1, 1), tile, arguments)
    return out
