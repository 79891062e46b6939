"""Self-attention over a pattern, with grouped queries and rotary positions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.attention import Causal, KeyValueCache, Pattern, attention, attention_work
from toolkit.checks import require, require_positive
from toolkit.layers.rotary import RotaryEmbedding
from toolkit.work import Work


class SelfAttention(nn.Module):
    """Projects to queries, keys and values, rotates, attends where ``pattern`` sees, projects back.

    Parameters: qkv_proj ((heads + 2 * kv_heads) * head_dim, dim), queries' rows first, then keys',
    then values'; o_proj (dim, heads * head_dim). No biases.

    Args:
        dim: width of a token.
        heads: query heads.
        kv_heads: key and value heads; ``heads`` by default. Query head h uses key head
            h // (heads / kv_heads).
        head_dim: width of one head; dim / heads by default.
        pattern: which keys each query sees.
        rope: rotary embedding; None for no position information.
        attend: the function that computes the attention, :func:`toolkit.attention.attention` by
            default: the seam where a parallel or counting form is put in.

    Raises:
        ValueError: if a size is not positive, ``heads`` is no multiple of ``kv_heads``, or ``dim`` no
            multiple of ``heads`` where head_dim is not given.
    """

    kind = "attention"

    def __init__(
        self,
        dim: int,
        heads: int,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        pattern: Pattern | None = None,
        rope: RotaryEmbedding | None = None,
        attend: Callable[..., Tensor] = attention,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        require_positive(dim=dim, heads=heads, kv_heads=kv_heads)
        require(heads % kv_heads == 0, "heads", heads, f"a multiple of kv_heads={kv_heads}")
        if head_dim is None:
            require(dim % heads == 0, "heads", heads, f"a divisor of dim={dim} when head_dim is not given")
            head_dim = dim // heads
        require_positive(head_dim=head_dim)
        if rope is not None:
            require(rope.head_dim == head_dim, "rope.head_dim", rope.head_dim, f"head_dim={head_dim}")
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.pattern = Causal() if pattern is None else pattern
        self.rope, self.attend = rope, attend
        self.qkv_proj = nn.Parameter(torch.empty((heads + 2 * kv_heads) * head_dim, dim))
        self.o_proj = nn.Parameter(torch.empty(dim, heads * head_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Every matrix normal with standard deviation fan_in ** -0.5."""
        for weight in (self.qkv_proj, self.o_proj):
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)

    def forward(self, x: Tensor, cache: KeyValueCache | None = None, layer: int = 0) -> Tensor:
        """x (batch, length, dim) -> (batch, length, dim).

        With a ``cache``, x is the next ``length`` tokens: they see those already in it, and are added
        to it under ``layer``.
        """
        start = 0 if cache is None else cache.length(layer)
        qkv = rearrange(F.linear(x, self.qkv_proj), "b n (h d) -> b h n d", d=self.head_dim)
        if self.rope is not None:
            positions = torch.arange(start, start + x.shape[1], device=x.device) if start else None
            qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], dim=1)
            qkv = torch.cat([self.rope.rotate(qk, positions), v], dim=1)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        if cache is not None:
            k, v = cache.append(layer, k, v)
        out = self.attend(q, k, v, self.pattern)
        return F.linear(rearrange(out, "b h n d -> b n (h d)"), self.o_proj)

    def work(self, seq_len: int) -> list[Work]:
        """The projections, and the products over visible pairs."""
        return [
            Work.dense("attention", seq_len * (self.qkv_proj.numel() + self.o_proj.numel())),
            attention_work(self.pattern, seq_len, self.heads, self.head_dim),
        ]

    def extra_repr(self) -> str:
        """Settings, for ``print(model)``."""
        return f"heads={self.heads}, kv_heads={self.kv_heads}, head_dim={self.head_dim}, pattern={self.pattern}"
