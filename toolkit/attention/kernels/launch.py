"""Attention by the kernels: forward, backward, and decoding over a long cache, as the other backends offer them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from toolkit.attention.kernels.arguments import strides, with_unit_stride
from toolkit.attention.kernels.backward import delta_kernel, keys_kernel, queries_kernel
from toolkit.attention.kernels.call import Call, Tiles, sink_logits
from toolkit.attention.kernels.config import Tile, packed_rows, padded_head_dim
from toolkit.attention.kernels.decode import combine_kernel, decode_kernel
from toolkit.attention.kernels.forward import forward_kernel
from toolkit.attention.plan import Pass
from toolkit.attention.scoring import Scoring
from toolkit.kernels.families import next_power_of_two
from toolkit.kernels.launch import run

INTERPRETED_PROGRAMS = 8


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    passes: Sequence[Pass],
    scoring: Scoring,
    q_start: int,
    kv_start: int,
    *,
    tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention over the pairs of ``passes``: online softmax in base 2, sums in fp32.

    Args:
        q: (batch, heads, q_len, head_dim), fp16, bf16 or fp32.
        k: (batch, kv_heads, kv_len, head_dim).
        v: (batch, kv_heads, kv_len, value_dim).
        passes: the visible pairs; for each head the first pass that is for it lists every row.
        scoring: how products become weights.
        q_start: absolute position of query row 0.
        kv_start: absolute position of key column 0.
        tiles: a tile by kernel name, in place of the shipped ones.

    Returns:
        Outputs (batch, heads, q_len, value_dim) in q's dtype, and the natural log-sum-exp (batch, heads, q_len), fp32.

    Raises:
        ValueError: a dtype or head_dim the kernels do not take, a head without a pass.
    """
    call = Call.of(q, k, v, passes, scoring, q_start, kv_start, tiles)
    batch, heads, q_len, _ = q.shape
    several = len(call.launches) > 1
    out_dtype = torch.float32 if several else q.dtype
    out = torch.empty(batch, heads, q_len, v.shape[-1], dtype=out_dtype, device=q.device)
    lse = torch.empty(batch, heads, q_len, dtype=torch.float32, device=q.device)
    for launch in call.launches:
        tile, arguments = call.arguments("forward", launch)
        arguments |= {"out": out, "lse": lse, **strides("out", out), "CONTINUE": launch.continues}
        arguments["sinks"] = None if launch.continues else sink_logits(scoring)
        run(forward_kernel, (-(-launch.part.n_rows // tile.block_m), heads, batch), tile, arguments)
    return out.to(q.dtype), lse


def backward(
    d_out: Tensor,
    d_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    passes: Sequence[Pass],
    scoring: Scoring,
    q_start: int,
    kv_start: int,
    *,
    tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of ``forward`` by q, k, v and the sink logits (None without): deterministic, no atomics.

    ``d_out`` and ``d_lse`` (None: zero) have the shapes of ``out`` and ``lse``, which ``forward`` returned; the other
    arguments are those it was given.

    Raises:
        ValueError: as ``forward`` does.
    """
    call = Call.of(q, k, v, passes, scoring, q_start, kv_start, tiles)
    d_out, lse = with_unit_stride(d_out.to(q.dtype)), lse.contiguous()
    delta = _delta(d_out, d_lse, with_unit_stride(out), lse)
    # One pass over all columns as they come writes each gradient once; else each pass adds to what is there.
    adds = len(call.launches) > 1 or passes[0].columns is not None or passes[0].n_columns != k.shape[2]
    allocate, dtype = (torch.zeros, torch.float32) if adds else (torch.empty, q.dtype)
    dq, dk, dv = (allocate(x.shape, dtype=dtype, device=q.device) for x in (q, k, v))
    shared = {"d_out": d_out, "lse": lse, "delta": delta, "ACCUMULATE": adds, **strides("d_out", d_out)}
    shared |= {"dq": dq, "dk": dk, "dv": dv, **strides("dq", dq), **strides("dk", dk), **strides("dv", dv)}
    batch, heads, kv_heads = q.shape[0], q.shape[1], k.shape[1]
    for launch in call.launches:
        tile, arguments = call.arguments("queries", launch)
        grid = (-(-launch.part.n_rows // tile.block_m), heads, batch)
        run(queries_kernel, grid, tile, arguments | shared)
        if launch.part.n_columns == 0:
            continue
        tile, arguments = call.arguments("keys", launch)
        grid = (-(-launch.part.n_columns // tile.block_n), kv_heads, batch)
        run(keys_kernel, grid, tile, arguments | shared)
    d_sink = None if scoring.sink_logits is None else _sink_gradient(scoring.sink_logits, lse, delta)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), d_sink


def decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    passes: Sequence[Pass],
    scoring: Scoring,
    q_start: int,
    kv_start: int,
    *,
    tiles: Tiles | None = None,
    programs: int | None = None,
) -> tuple[Tensor, Tensor]:
    """What ``forward`` returns, for few queries and many keys.

    The rows of a group of heads are packed into one tile, and the tiles of keys they visit are shared out over
    programs. Where a pass differs by head, or more rows than ``packed_rows`` would be packed, this is ``forward``.

    Args:
        q, k, v, passes, scoring, q_start, kv_start, tiles: as in ``forward``.
        programs: how many programs to have at work; by default two for each multiprocessor.

    Raises:
        ValueError: as ``forward`` does.
    """
    group = q.shape[1] // k.shape[1]
    if not all(can_decode(part, group, packed_rows(q.dtype)) for part in passes):
        return forward(q, k, v, passes, scoring, q_start, kv_start, tiles=tiles)
    call = Call.of(q, k, v, passes, scoring, q_start, kv_start, tiles)
    batch, heads, q_len, _ = q.shape
    value_dim = v.shape[-1]
    wanted = -(-(programs or _programs(q.device)) // max(batch * k.shape[1], 1))
    plan = [(launch, *call.arguments("decode", launch, _rows(launch.part, 1))) for launch in call.launches]
    shares = [max(1, min(wanted, -(-launch.part.n_columns // tile.block_n))) for launch, tile, _ in plan]
    part_out = torch.empty(batch, heads, q_len, sum(shares), value_dim, dtype=torch.float32, device=q.device)
    part_lse = torch.full(part_out.shape[:-1], -torch.inf, device=q.device)  # a pass need not list every row
    scratch = {"part_out": part_out, "part_lse": part_lse, "n_parts": sum(shares)}
    for n, (launch, tile, arguments) in enumerate(plan):
        place = {"part_offset": sum(shares[:n]), "BLOCK_M": _rows(launch.part, group)}
        run(decode_kernel, (shares[n], k.shape[1], batch), tile, arguments | scratch | place)
    return _combined(scratch, q, value_dim, scoring)


def can_decode(part: Pass, group: int, most: int = 64) -> bool:
    """Whether the heads of a group share this pass and its rows, packed, are ``most`` or fewer."""
    planes = [part.first] if part.rows is None else [part.first, part.rows]
    alike = part.heads is None and all(plane.shape[1] == 1 for plane in planes)
    return alike and part.n_rows * group <= most


def _delta(d_out: Tensor, d_lse: Tensor | None, out: Tensor, lse: Tensor) -> Tensor:
    """D (b, h, i) = rowsum(d_out * out) - d_lse."""
    batch, heads, q_len, value_dim = out.shape
    delta = torch.empty(batch, heads, q_len, dtype=torch.float32, device=out.device)
    tile = Tile(block_m=32, block_n=0)
    arguments = {"out": out, "d_out": d_out, "lse": lse, "delta": delta, "n_queries": q_len}
    arguments |= {"d_lse": None if d_lse is None else d_lse.float().contiguous()}
    arguments |= {**strides("out", out), **strides("d_out", d_out)}
    arguments |= {"DIM_V": value_dim, "BLOCK_M": tile.block_m, "BLOCK_DV": padded_head_dim(value_dim)}
    run(delta_kernel, (-(-q_len // tile.block_m), heads, batch), tile, arguments)
    return delta


def _sink_gradient(sinks: Tensor, lse: Tensor, delta: Tensor) -> Tensor:
    """(heads,): -sum over batch and rows of exp(sink - lse) * D."""
    weight = torch.exp(sinks.float()[None, :, None] - lse).masked_fill(lse == -torch.inf, 0)
    return -(weight * delta).sum((0, 2)).to(sinks.dtype)


def _rows(part: Pass, group: int) -> int:
    """Lines of a tile of all rows of ``group`` heads."""
    return max(16, next_power_of_two(part.n_rows * group))


def _combined(scratch: dict[str, Any], q: Tensor, value_dim: int, scoring: Scoring) -> tuple[Tensor, Tensor]:
    """The parts merged by their lse: outputs (b, h, q_len, value_dim) in q's dtype and lse (b, h, q_len)."""
    batch, heads, q_len, _ = q.shape
    out = torch.empty(batch, heads, q_len, value_dim, dtype=q.dtype, device=q.device)
    lse = torch.empty(batch, heads, q_len, dtype=torch.float32, device=q.device)
    arguments = scratch | {"out": out, "lse": lse, "sinks": sink_logits(scoring), **strides("out", out)}
    arguments |= {"DIM_V": value_dim, "BLOCK_DV": padded_head_dim(value_dim), "BLOCK_PARTS": 16, "n_queries": q_len}
    run(combine_kernel, (q_len, heads, batch), Tile(block_m=1, block_n=16), arguments)
    return out, lse


def _programs(device: torch.device) -> int:
    if device.type == "cpu":
        return INTERPRETED_PROGRAMS
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count
