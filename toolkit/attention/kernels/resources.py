"""What attention launches on the shipped tiles, recorded to be compiled for cards that are not here."""

from __future__ import annotations

import torch

from toolkit.attention.kernels.config import KERNELS, packed_rows, shipped_tile
from toolkit.attention.kernels.launch import backward, decode, forward
from toolkit.attention.plan import Pass
from toolkit.attention.scoring import Scoring
from toolkit.checks import require_choice
from toolkit.kernels.compile import Resources
from toolkit.kernels.compile import faults as compiled_faults
from toolkit.kernels.launch import Recorded, recording

STACK_LIMIT = {2: 0, 4: 64}
"""Bytes of stack a thread may take at head_dim <= 128, by the bytes of an element."""
FEATURES = ("plain", "scored", "dropout", "listed")
"""Causal alone; a window with sinks, soft cap, ALiBi and sink logits; all that and dropout; and a later pass, of some
heads of which others are elsewhere, over lists of rows and columns."""


def shipped_launches(head_dim: int, dtype: torch.dtype, family: str, features: str = "plain") -> list[Recorded]:
    """What forward, backward and decoding launch on the shipped tiles: forward, delta, queries, keys, decode, combine.

    Raises:
        ValueError: ``features`` is none of ``FEATURES``, or the table lacks the configuration.
    """
    require_choice("features", features, FEATURES)
    heads, group, length = 4, 2, 256
    row = torch.arange(length)
    first, stop = torch.zeros(length, 1), row[:, None] + 1
    scoring = Scoring(scale=head_dim**-0.5)
    if features != "plain":
        start = (row - 63).clamp(min=4)
        first, stop = torch.stack([0 * row, start], -1), torch.stack([(row + 1).clamp(max=4), row + 1], -1)
        dropout_p = 0.1 if features in ("dropout", "listed") else 0.0
        numbers = torch.ones(heads)
        seed, first_head = torch.zeros(1, dtype=torch.int64), heads if features == "listed" else 0
        scoring = Scoring(scoring.scale, 30.0, numbers, numbers, dropout_p, seed, first_head)
    first, stop = (bound.to(torch.int32)[None, None] for bound in (first, stop))
    tiles = {kernel: shipped_tile(kernel, head_dim, dtype, family, scoring.dropout_p > 0) for kernel in KERNELS}
    q, k, v = (torch.zeros(2, n, length, head_dim, dtype=dtype) for n in (heads, heads // group, heads // group))
    few = packed_rows(dtype) // group
    whole, end = ([Pass(None, None, first[:, :, :n], stop[:, :, :n], length)] for n in (length, few))
    if features == "listed":
        order = row.to(torch.int32)[None, None]
        whole.append(Pass(order, order, first, stop, length, heads=(0, 1)))
        end.append(Pass(order[..., :few], order, end[0].first, end[0].stop, length))
    with recording() as found:
        out, lse = forward(q, k, v, whole, scoring, 0, 0, tiles=tiles)
        backward(out, lse, q, k, v, out, lse, whole, scoring, 0, 0, tiles=tiles)
        decode(q[:, :, :few], k, v, end, scoring, 0, 0, tiles=tiles)
    later = features == "listed"
    return [launch for launch in found if not later or launch.arguments.get("rows", row) is not None]


def faults(found: Resources, launch: Recorded, family: str) -> list[str]:
    """Why a compiled kernel would not do; none if it will."""
    q = launch.arguments.get("q")
    width = max(launch.arguments["BLOCK_DV"], launch.arguments.get("BLOCK_D", 0))
    element = 2 if q is None else q.dtype.itemsize
    multiplies = launch.name in KERNELS  # delta and combine multiply no tiles
    stack_limit = STACK_LIMIT[element] if width <= 128 else None
    return compiled_faults(found, family, element=element, multiplies=multiplies, stack_limit=stack_limit)
