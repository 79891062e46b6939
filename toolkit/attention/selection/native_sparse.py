"""Native sparse attention: a coarse look at everything, a fine look at chosen blocks, and a window, gated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from toolkit.attention.cost import attention_work
from toolkit.attention.interface import attention
from toolkit.attention.patterns import Causal, SlidingWindow
from toolkit.attention.patterns.blocks import KeyRanges
from toolkit.attention.selection.areas import ended_windows, own_and_chosen, window_count
from toolkit.attention.selection.importance import block_importance
from toolkit.attention.selection.routed import attend_blocks, by_chunks, choose, grouped, none_chosen
from toolkit.checks import require
from toolkit.work import Work

BRANCHES = ("compressed", "selected", "window")

Compress = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Windows of keys and of values (batch, kv_heads, windows, compress_block, dim) -> (batch, kv_heads, windows, dim)."""


@dataclass(frozen=True)
class NativeSparse:
    """Settings of :func:`native_sparse`, which attend by themselves.

    Attributes:
        block: keys in a block of the selected branch (l' in the paper); blocks count from position 0.
        top_k: blocks that a query attends to, the initial and local ones counted (n).
        compress_block: keys that are compressed to one (l).
        stride: keys from one compressed window to the next (d).
        window: the newest keys, self included, of the window branch (w).
        initial: blocks from the start that every query attends to.
        local: blocks up to and including its own that every query attends to.
        compress_hidden_dim: in a model, the hidden width of the MLP that compresses a window; None for the
            window's mean.
        separate_kv: in a model, whether each branch has key and value projections of its own, as in the paper.

    Raises:
        ValueError: if one is not a positive integer (``initial`` may be 0), ``stride`` divides not both
            ``block`` and ``compress_block``, or ``top_k`` is below ``initial + local``.
    """

    block: int = 64
    top_k: int = 16
    compress_block: int = 32
    stride: int = 16
    window: int = 512
    initial: int = 1
    local: int = 2
    compress_hidden_dim: int | None = None
    separate_kv: bool = False

    def __post_init__(self) -> None:
        for name in ("block", "top_k", "compress_block", "stride", "window", "initial", "local", "compress_hidden_dim"):
            value, least = getattr(self, name), 0 if name == "initial" else 1
            fits = isinstance(value, int) and value >= least
            unset = name == "compress_hidden_dim" and value is None
            require(fits or unset, name, value, f"an integer of {least} or more")
        for name in ("block", "compress_block"):
            value = getattr(self, name)
            require(value % self.stride == 0, name, value, f"a multiple of stride={self.stride}")
        forced = self.initial + self.local
        require(
            self.top_k >= forced, "top_k", self.top_k, f"at least initial + local = {forced}, which count among them"
        )

    def attend(
        self,
        q: Tensor,
        k: Tensor | tuple[Tensor, Tensor, Tensor],
        v: Tensor | tuple[Tensor, Tensor, Tensor],
        gates: Tensor,
        *,
        compress: Compress | None = None,
        scale: float | None = None,
        backend: str = "auto",
        attend: Callable[..., Any] = attention,
    ) -> Tensor:
        """See :func:`native_sparse`; ``attend`` computes the parts and has the signature of ``attention``."""
        keys, values = _three("k", k), _three("v", v)
        learned = self.compress_hidden_dim is not None
        require(not learned or compress is not None, "compress", compress, f"given, as for {self} it is learned")
        require(gates.shape == (*q.shape[:3], 3), "gates.shape", tuple(gates.shape), "(batch, heads, q_len, 3)")
        settings = {"scale": q.shape[-1] ** -0.5 if scale is None else scale, "backend": backend}
        window = attend(q, keys[2], values[2], Causal() & SlidingWindow(self.window), **settings)
        compressed, chosen = self._compressed(q, keys[0], values[0], compress, attend, settings)
        position = _positions(q, keys[1])
        nearby = attend(q, keys[1], values[1], self._forced(position), q_start=0, return_lse=True, **settings)
        selected, _ = attend_blocks(nearby, q, keys[1], values[1], chosen, self.block, attend, **settings)
        parts = zip(gates.unbind(dim=-1), (compressed, selected, window), strict=True)
        return sum((gate[..., None] * part for gate, part in parts), start=torch.zeros((), device=q.device)).to(q.dtype)

    def _compressed(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        compress: Compress | None,
        attend: Callable[..., Any],
        settings: dict[str, Any],
    ) -> tuple[Tensor, Tensor]:
        """The compressed branch (batch, heads, q_len, value_dim), and the blocks its weights choose.

        chosen: int64 (batch * kv_heads, 1, q_len, slots), -1 for none.
        """
        if k.shape[2] < self.compress_block:  # not one window: what there is lies in a query's own block
            none = none_chosen(grouped(q, k.shape[1])[:, :1])
            return q.new_zeros(*q.shape[:3], v.shape[3]), none
        keys, values = (compress or mean_of_windows)(self._windows(k), self._windows(v))
        windows = window_count(k.shape[2], self.compress_block, self.stride)
        for name, compressed, given in (("keys", keys, k), ("values", values, v)):
            right = (*given.shape[:2], windows, given.shape[3])
            require(compressed.shape == right, f"compressed {name}", tuple(compressed.shape), f"{right}, one a window")
        position = _positions(q, k)
        pattern = self._seen_windows(position)
        out, lse = attend(q, keys, values, pattern, q_start=0, return_lse=True, **settings)
        return out, self.choose(q, keys, lse, position, k.shape[2], settings["scale"])

    def _windows(self, x: Tensor) -> Tensor:
        """x (batch, kv_heads, kv_len, dim) -> (batch, kv_heads, windows, compress_block, dim), a view."""
        return rearrange(x.unfold(2, self.compress_block, self.stride), "b h c d l -> b h c l d")

    def _ended(self, position: Tensor) -> Tensor:
        """How many windows have their last key at or before each position: (q_len,)."""
        return ((position + 1 - self.compress_block) // self.stride + 1).clamp(min=0)

    def _seen_windows(self, position: Tensor) -> KeyRanges:
        """The compressed keys of the windows that have ended, for queries at (q_len,) positions."""
        ended = self._ended(position)[None, None].to(torch.int32)
        return KeyRanges(torch.zeros_like(ended), ended)

    def _forced(self, position: Tensor) -> KeyRanges:
        """The initial and the local blocks, up to the query itself: two runs for each of (q_len,) positions."""
        end = position + 1
        recent = (position // self.block - self.local + 1).clamp(min=0) * self.block
        start = end.clamp(max=self.initial * self.block)
        bounds = (torch.zeros_like(end), torch.maximum(recent, start)), (start, end)
        first, stop = (torch.stack(bound, dim=-1)[None, None].to(torch.int32) for bound in bounds)
        return KeyRanges(first, stop)

    def choose(self, q: Tensor, keys: Tensor, lse: Tensor, position: Tensor, kv_len: int, scale: float) -> Tensor:
        """The blocks between the initial and the local ones with the highest weight in the compressed branch.

        Shapes: q (batch, heads, q_len, head_dim), compressed keys (batch, kv_heads, windows, head_dim), lse
        (batch, heads, q_len) of the compressed branch, position (q_len,) -> int64 (batch * kv_heads, 1, q_len,
        slots), -1 for none; slots is top_k - initial - local, or fewer if there are fewer blocks.

        The weights are computed again from lse, a chunk of queries at a time.
        """
        own = position // self.block
        slots = min(
            self.top_k - self.initial - self.local, max(0, -(-kv_len // self.block) - self.initial - self.local)
        )
        keys = keys.detach()
        queries, lses = (grouped(x.detach(), keys.shape[1]) for x in (q, lse))
        if slots == 0:
            return none_chosen(queries[:, :1])
        transposed = keys.flatten(0, 1)[:, None].transpose(-1, -2).to(lse.dtype)
        window = torch.arange(keys.shape[2], device=q.device)
        ended = self._ended(position)

        def chosen(first: int, stop: int) -> Tensor:
            rows = slice(first, stop)
            known = window_count(kv_len - q.shape[2] + stop, self.compress_block, self.stride)
            with torch.autocast(q.device.type, enabled=False):
                scores = queries[:, :, rows].to(lse.dtype) @ transposed[..., :known] * scale
            unseen = window[:known] >= ended[rows, None]
            weights = (scores - lses[:, :, rows, None]).exp().masked_fill(unseen, 0.0)
            importance = block_importance(
                weights.sum(dim=1, keepdim=True), kv_len, self.block, self.compress_block, self.stride
            )
            block = torch.arange(importance.shape[-1], device=q.device)
            allowed = (block >= self.initial) & (block <= own[rows, None] - self.local)
            return choose(importance, allowed, slots)

        return by_chunks(chosen, q.shape[2], queries.shape[0] * queries.shape[1] * len(window))

    def areas(self, length: int) -> dict[str, int]:
        """Visible pairs of one head over a sequence of ``length`` in each branch, whatever is chosen."""
        return {
            "compressed": ended_windows(length, self.compress_block, self.stride),
            "selected": own_and_chosen(length, self.block, self.top_k),
            "window": (Causal() & SlidingWindow(self.window)).area(length, length),
        }

    def work(self, seq_len: int, heads: int, head_dim: int, value_dim: int | None = None) -> list[Work]:
        """Multiply-adds of the products over visible pairs of the three branches, and of choosing.

        Choosing computes the compressed branch's scores again, so only ``computed`` counts it. ``computed``
        takes the chosen blocks for whole tiles: where rows of two blocks share one, more is run.
        """
        per_pair = heads * (head_dim + (value_dim or head_dim))
        areas = self.areas(seq_len)
        position = torch.arange(seq_len)
        forced, window = (
            attention_work(pattern, seq_len, heads, head_dim, value_dim)
            for pattern in (self._forced(position), Causal() & SlidingWindow(self.window))
        )
        windows = window_count(seq_len, self.compress_block, self.stride)
        coarse = []
        if windows:
            pattern = self._seen_windows(position)
            coarse = [attention_work(pattern, windows, heads, head_dim, value_dim, q_len=seq_len)]
        needed = per_pair * sum(areas.values())
        pairs = seq_len * (windows + 2 * seq_len)
        computed = needed + sum(branch.computed - branch.needed for branch in (forced, window, *coarse))
        again = heads * head_dim * areas["compressed"]
        return [
            Work("scores", needed, per_pair * pairs, computed, window.computed_backward, scores=heads * pairs),
            Work("selection", 0, 0, again, computed_backward=0.0),
        ]


def native_sparse(
    q: Tensor,
    k: Tensor | tuple[Tensor, Tensor, Tensor],
    v: Tensor | tuple[Tensor, Tensor, Tensor],
    gates: Tensor,
    *,
    block: int = 64,
    top_k: int = 16,
    compress_block: int = 32,
    stride: int = 16,
    window: int = 512,
    initial: int = 1,
    local: int = 2,
    compress: Compress | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Causal attention to compressed keys, to chosen blocks and to a window, each with a softmax of its own.

    Shapes: q (batch, heads, q_len, head_dim); k (batch, kv_heads, kv_len, head_dim); v (batch, kv_heads,
    kv_len, value_dim); gates (batch, heads, q_len, 3) -> out (batch, heads, q_len, value_dim). Queries are the
    last q_len positions, keys all of them from position 0.

    out = gates[..., 0] * compressed + gates[..., 1] * selected + gates[..., 2] * window, where query i sees

    - compressed: window c of the keys c * stride <= j < c * stride + compress_block, compressed to one key
      and value, when its last key is at or before i; zeros while there is none;
    - selected: keys j <= i of ``top_k`` blocks: the first ``initial``, the ``local`` up to its own, and of
      those between the ones with the greatest importance, summed over the query heads that share a key head:
      they choose together. A block's importance is the compressed weight of the windows over it (equations 9
      and 10), from the compressed branch's keys. Choosing has no gradient; which of equal blocks wins is not
      defined;
    - window: the newest ``window`` keys, self included.

    Time grows with q_len * kv_len / stride, memory with q_len * top_k.

    Args:
        q: queries.
        k, v: keys and values: one tensor for all branches, or a tuple for (compressed, selected, window), as
            in the paper.
        gates: weights of the branches, in [0, 1]: the sigmoid is the caller's.
        block, top_k, compress_block, stride, window, initial, local: see :class:`NativeSparse`.
        compress: windows of keys and of values (batch, kv_heads, windows, compress_block, dim) -> the
            compressed ones (batch, kv_heads, windows, dim); their mean by default.
        scale, backend: as for :func:`toolkit.attention.attention`.

    Raises:
        ValueError: if a setting is out of its range or does not divide (see :class:`NativeSparse`), a shape
            does not fit, or what ``attention`` refuses.

    Source: Yuan et al. 2025, Native Sparse Attention (arXiv 2502.11089), equations 5 to 12.

    >>> q, k = torch.randn(1, 4, 100, 16), torch.randn(1, 2, 100, 16)
    >>> native_sparse(q, k, k, torch.rand(1, 4, 100, 3), block=16, top_k=4, compress_block=8, stride=4).shape
    torch.Size([1, 4, 100, 16])
    """
    settings = NativeSparse(block, top_k, compress_block, stride, window, initial, local)
    return settings.attend(q, k, v, gates, compress=compress, scale=scale, backend=backend)


def mean_of_windows(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Each window's mean: (batch, kv_heads, windows, compress_block, dim) -> (batch, kv_heads, windows, dim)."""
    return keys.mean(dim=3), values.mean(dim=3)


def _positions(q: Tensor, k: Tensor) -> Tensor:
    """(q_len,): the last of the keys'."""
    return torch.arange(k.shape[2] - q.shape[2], k.shape[2], device=q.device)


def _three(name: str, x: Tensor | tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """One for each branch."""
    if isinstance(x, Tensor):
        return x, x, x
    require(len(x) == 3, name, f"{len(x)} tensors", f"one tensor, or three: {', '.join(BRANCHES)}")
    shapes = [tuple(one.shape) for one in x]
    require(len(set(shapes)) == 1, f"{name} shapes", shapes, "the same for every branch")
    return x
