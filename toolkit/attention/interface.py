"""``attention()``: one function over every pattern and backend."""

from __future__ import annotations

import os
from typing import Literal, overload

import torch
from torch import Tensor

from toolkit.attention.dropout import draw_seed
from toolkit.attention.inputs import check_inputs
from toolkit.attention.operator import attention_operator
from toolkit.attention.parse import encode
from toolkit.attention.patterns import Causal, Pattern
from toolkit.attention.patterns.pattern import first_position
from toolkit.attention.reference import reference_attention
from toolkit.attention.scoring import Scoring
from toolkit.checks import require, require_choice

BACKENDS = "auto", "triton", "blockwise", "reference"
CAUSAL = Causal()


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern = ...,
    *,
    scale: float | None = ...,
    softcap: float | None = ...,
    sink_logits: Tensor | None = ...,
    alibi_slopes: Tensor | None = ...,
    dropout_p: float = ...,
    dropout_seed: Tensor | None = ...,
    first_head: int = ...,
    return_lse: Literal[False] = ...,
    q_start: int | None = ...,
    kv_start: int = ...,
    backend: str = ...,
) -> Tensor: ...
@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern = ...,
    *,
    scale: float | None = ...,
    softcap: float | None = ...,
    sink_logits: Tensor | None = ...,
    alibi_slopes: Tensor | None = ...,
    dropout_p: float = ...,
    dropout_seed: Tensor | None = ...,
    first_head: int = ...,
    return_lse: Literal[True],
    q_start: int | None = ...,
    kv_start: int = ...,
    backend: str = ...,
) -> tuple[Tensor, Tensor]: ...
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern = CAUSAL,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sink_logits: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    dropout_p: float = 0.0,
    dropout_seed: Tensor | None = None,
    first_head: int = 0,
    return_lse: bool = False,
    q_start: int | None = None,
    kv_start: int = 0,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Scaled dot-product attention over the pairs that ``pattern`` sees.

    Shapes: q (batch, heads, q_len, head_dim); k (batch, kv_heads, kv_len, head_dim); v (batch,
    kv_heads, kv_len, value_dim) -> out (batch, heads, q_len, value_dim) in q's dtype. Query head h
    uses key head h // (heads / kv_heads). Scores and softmax are computed in fp32 (fp64 for fp64). A row
    that sees no key gives zeros.

    Args:
        q, k, v: queries, keys and values.
        pattern: which pairs are visible; the default is ``Causal()``.
        scale: factor of the scores; head_dim ** -0.5 by default.
        softcap: scores become softcap * tanh(score / softcap); None or 0 for none.
        sink_logits: (heads,) floating-point: a logit that joins each row's denominator and nothing else;
            differentiable.
        alibi_slopes: (heads,): slope * abs(i - j) is taken from the scores; constants.
        dropout_p: chance in [0, 1) that a weight is dropped, the others scaled by 1 / (1 - dropout_p).
            A seed, positions, head and batch row decide each weight, on every backend alike.
        dropout_seed: int64 (1,) on q's device, the seed; by default one is drawn from torch's generator.
        first_head: number of q's first head among all the heads, by which dropout counts: above 0 where a
            process has some of them only, and is to drop what one process with all of them would.
        return_lse: also return lse (batch, heads, q_len): the natural logarithm of each row's sum of
            exponentials, sink included, differentiable, fp32 (fp64 for fp64); -inf for a row that sees no
            key and has no sink.
        q_start, kv_start: absolute position of the first query and the first key; by default the
            queries are the last q_len positions of the keys. Where the pattern names positions past the last
            token, pass ``pattern.until(end)``.
        backend: ``"triton"``, the kernels, for a GPU; ``"blockwise"``, on the CPU; ``"reference"``, the
            textbook, of quadratic memory, the only one that can be differentiated twice; ``"auto"``
            picks by the device.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, a setting is out of its range, the
            pattern's own sizes do not fit, or the backend is unknown or not for this device.
        RuntimeError: if ``backend="triton"`` finds neither a GPU nor the interpreter.

    >>> import torch
    >>> q, kv = torch.randn(1, 4, 8, 16), torch.randn(1, 2, 8, 16)
    >>> attention(q, kv, kv, Causal()).shape
    torch.Size([1, 4, 8, 16])
    """
    check_inputs(
        q,
        k,
        v,
        pattern,
        softcap=softcap,
        sink_logits=sink_logits,
        alibi_slopes=alibi_slopes,
        dropout_p=dropout_p,
        dropout_seed=dropout_seed,
        first_head=first_head,
    )
    q_start = first_position(pattern, q.shape[2], k.shape[2], q_start, kv_start)
    backend = _chosen(backend, q.device)
    if dropout_p and dropout_seed is None:
        dropout_seed = draw_seed(q.device)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if alibi_slopes is not None:
        alibi_slopes = alibi_slopes.float()
    if backend == "reference":
        scoring = Scoring(scale, softcap or 0.0, alibi_slopes, sink_logits, dropout_p, dropout_seed, first_head)
        out, lse = reference_attention(q, k, v, pattern, scoring, q_start, kv_start)
    else:
        text, tensors = encode(pattern)
        out, lse = attention_operator(
            q,
            k,
            v,
            sink_logits,
            alibi_slopes,
            dropout_seed,
            tensors,
            text,
            q_start,
            kv_start,
            scale,
            softcap or 0.0,
            dropout_p,
            first_head,
            backend,
        )
    return (out, lse) if return_lse else out


def _chosen(backend: str, device: torch.device) -> str:
    """The backend to use on ``device``."""
    require_choice("backend", backend, BACKENDS)
    if backend == "auto":
        require(device.type in ("cuda", "cpu", "meta"), "q.device", device, "cuda or cpu, or use backend='reference'")
        return "triton" if device.type == "cuda" else "blockwise"
    if backend == "blockwise":
        require(device.type == "cpu", "backend", backend, f"'triton' or 'auto' for tensors on {device}")
    if backend == "triton" and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(
            f"backend='triton' on {device}: it needs tensors on a GPU, or TRITON_INTERPRET=1 set before the kernels "
            "are imported; on the CPU use backend='blockwise' or 'auto'"
        )
    return backend
