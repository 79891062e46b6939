"""A tensor's heads shared out over programs of the kernel: inputs checked and laid out, the tile chosen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.checks import require, require_choice
from toolkit.kernels.families import next_power_of_two
from toolkit.kernels.launch import run
from toolkit.layers.rotary.kernels.rotate import rotate_kernel

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
ELEMENTS = 2048
"""Of one head in a program: with 4 warps a thread holds 16, in 16 bits one read of 16 bytes for each of a pair."""
HEADS = 4
"""That share one reading of the table: at one head a program, it would read as much of the fp32 table as of bf16 x."""


@dataclass(frozen=True)
class Tile:
    """``positions`` by ``heads`` that one program turns, and its warps. Speed is not yet measured."""

    positions: int
    heads: int
    num_warps: int = 4
    num_stages: int = 1
    waves_per_eu: int = 0


def shipped_tile(head_dim: int, heads: int, length: int) -> Tile:
    """The tile for x (batch, heads, length, head_dim), the same on every card."""
    positions = max(1, ELEMENTS // next_power_of_two(head_dim))
    return Tile(min(positions, next_power_of_two(length)), min(HEADS, next_power_of_two(heads)))


def rotate(
    x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, interleaved: bool, heads: int, inverse: bool,
    *, tile: Tile | None = None,
) -> None:  # fmt: skip
    """Write to ``out`` the first ``heads`` heads of x (batch, all heads, length, head_dim) rotated, the others as is.

    Args:
        x: fp16, bf16 or fp32; read where it lies if its last axis is contiguous, else copied first.
        cos, sin: fp32 (batch or 1, length, rotary_dim / 2).
        out: of x's shape and dtype, its last axis contiguous.
        interleaved: pairs are (2k, 2k + 1), not (k, k + rotary_dim / 2).
        heads: how many are rotated.
        inverse: turn back.
        tile: in place of the shipped one.

    Raises:
        ValueError: a dtype, shape or device the kernel does not take.
    """
    check_inputs(x, cos, sin, heads)
    x = x if x.stride(-1) == 1 else x.contiguous()
    cos, sin = cos.contiguous(), sin.contiguous()
    batch, n_heads, length, head_dim = x.shape
    half = cos.shape[-1]
    tile = shipped_tile(head_dim, n_heads, length) if tile is None else tile
    arguments = {"x": x, "cos": cos, "sin": sin, "out": out, "length": length, "sign": -1.0 if inverse else 1.0}
    for name, tensor in (("x", x), ("out", out)):
        arguments |= {f"{name}_{axis}": tensor.stride(n) for n, axis in enumerate(("batch", "head", "row"))}
    arguments |= {"table_batch": 0 if len(cos) == 1 else cos.stride(0), "n_heads": n_heads, "n_rotated": heads}
    arguments |= {"HEAD_DIM": head_dim, "HALF": half, "INTERLEAVED": interleaved, "GROUP": tile.heads}
    arguments |= {"BLOCK_N": tile.positions, "BLOCK_HALF": next_power_of_two(half)}
    arguments |= {"BLOCK_REST": next_power_of_two(head_dim - 2 * half)}
    run(rotate_kernel, (-(-length // tile.positions), -(-n_heads // tile.heads), batch), tile, arguments)


def check_inputs(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> None:
    """Raise a ``ValueError`` that names what the kernel cannot take."""
    require_choice("dtype", x.dtype, DTYPES)
    require(x.ndim == 4, "x.shape", tuple(x.shape), "(batch, heads, length, head_dim)")
    batch, n_heads, length, head_dim = x.shape
    require(0 <= heads <= n_heads, "heads", heads, f"at least 0 and at most the {n_heads} of x")
    for name, table in (("cos", cos), ("sin", sin)):
        right = f"(1 or {batch}, {length}, at most {head_dim} / 2)"
        fits = table.ndim == 3 and len(table) in (1, batch) and table.shape[1] == length
        require(fits and 0 < 2 * table.shape[2] <= head_dim, f"{name}.shape", tuple(table.shape), right)
        require(table.dtype == torch.float32, f"{name}.dtype", table.dtype, "torch.float32")
        require(table.device == x.device, f"{name}.device", table.device, f"{x.device}, where x is")
    require(sin.shape == cos.shape, "sin.shape", tuple(sin.shape), f"{tuple(cos.shape)}, as cos has")
