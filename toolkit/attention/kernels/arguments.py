"""What the launches have in common: checks, strides, and a pass and its runs as arguments of a kernel."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from toolkit.attention.kernels.config import Tile, fit_tile, padded_head_dim, shipped_tile
from toolkit.attention.plan import Pass
from toolkit.attention.schedule import Runs
from toolkit.attention.scoring import Scoring
from toolkit.checks import require, require_choice
from toolkit.kernels.families import family_of, next_power_of_two


@dataclass(frozen=True)
class Launch:
    """A pass, run for some of its heads."""

    part: Pass
    heads: Tensor | None  # (heads,) int8, 1 for those it is run for; None: all
    continues: bool  # earlier launches have left a state for these heads


def check_inputs(q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> None:
    """Raise a ``ValueError`` for what the kernels cannot take; shapes are the caller's to have checked."""
    require_choice("dtype", q.dtype, (torch.float16, torch.bfloat16, torch.float32))
    padded_head_dim(q.shape[-1])
    padded_head_dim(v.shape[-1], "value_dim")
    require(0 <= scoring.dropout_p < 1, "dropout_p", scoring.dropout_p, "at least 0 and below 1")
    require(scoring.dropout_p == 0 or scoring.seed is not None, "seed", None, "given when dropout_p is above 0")


