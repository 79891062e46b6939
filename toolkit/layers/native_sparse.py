"""What native sparse attention learns beside its projections: the gates of its branches, and compression."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.attention.interface import attention
from toolkit.attention.selection import NativeSparse
from toolkit.attention.selection.areas import window_count
from toolkit.checks import require, require_positive
from toolkit.work import Work


class NativeSparseBranches(nn.Module):
    """Native sparse attention of projected queries, keys and values, gated by the tokens they come from.

    Parameters: gate_proj (3 * heads, dim), a head's compressed, selected and window gates next to each other;
    with ``settings.compress_hidden_dim`` compress_keys and compress_values, see :class:`WindowCompression`.

    Args:
        settings: sizes of the branches.
        dim: width of a token.
        heads: query heads.
        kv_heads: key and value heads, of one branch.
        head_dim: width of one head.

    Raises:
        ValueError: if a size is not positive, or ``heads`` no multiple of ``kv_heads``.

    Source: Yuan et al. 2025 (arXiv 2502.11089), section 3.
    """

    kind = "attention"

    def __init__(self, settings: NativeSparse, dim: int, heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        require_positive(dim=dim, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
        require(heads % kv_heads == 0, "heads", heads, f"a multiple of kv_heads={kv_heads}")
        self.settings, self.heads, self.kv_heads, self.head_dim = settings, heads, kv_heads, head_dim
        self.gate_proj = nn.Parameter(torch.empty(3 * heads, dim))
        hidden_dim = settings.compress_hidden_dim
        self.compress_keys, self.compress_values = (
            None if hidden_dim is None else WindowCompression(settings.compress_block, head_dim, hidden_dim)
            for _ in range(2)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Gates normal with standard deviation dim ** -0.5; compression as it says."""
        nn.init.normal_(self.gate_proj, std=self.gate_proj.shape[1] ** -0.5)
        for compression in (self.compress_keys, self.compress_values):
            if compression is not None:
                compression.reset_parameters()

    @property
    def key_heads(self) -> int:
        """Heads of the keys, and of the values, that ``forward`` takes: three times kv_heads with ``separate_kv``."""
        return self.kv_heads * (3 if self.settings.separate_kv else 1)

    def gates(self, x: Tensor) -> Tensor:
        """x (batch, q_len, dim) -> (batch, heads, q_len, 3) in (0, 1)."""
        return rearrange(F.linear(x, self.gate_proj), "b n (h c) -> b h n c", c=3).sigmoid()

    def forward(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, *, attend: Callable[..., Any] = attention, **settings: Any
    ) -> Tensor:
        """Attend from the newest tokens to all.

        Shapes: x (batch, q_len, dim); q (batch, heads, q_len, head_dim) of the same tokens, the last q_len;
        k, v (batch, key_heads, kv_len, head_dim), with ``separate_kv`` the compressed branch's heads first,
        then the selected one's, then the window's -> (batch, heads, q_len, head_dim). ``settings`` are those
        of :meth:`NativeSparse.attend`.

        Raises:
            ValueError: if ``k`` or ``v`` has other heads than ``key_heads``, or what ``native_sparse`` refuses.
        """
        for name, tensor in (("k", k), ("v", v)):
            require(tensor.shape[1] == self.key_heads, f"{name} heads", tensor.shape[1], f"{self.key_heads}")
        keys, values = (x.split(self.kv_heads, dim=1) * (3 if x.shape[1] == self.kv_heads else 1) for x in (k, v))
        compress = None if self.compress_keys is None else self._compress
        return self.settings.attend(q, keys, values, self.gates(x), compress=compress, attend=attend, **settings)

    def _compress(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        assert self.compress_keys is not None and self.compress_values is not None
        return self.compress_keys(keys), self.compress_values(values)

    def work(self, seq_len: int) -> list[Work]:
        """The gates, compression, and the products of the branches."""
        learned = [self.compress_keys, self.compress_values]
        windows = window_count(seq_len, self.settings.compress_block, self.settings.stride)
        compressed = windows * self.kv_heads * sum(0 if one is None else one.multiply_adds() for one in learned)
        projections = Work.dense("attention", seq_len * self.gate_proj.numel() + compressed)
        return [projections, *self.settings.work(seq_len, self.heads, self.head_dim)]

    def extra_repr(self) -> str:
        """Settings, for ``print(model)``."""
        return f"{self.settings}, heads={self.heads}, kv_heads={self.kv_heads}, head_dim={self.head_dim}"


class WindowCompression(nn.Module):
    """An MLP from a window of keys (or values), each with its place in the window added, to one.

    down(gelu(up(flatten(window + position)))), the same for every head.

    Parameters: position (compress_block, head_dim); up (hidden_dim, compress_block * head_dim); down
    (head_dim, hidden_dim).

    Source: Yuan et al. 2025 (arXiv 2502.11089), equation 7, which leaves the sizes open.
    """

    kind = "attention"

    def __init__(self, compress_block: int, head_dim: int, hidden_dim: int) -> None:
        super().__init__()
        require_positive(compress_block=compress_block, head_dim=head_dim, hidden_dim=hidden_dim)
        self.position = nn.Parameter(torch.empty(compress_block, head_dim))
        self.up = nn.Parameter(torch.empty(hidden_dim, compress_block * head_dim))
        self.down = nn.Parameter(torch.empty(head_dim, hidden_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices normal with standard deviation fan_in ** -0.5; positions 0."""
        nn.init.zeros_(self.position)
        for weight in (self.up, self.down):
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)

    def forward(self, windows: Tensor) -> Tensor:
        """windows (..., compress_block, head_dim) -> (..., head_dim)."""
        flat = rearrange(windows + self.position, "... l d -> ... (l d)")
        return F.linear(F.gelu(F.linear(flat, self.up)), self.down)

    def multiply_adds(self) -> int:
        """Of one window."""
        return self.up.numel() + self.down.numel()
