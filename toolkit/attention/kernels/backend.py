"""The kernels as a backend of attention: decoding where few queries meet many keys, else whole tiles of queries."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from toolkit.attention.kernels import launch
from toolkit.attention.kernels.launch import backward
from toolkit.attention.plan import Pass
from toolkit.attention.scoring import Scoring

FEW_QUERIES, MANY_KEYS = 16, 512
"""Where one tile of queries would leave most of a GPU idle: its keys are shared out. Not yet measured."""


def forward(
    q: Tensor, k: Tensor, v: Tensor, passes: Sequence[Pass], scoring: Scoring, q_start: int, kv_start: int
) -> tuple[Tensor, Tensor]:
    """Attention over the pairs of ``passes``, see :func:`toolkit.attention.kernels.launch.forward`.

    Shapes: q (batch, heads, q_len, head_dim); k (batch, kv_heads, kv_len, head_dim); v (batch, kv_heads,
    kv_len, value_dim) -> out (batch, heads, q_len, value_dim) and lse (batch, heads, q_len).
    """
    decoding = q.shape[2] <= FEW_QUERIES and k.shape[2] >= MANY_KEYS
    attend = launch.decode if decoding else launch.forward
    return attend(q, k, v, passes, scoring, q_start, kv_start)


__all__ = ["backward", "forward"]