def with_unit_stride(x: Tensor) -> Tensor:
    """``x`` itself where its last axis is contiguous, else a contiguous copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def launches(passes: Sequence[Pass], n_heads: int, device: torch.device) -> list[Launch]:
    """The passes in their order; one that is the first of some heads and a later one of others is run twice.

    Raises:
        ValueError: a head that no pass is for.
    """
    everything = frozenset(range(n_heads))
    begun: frozenset[int] = frozenset()
    found = []
    for part in passes:
        heads = everything if part.heads is None else frozenset(part.heads)
        for some, continues in ((heads - begun, False), (heads & begun, True)):
            if some:
                flags = None if some == everything else _flags(some, n_heads, device)
                found.append(Launch(part, flags, continues))
        begun |= heads
    require(begun == everything, "passes", f"passes for heads {sorted(begun)}", f"for every head of {n_heads}")
    return found


@functools.lru_cache(maxsize=256)
def _flags(heads: frozenset[int], n_heads: int, device: torch.device) -> Tensor:
    return torch.tensor([head in heads for head in range(n_heads)], dtype=torch.int8, device=device)


def choose_tile(
    tiles: Mapping[str, Tile] | None, kernel: str, q: Tensor, v: Tensor, dropout: bool, n_rows: int, n_columns: int
) -> Tile:
    """The tile the caller asks for, else the shipped one, no larger than the pass calls for."""
    if tiles is not None and kernel in tiles:
        return tiles[kernel]
    head_dim = max(q.shape[-1], v.shape[-1])
    return fit_tile(shipped_tile(kernel, head_dim, q.dtype, family_of(q.device), dropout), n_rows, n_columns)


def strides(name: str, x: Tensor) -> dict[str, int]:
    """Strides of the batch, head and row axes of (b, h, i, d) as the kernels name them."""
    return {f"{name}_batch": x.stride(0), f"{name}_head": x.stride(1), f"{name}_row": x.stride(2)}


def scoring_arguments(scoring: Scoring, q_start: int, kv_start: int) -> dict[str, Any]:
    """Scale, soft cap, slopes, dropout, and what positions and heads count from."""
    threshold = round(scoring.dropout_p * 2**32)
    return {
        "slopes": None if scoring.alibi_slopes is None else scoring.alibi_slopes.float().contiguous(),
        "seed": scoring.seed if scoring.dropout_p > 0 else None,
        "scale": float(scoring.scale),
        "softcap": float(scoring.softcap),
        "keep_scale": 1 / (1 - scoring.dropout_p),
        "threshold": threshold - 2**32 if threshold >= 2**31 else threshold,  # its 32 bits, as int32
        "first_head": scoring.first_head or None,  # without it a program needs a register less
        "q_start": q_start,
        "kv_start": kv_start,
        "SOFTCAP": scoring.softcap != 0,
    }


def size_arguments(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Any]:
    """Sizes of heads and groups, and how fp32 tiles are multiplied."""
    allow_tf32 = q.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    return {
        "GROUP": q.shape[1] // k.shape[1],
        "DIM": q.shape[-1],
        "DIM_V": v.shape[-1],
        "BLOCK_D": padded_head_dim(q.shape[-1]),
        "BLOCK_DV": padded_head_dim(v.shape[-1]),
        "PRECISION": "tf32" if allow_tf32 else "ieee",
        "n_queries": q.shape[2],
    }


def pass_arguments(part: Pass, kv_start: int) -> dict[str, Any]:
    """The planes of a pass, contiguous int32, an axis of size 1 having stride 0; see ``_Planes``.

    ``QUADS``: four neighbours in a tile of columns are the four lanes of one Philox counter.
    """
    if "planes" not in part.cache:
        part.cache["planes"] = _planes(part)
    planes: _Planes = part.cache["planes"]
    batch, head = _plane_strides(planes.first)
    rows_batch, rows_head = (0, 0) if planes.rows is None else _plane_strides(planes.rows)
    return {
        "rows": planes.rows,
        "columns": planes.columns,
        "seen": planes.seen,
        "first": planes.first,
        "stop": planes.stop,
        "rows_batch": rows_batch,
        "rows_head": rows_head,
        "columns_batch": 0 if planes.columns is None else _plane_strides(planes.columns)[0],
        "seen_batch": planes.seen.stride(0) if planes.seen.shape[0] > 1 else 0,
        "bounds_batch": batch,
        "bounds_head": head,
        "n_rows": planes.first.shape[2],
        "n_columns": part.n_columns,
        "QUADS": part.columns is None and kv_start % 4 == 0,
        "SLOTS": planes.first.shape[3],
    }


def run_arguments(full: Runs, part: Runs) -> dict[str, Any]:
    """The tiles to visit without a mask, and those with one."""
    return {**_runs("full", full), **_runs("part", part)}


def _runs(name: str, runs: Runs) -> dict[str, Any]:
    batches, heads, tiles, slots = runs.first.shape
    return {
        f"{name}_first": _plane(runs.first),
        f"{name}_stop": _plane(runs.stop),
        f"{name}_count": _plane(runs.count),
        f"{name}_batch": heads * tiles if batches > 1 else 0,
        f"{name}_head": tiles if heads > 1 else 0,
        f"{name}_slots": slots,
    }


@dataclass(frozen=True)
class _Planes:
    """A pass as the kernels read it: slots padded to a power of two, and which column places any row sees."""

    rows: Tensor | None
    columns: Tensor | None
    first: Tensor  # (batch|1, heads|1, n_rows, slots)
    stop: Tensor
    seen: Tensor  # (batch|1, n_columns) int8


def _planes(part: Pass) -> _Planes:
    slots = part.first.shape[-1]
    more = next_power_of_two(max(slots, 1)) - slots
    first, stop = (_plane(pad(bound, (0, more))) for bound in (part.first, part.stop))
    rows = None if part.rows is None else _plane(part.rows)
    columns = None if part.columns is None else _plane(part.columns)
    return _Planes(rows, columns, first, stop, _seen(part))


def _plane(x: Tensor) -> Tensor:
    return x.to(torch.int32).contiguous()


def _seen(part: Pass) -> Tensor:
    """(batch|1, n_columns) int8: the column place is in an interval of some row of some head."""
    first, stop = part.first.flatten(1).long(), part.stop.flatten(1).long()
    some = (stop > first).int()
    change = torch.zeros(len(first), part.n_columns + 1, dtype=torch.int32, device=first.device)
    change.scatter_add_(1, first.clamp(0, part.n_columns), some)
    change.scatter_add_(1, stop.clamp(0, part.n_columns), -some)
    return (change.cumsum(1)[:, :-1] > 0).to(torch.int8)


def _plane_strides(plane: Tensor) -> tuple[int, int]:
    """Strides of batch and heads of a contiguous plane, 0 where the axis is 1."""
    return tuple(plane.stride(axis) if plane.shape[axis] > 1 else 0 for axis in (0, 1))  # type: ignore[return-value]
