"""Self-attention over a pattern, with grouped queries and rotary positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.attention import Causal, KeyValueCache, Pattern, attention
from toolkit.attention.cache import Segment
from toolkit.attention.selection import MoBA, NativeSparse
from toolkit.checks import require, require_positive
from toolkit.layers.attending import OverBranches, OverChosenBlocks, OverPattern, Sparsity
from toolkit.layers.global_rows import WithGlobalRows
from toolkit.layers.packed_sequences import Sequences
from toolkit.layers.rotary import RotaryEmbedding
from toolkit.work import Work


class SelfAttention(nn.Module):
    """Projects to queries, keys and values, rotates, attends where ``pattern`` sees, projects back.

    Parameters: qkv_proj ((heads + 2 * key_heads) * head_dim, dim), queries' rows first, then keys', then
    values', where key_heads is kv_heads (three times that for native sparse attention with ``separate_kv``);
    o_proj (dim, heads * head_dim); with ``qk_norm`` q_norm.weight and k_norm.weight (head_dim,); with
    ``sinks`` sink_logits (heads,); under ``core`` what the pattern itself learns. No biases.

    Args:
        dim: width of a token.
        heads: query heads.
        kv_heads: key and value heads; ``heads`` by default. Query head h uses key head
            h // (heads / kv_heads).
        head_dim: width of one head; dim / heads by default.
        pattern: which keys each query sees: a pattern (``Causal()`` by default), or ``MoBA(...)`` or
            ``NativeSparse(...)``, which choose by content.
        rope: rotary embedding; None for no position information. Where its scaling depends on the length (dynamic NTK,
            LongRoPE), a cache keeps keys as they are and all of them are rotated anew in every call, since a longer
            context turns them by other angles. Scores are times its ``softmax_scale_multiplier``.
        qk_norm: normalise every head's queries and keys by their root mean square before they are
            rotated (Henry et al. 2020, arXiv 2010.04245; as in Qwen 3).
        softcap: scores become softcap * tanh(score / softcap).
        sinks: give each head a learned logit that joins the softmax's denominator (gpt-oss).
        dropout_p: chance that an attention weight is dropped in training.
        global_projections: give the rows of the pattern's ``GlobalTokens`` projections of their own
            (Longformer); such a layer takes whole sequences only, no cache.
        attend: the function that computes the attention, :func:`toolkit.attention.attention` by
            default: the seam where a parallel or counting form is put in.

    Attributes:
        first_head: number of the first query head among all of the layer's: above 0 where a process has some of them,
            and then also the sizes ``heads``, ``kv_heads`` and ``key_heads`` are its own.
        shared_seed: what draws dropout's seed on a device, where several processes must drop the same weights; None:
            ``attend`` does.

    Raises:
        ValueError: if a size is not positive, ``heads`` is no multiple of ``kv_heads``, ``dim`` no multiple
            of ``heads`` where head_dim is not given, or a setting does not go with the pattern.
    """

    kind = "attention"

    def __init__(
        self,
        dim: int,
        heads: int,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        pattern: Sparsity | None = None,
        rope: RotaryEmbedding | None = None,
        *,
        qk_norm: bool = False,
        softcap: float | None = None,
        sinks: bool = False,
        dropout_p: float = 0.0,
        global_projections: bool = False,
        attend: Callable[..., Any] = attention,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        require_positive(dim=dim, heads=heads, kv_heads=kv_heads)
        require(heads % kv_heads == 0, "heads", heads, f"a multiple of kv_heads={kv_heads}")
        if head_dim is None:
            require(dim % heads == 0, "heads", heads, f"a divisor of dim={dim} when head_dim is not given")
            head_dim = dim // heads
        require_positive(head_dim=head_dim)
        require(softcap is None or softcap > 0, "softcap", softcap, "positive, or None for none")
        require(0.0 <= dropout_p < 1.0, "dropout_p", dropout_p, "at least 0 and below 1")
        if rope is not None:
            require(rope.head_dim == head_dim, "rope.head_dim", rope.head_dim, f"head_dim={head_dim}")
            fits = not (global_projections and rope.depends_on_length)
            require(fits, "rope.scaling", rope.scaling, "one that no length changes, with global_projections")
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.pattern = Causal() if pattern is None else pattern
        self.rope, self.attend = rope, attend
        self.softcap, self.dropout_p = softcap, dropout_p
        self.first_head = 0
        self.shared_seed: Callable[[torch.device], Tensor] | None = None
        self.key_heads = kv_heads * (3 if isinstance(pattern, NativeSparse) and pattern.separate_kv else 1)
        self.qkv_proj = nn.Parameter(torch.empty((heads + 2 * self.key_heads) * head_dim, dim))
        self.o_proj = nn.Parameter(torch.empty(dim, heads * head_dim))
        self.q_norm, self.k_norm = (nn.RMSNorm(head_dim, eps=1e-6) if qk_norm else None for _ in range(2))
        self.sink_logits = nn.Parameter(torch.empty(heads)) if sinks else None
        self.core = self._core(dim, global_projections)
        self.reset_parameters()

    def _core(self, dim: int, global_projections: bool) -> nn.Module:
        """What attends, by the kind of pattern."""
        pattern, shape = self.pattern, (self.heads, self.kv_heads, self.head_dim)
        if isinstance(pattern, Pattern):
            if global_projections:
                return WithGlobalRows(pattern, dim, *shape, finish=self._finish)
            return OverPattern(pattern, self.heads, self.head_dim)
        require(not global_projections, "global_projections", True, f"False: {pattern} has no global tokens")
        require(self.dropout_p == 0, "dropout_p", self.dropout_p, f"0 with {pattern}")
        if isinstance(pattern, MoBA):
            return OverChosenBlocks(pattern, self.heads, self.head_dim)
        scored = self.softcap is None and self.sink_logits is None
        require(scored, "softcap and sinks", (self.softcap, self.sink_logits is not None), f"unset with {pattern}")
        return OverBranches(pattern, dim, *shape)

    def reset_parameters(self) -> None:
        """Every matrix normal with standard deviation fan_in ** -0.5; norms 1, sink logits 0."""
        for weight in (self.qkv_proj, self.o_proj):
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        for norm in (self.q_norm, self.k_norm):
            if norm is not None:
                norm.reset_parameters()
        if self.sink_logits is not None:
            nn.init.zeros_(self.sink_logits)

    def forward(
        self,
        x: Tensor,
        cache: KeyValueCache | None = None,
        layer: int = 0,
        sequences: Sequences | None = None,
    ) -> Tensor:
        """x (batch, length, dim) -> (batch, length, dim).

        With a ``cache``, x is the next ``length`` tokens: they see those already in it, and are added
        to it under ``layer``. Of ``sequences`` the rotary embedding turns by the ``positions``, where they are not the
        next ones, of which the pattern knows nothing; and attention stays within each of the ``documents``, in which
        the pattern's positions restart. Padding gets zeros before o_proj.

        Raises:
            ValueError: if the cache has forgotten a position that the pattern sees, ``positions`` are given to a
                layer with projections of their own for global tokens, or ``documents`` to such a layer, to one that
                chooses keys by content, or beside a cache.
        """
        sequences = Sequences() if sequences is None else sequences
        self._check(x, cache, sequences)
        positions, documents, length = sequences.positions, sequences.documents, x.shape[1]
        if positions is not None:
            positions = rearrange(positions, "b n -> b 1 n")  # the same for every head
        elif cache is not None and cache.length(layer):
            length += cache.length(layer)
            positions = torch.arange(length - x.shape[1], length, device=x.device)
        if self.rope is not None and positions is not None and sequences.positions is None:
            self.rope.require_room(length)  # on a GPU positions' values are not looked at
        # Angles that the length changes: the cache keeps keys as they are, and those it holds are rotated below.
        later = cache is not None and self.rope is not None and self.rope.depends_on_length
        q, k, v = self._project(x, positions, length, keys=not later)
        segments = (Segment(k, v, 0),) if cache is None else cache.append(layer, k, v)
        if later:
            segments = tuple(self._rotated(segment, length) for segment in segments)
        kept_apart = {} if documents is None else {"documents": documents}
        out = self.core(x, q, segments, self.attend, **kept_apart, **self._scoring(), **self._dropout(x.device))
        return F.linear(rearrange(out, "b h n d -> b n (h d)"), self.o_proj)

    def _check(self, x: Tensor, cache: KeyValueCache | None, sequences: Sequences) -> None:
        """Refuse what this layer cannot do with ``sequences``, before a cache is changed."""
        sequences.require_fit(x)
        if sequences.documents is not None:
            shape = tuple(x.shape[:2])
            require(cache is None, sequences.named, shape, "None with a cache, whose rows hold one sequence each")
            why = "global_projections" if isinstance(self.core, WithGlobalRows) else f"{self.pattern}"
            require(isinstance(self.core, OverPattern), sequences.named, shape, f"None with {why}: it sees whole rows")
        if sequences.positions is not None:
            able = not isinstance(self.core, WithGlobalRows)
            require(able, "positions", tuple(sequences.positions.shape), "None with global_projections")
            able = self.rope is None or not self.rope.depends_on_length
            right = "one that no length changes, with padding, packed documents or chosen tokens"
            require(able, "rope.scaling", None if self.rope is None else self.rope.scaling, right)

    def _project(self, x: Tensor, positions: Tensor | None, length: int, keys: bool) -> tuple[Tensor, Tensor, Tensor]:
        """x (batch, new, dim) at ``positions`` -> q (batch, heads, new, head_dim), k, v (key_heads).

        Queries are rotated, and keys if ``keys``, by the angles at the current ``length``.
        """
        qkv = rearrange(F.linear(x, self.qkv_proj), "b n (h d) -> b h n d", d=self.head_dim)
        sizes = [self.heads, self.key_heads, self.key_heads]
        if self.q_norm is not None:
            q, k, v = qkv.split(sizes, dim=1)
            # One tensor again: a view of v alone would keep queries and keys of before alive with it.
            qkv = torch.cat([self._normed(q, True), self._normed(k, False), v], dim=1)
        if self.rope is not None:
            rotated = self.heads + (self.key_heads if keys else 0)
            qkv = self.rope.rotate(qkv, positions, length, heads=rotated)
        q, k, v = qkv.split(sizes, dim=1)
        return q, k, v

    def _rotated(self, segment: Segment, length: int) -> Segment:
        """The same with its keys rotated by the angles at the current ``length``."""
        assert self.rope is not None
        positions = torch.arange(segment.start, segment.stop, device=segment.k.device)
        return replace(segment, k=self.rope.rotate(segment.k, positions, length))

    def _normed(self, x: Tensor, queries: bool) -> Tensor:
        """Queries or keys (batch, heads, length, head_dim), normalised where there is QK-norm."""
        norm = self.q_norm if queries else self.k_norm
        # under autocast the weight is cast as a product's would be
        return x if norm is None else F.rms_norm(x, (self.head_dim,), norm.weight.to(x.dtype), norm.eps)

    def _finish(self, x: Tensor, positions: Tensor | None, queries: bool) -> Tensor:
        """Queries or keys (batch, heads, length, head_dim) normalised and rotated; positions 0, 1, ... if None."""
        x = self._normed(x, queries)
        return x if self.rope is None else self.rope.rotate(x, positions)

    def _scoring(self) -> dict[str, Any]:
        """The settings of ``attend`` that are not its defaults."""
        multiplier = 1.0 if self.rope is None else self.rope.softmax_scale_multiplier
        settings = {
            "scale": None if multiplier == 1.0 else multiplier * self.head_dim**-0.5,
            "softcap": self.softcap,
            "sink_logits": self.sink_logits,
        }
        return {name: value for name, value in settings.items() if value is not None}

    def _dropout(self, device: torch.device) -> dict[str, Any]:
        """The settings of ``attend`` that say which weights are dropped."""
        if not (self.training and self.dropout_p):
            return {}
        settings: dict[str, Any] = {"dropout_p": self.dropout_p}
        if self.first_head:
            settings["first_head"] = self.first_head
        if self.shared_seed is not None:
            settings["dropout_seed"] = self.shared_seed(device)
        return settings

    def work(self, seq_len: int) -> list[Work]:
        """The projections, and what attends."""
        projections = Work.dense("attention", seq_len * (self.qkv_proj.numel() + self.o_proj.numel()))
        return [projections, *self.core.work(seq_len)]  # type: ignore[operator]

    def extra_repr(self) -> str:
        """Settings, for ``print(model)``."""
        return f"heads={self.heads}, kv_heads={self.kv_heads}, head_dim={self.head_dim}, pattern={self.pattern}"
