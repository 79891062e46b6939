"""What attention may be given, whoever computes it: shapes, dtypes, devices and ranges, refused by name."""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.attention.patterns import Pattern
from toolkit.checks import require


def check_inputs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    softcap: float | None = None,
    sink_logits: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    dropout_p: float = 0.0,
    dropout_seed: Tensor | None = None,
    first_head: int = 0,
) -> None:
    """Refuse what :func:`toolkit.attention.attention` cannot take; where tokens stand is for the pattern to judge.

    Raises:
        ValueError: naming the argument, what it is, and what would be right.
    """
    _check_tensors(q, k, v)
    _check_scoring(q, softcap, sink_logits, alibi_slopes)
    _check_dropout(q, dropout_p, dropout_seed, first_head)
    require(isinstance(pattern, Pattern), "pattern", pattern, "a pattern, such as Causal()")
    require(pattern.device in (None, q.device), "pattern device", pattern.device, f"q's, {q.device}")
    for axis, name in enumerate(("batch", "heads")):
        own, given = pattern.planes[axis], q.shape[axis]
        require(own in (1, given), f"pattern {name}", own, f"1 or q's, {given}")


def _check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        require(tensor.ndim == 4, f"{name}.shape", tuple(tensor.shape), "(batch, heads, length, head_dim)")
        require(tensor.is_floating_point(), f"{name}.dtype", tensor.dtype, "a floating-point type")
        require(tensor.dtype == q.dtype, f"{name}.dtype", tensor.dtype, f"q's, {q.dtype}")
        require(tensor.device == q.device, f"{name}.device", tensor.device, f"q's, {q.device}")
        require(tensor.shape[0] == q.shape[0], f"{name} batch", tensor.shape[0], f"q's, {q.shape[0]}")
    require(k.shape[1:3] == v.shape[1:3], "v (kv_heads, kv_len)", tuple(v.shape[1:3]), f"k's, {tuple(k.shape[1:3])}")
    require(k.shape[3] == q.shape[3], "k head_dim", k.shape[3], f"q's, {q.shape[3]}")
    require(q.shape[3] > 0 and k.shape[1] > 0, "k.shape", tuple(k.shape), "of at least one kv_head and head_dim")
    require(q.shape[1] % k.shape[1] == 0, "kv_heads", k.shape[1], f"a divisor of heads={q.shape[1]}")


def _check_scoring(q: Tensor, softcap: float | None, sink_logits: Tensor | None, alibi_slopes: Tensor | None) -> None:
    require(softcap is None or 0 <= softcap < float("inf"), "softcap", softcap, "positive, or None for none")
    for name, tensor in (("sink_logits", sink_logits), ("alibi_slopes", alibi_slopes)):
        if tensor is not None:
            require(tensor.shape == q.shape[1:2], f"{name}.shape", tuple(tensor.shape), f"(heads,) = ({q.shape[1]},)")
            require(tensor.is_floating_point(), f"{name}.dtype", tensor.dtype, "a floating-point type")
            require(tensor.device == q.device, f"{name}.device", tensor.device, f"q's, {q.device}")
    learned = alibi_slopes is not None and alibi_slopes.requires_grad
    require(not learned, "alibi_slopes.requires_grad", learned, "False: the slopes are constants and get no gradient")


def _check_dropout(q: Tensor, dropout_p: float, dropout_seed: Tensor | None, first_head: int) -> None:
    require(0.0 <= dropout_p < 1.0, "dropout_p", dropout_p, "at least 0 and below 1")
    require(first_head >= 0, "first_head", first_head, "0 or more")
    if dropout_seed is not None:
        shown = f"{dropout_seed.dtype} {tuple(dropout_seed.shape)} on {dropout_seed.device}"
        fits = dropout_seed.dtype == torch.int64 and dropout_seed.shape == (1,) and dropout_seed.device == q.device
        require(fits, "dropout_seed", shown, f"int64 (1,) on q's device, {q.device}")
        require(dropout_p > 0, "dropout_seed", shown, "None where dropout_p is 0")
