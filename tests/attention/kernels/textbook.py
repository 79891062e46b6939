"""Attention as the textbook has it, dense and in any dtype, with Philox4x32-10 after Salmon et al. 2011 for dropout."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor

from toolkit.attention.scoring import Scoring


def philox(seed: int, c0: np.ndarray, c1: np.ndarray, c2: np.ndarray, c3: np.ndarray) -> list[np.ndarray]:
    """Four uint32 for each counter (broadcast), ten rounds."""
    mask = np.uint64(0xFFFFFFFF)
    words = [np.uint64(x) & mask for x in np.broadcast_arrays(c0, c1, c2, c3)]
    key = [seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF]
    for _ in range(10):
        product0, product2 = words[0] * np.uint64(0xD2511F53), words[2] * np.uint64(0xCD9E8D57)
        words = [
            (product2 >> np.uint64(32)) ^ words[1] ^ np.uint64(key[0]),
            product2 & mask,
            (product0 >> np.uint64(32)) ^ words[3] ^ np.uint64(key[1]),
            product0 & mask,
        ]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return words


def keep_mask(
    seed: int, p: float, shape: tuple[int, int, int, int], first_head: int, q_start: int, kv_start: int
) -> Tensor:
    """(batch, heads, q_len, kv_len) bool: the weights that dropout keeps."""
    b, h, i, j = np.ogrid[tuple(slice(n) for n in shape)]
    h, i, j = h + first_head, i + q_start, j + kv_start
    words = np.stack([x + 0 * j.astype(np.uint64) for x in philox(seed, j // 4, i, h, b)])
    lanes = np.take_along_axis(words, np.broadcast_to(j % 4, shape)[None], 0)[0]
    return torch.from_numpy(lanes >= round(p * 2**32))


@dataclass(frozen=True)
class Problem:
    """Inputs, what is visible, and the gradients that come in."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor  # (batch, heads, q_len, kv_len)
    scoring: Scoring
    q_start: int
    kv_start: int
    d_out: Tensor
    d_lse: Tensor | None


def textbook(problem: Problem, dtype: torch.dtype) -> dict[str, Tensor]:
    """Outputs, log-sum-exp and gradients, all arithmetic in ``dtype``; rows without keys: 0, -inf, no gradient."""
    scoring = problem.scoring
    q, k, v = (x.to(dtype).requires_grad_() for x in (problem.q, problem.k, problem.v))
    sinks = None if scoring.sink_logits is None else scoring.sink_logits.to(dtype).requires_grad_()
    group = q.shape[1] // k.shape[1]
    keys, values = (repeat(x, "b h j d -> b (h g) j d", g=group) for x in (k, v))
    scores = q @ keys.mT * scoring.scale
    if scoring.softcap:
        scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
    if scoring.alibi_slopes is not None:
        i = torch.arange(q.shape[2])[:, None] + problem.q_start
        j = torch.arange(k.shape[2]) + problem.kv_start
        scores = scores - (rearrange(scoring.alibi_slopes, "h -> h 1 1") * (i - j).abs()).to(dtype)
    scores = scores.masked_fill(~problem.mask, -torch.inf)
    if sinks is not None:
        column = sinks[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column], -1)
    peak = scores.detach().amax(-1, keepdim=True)
    peak = peak.where(peak > -torch.inf, 0)
    weights = torch.exp(scores - peak)
    total = weights.sum(-1, keepdim=True)
    weights = weights[..., : k.shape[2]] / total.where(total > 0, 1)
    lse = (peak + torch.log(total.where(total > 0, 1)))[..., 0].where(total[..., 0] > 0, -torch.inf)
    if scoring.dropout_p:
        assert scoring.seed is not None
        where = tuple(problem.mask.shape), scoring.first_head, problem.q_start, problem.kv_start
        keep = keep_mask(int(scoring.seed), scoring.dropout_p, *where)  # type: ignore[arg-type]
        weights = weights * keep / (1 - scoring.dropout_p)
    out = weights @ values
    objective = (out * problem.d_out.to(dtype)).sum()
    if problem.d_lse is not None:
        objective = objective + (lse.where(total[..., 0] > 0, 0) * problem.d_lse.to(dtype)).sum()
    leaves = [q, k, v] if sinks is None else [q, k, v, sinks]
    gradients = torch.autograd.grad(objective, leaves)
    names = ("dq", "dk", "dv", "d_sink")
    return {"out": out.detach(), "lse": lse.detach(), **dict(zip(names, gradients, strict=False))}
