"""Rotary position embedding: queries and keys are turned by angles that grow with position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from toolkit.checks import require, require_positive
from toolkit.layers.rotary.apply import rotate_pairs
from toolkit.layers.rotary.hugging_face import rotary_settings
from toolkit.layers.rotary.positions import per_row
from toolkit.layers.rotary.scaling import RotaryScaling, unscaled
from toolkit.layers.rotary.scaling.interface import LARGEST, is_number


class RotaryEmbedding(nn.Module):
    """Rotates pair k of every head's d rotary dims by position * base ** (-2k / d), or what ``scaling`` makes of it.

    Frequencies are computed in fp32 whatever the model's dtype, angles, cos and sin too (fp64 for fp64 inputs), and
    the module holds no parameter or buffer that a cast could touch.

    Args:
        head_dim: width of one head.
        base: theta of the paper.
        scaling: the law that stretches it to longer contexts; None for none.
        fraction: the first d = int(head_dim * fraction) dims of each head are rotated, the others pass (GPT-NeoX).
        interleaved: pairs are (2k, 2k + 1), as in GPT-J, Meta's Llama and DeepSeek; by default (k, k + d / 2), as in
            GPT-NeoX and transformers. :func:`to_interleaved` and its inverse carry weights over.
        max_position: the largest position that may be asked for; None for no limit. Where positions are given, it is
            checked on the CPU only.
        softmax_scale_multiplier: what an attention that uses this embedding multiplies its 1 / sqrt(head_dim) by;
            nothing here is multiplied by it (DeepSeek with YaRN, :attr:`YaRNScaling.softmax_scale_multiplier`).

    Raises:
        ValueError: if a number is not positive, the rotated dims are odd or none, ``fraction`` is above 1, or the
            scaling does not go with these sizes.

    Source: Su et al. 2021, RoFormer (arXiv 2104.09864), equation 34.
    """

    def __init__(
        self,
        head_dim: int,
        base: float = 10_000.0,
        scaling: RotaryScaling | None = None,
        fraction: float = 1.0,
        interleaved: bool = False,
        max_position: int | None = None,
        *,
        softmax_scale_multiplier: float = 1.0,
    ) -> None:
        super().__init__()
        require_positive(head_dim=head_dim)
        for name, value in (("base", base), ("softmax_scale_multiplier", softmax_scale_multiplier)):
            fits = is_number(value) and value >= 1 / LARGEST
            require(fits, name, value, f"a number from {1 / LARGEST:g} to {LARGEST:g}")
        require(0 < fraction <= 1, "fraction", fraction, "above 0 and at most 1")
        right = "a scaling such as YaRNScaling(factor=4, original_length=256), or None; parse_scaling reads text"
        require(scaling is None or isinstance(scaling, RotaryScaling), "scaling", scaling, right)
        require(max_position is None or max_position >= 0, "max_position", max_position, "0 or more, or None")
        self.head_dim, self.base, self.scaling, self.fraction = head_dim, base, scaling, fraction
        self.interleaved, self.max_position = interleaved, max_position
        self.softmax_scale_multiplier = softmax_scale_multiplier
        self.rotary_dim = _rotary_dim(head_dim, fraction)
        if scaling is not None:
            scaling.check(self.rotary_dim, head_dim, base)
        self._table: tuple[object, Tensor, Tensor] | None = None

    @classmethod
    def from_hf(cls, config: Any, layer_type: str | None = None) -> RotaryEmbedding:
        """The embedding that a Hugging Face config (an object, or ``config.json`` as a dict) describes.

        Reads ``rope_parameters`` (transformers 5) or ``rope_scaling`` and ``rope_theta`` (before). Where layers
        differ (Gemma 3 and 4) ``layer_type`` says which, such as ``"sliding_attention"``. For multi-head latent
        attention (DeepSeek) it is over the dims that are rotated, qk_rope_head_dim, alone.

        Raises:
            ValueError: naming the field that is missing, of an unknown or multimodal kind, or not what it must be; or
                the ``model_type`` whose rotary embedding is of several axes, or another than these.
        """
        return cls(**rotary_settings(config, layer_type))

    @property
    def depends_on_length(self) -> bool:
        """Whether all frequencies change with the current length: keys cached in rotated form would go stale."""
        return self.scaling is not None and self.scaling.depends_on_length

    def frequencies(self, seq_len: int, device: torch.device | None = None) -> tuple[Tensor, float]:
        """inv_freq fp32, radians per position, and the factor of both cos and sin, at a length of ``seq_len`` tokens.

        inv_freq is (rotary_dim / 2,).
        """
        require(seq_len >= 0, "seq_len", seq_len, "0 tokens or more")
        if self.scaling is None:
            return unscaled(self.rotary_dim, self.base, device), 1.0
        return self.scaling.frequencies(self.rotary_dim, self.head_dim, self.base, seq_len, device)

    def forward(
        self, q: Tensor, k: Tensor, positions: Tensor | None = None, seq_len: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """q (batch, heads, length, head_dim), k (batch, kv_heads, length, head_dim) -> the same, rotated.

        See :meth:`rotate`; angles are computed once for both.

        Raises:
            ValueError: as :meth:`rotate`, and if k differs from q by more than its heads.
        """
        fits = (k.shape[0], *k.shape[2:]) == (q.shape[0], *q.shape[2:])
        require(fits, "k.shape", tuple(k.shape), f"q's {tuple(q.shape)} but for the heads")
        cos, sin = self._table_for(q, positions, seq_len)
        return rotate_pairs(q, cos, sin, self.interleaved), rotate_pairs(k, cos, sin, self.interleaved)

    def rotate(
        self, x: Tensor, positions: Tensor | None = None, seq_len: int | None = None, heads: int | None = None
    ) -> Tensor:
        """x (batch, heads, length, head_dim) -> rotated, a new tensor in x's dtype.

        Args:
            x: queries or keys.
            positions: int64 (length,), or (batch, length) or (batch, 1, length) for each row its own; 0 to
                length - 1 by default. Their values are checked on the CPU only, and not under ``torch.compile``.
            seq_len: the current length, tokens: what a scaling that depends on it takes. The length of x by default;
                to be given with ``positions`` where :attr:`depends_on_length`.
            heads: only the first so many are rotated, such as queries and keys where x holds the values too.

        Raises:
            ValueError: if x has another head_dim, ``positions`` another dtype or shape or a value below 0 or above
                ``max_position``, or ``seq_len`` is missing where it is needed, or below the length of x.
        """
        return rotate_pairs(x, *self._table_for(x, positions, seq_len), self.interleaved, heads)

    def _table_for(self, x: Tensor, positions: Tensor | None, seq_len: int | None) -> tuple[Tensor, Tensor]:
        """cos and sin (batch or 1, length, rotary_dim / 2) for x."""
        fits = x.ndim == 4 and x.shape[-1] == self.head_dim
        require(fits, "x.shape", tuple(x.shape), f"(batch, heads, length, head_dim={self.head_dim})")
        enough = seq_len is None or seq_len >= x.shape[2]
        require(enough, "seq_len", seq_len, f"at least the length={x.shape[2]} of x")
        return self._default_table(x, seq_len) if positions is None else self._table_at(x, positions, seq_len)

    def require_room(self, length: int) -> None:
        """Refuse a context of more tokens than ``max_position`` lets there be.

        Raises:
            ValueError: naming the length.
        """
        within = self.max_position is None or length <= self.max_position + 1
        require(within, "length", length, f"at most max_position + 1, with max_position={self.max_position}")

    def _table_at(self, x: Tensor, positions: Tensor, seq_len: int | None) -> tuple[Tensor, Tensor]:
        """(batch or 1, length, rotary_dim / 2) each, for given positions."""
        right = f"the current length in tokens: with positions given, {self.scaling} cannot know it"
        require(seq_len is not None or not self.depends_on_length, "seq_len", seq_len, right)
        within = seq_len - 1 if seq_len is not None and self.depends_on_length else None
        positions = per_row(positions, x.shape[0], x.shape[2], self.max_position, within)
        return self._cos_sin(x, positions, x.shape[2] if seq_len is None else seq_len)

    def _default_table(self, x: Tensor, seq_len: int | None) -> tuple[Tensor, Tensor]:
        """(1, length, rotary_dim / 2) each, for positions 0 to length - 1; kept for the next call."""
        length = x.shape[2]
        seq_len = length if seq_len is None else seq_len
        self.require_room(length)
        if torch.compiler.is_compiling():  # the output of one graph is not held for another
            return self._cos_sin(x, torch.arange(length, device=x.device)[None], seq_len)
        settings = self.base, self.scaling, self.rotary_dim
        key = (length, seq_len if self.depends_on_length else None, _table_dtype(x), x.device, settings)
        if self._table is not None and self._table[0] == key:
            return self._table[1], self._table[2]
        with torch.inference_mode(False):  # a table made while evaluating must still serve training
            cos, sin = self._cos_sin(x, torch.arange(length, device=x.device)[None], seq_len)
        if type(cos) is Tensor:  # one of a tracer's stands for no numbers
            self._table = (key, cos, sin)
        return cos, sin

    @torch.no_grad()
    def _cos_sin(self, x: Tensor, positions: Tensor, seq_len: int) -> tuple[Tensor, Tensor]:
        """(batch or 1, length, rotary_dim / 2) each, at positions (batch or 1, length), in the dtype for x."""
        inv_freq, factor = self.frequencies(seq_len, x.device)
        dtype = _table_dtype(x)
        angles = positions.to(dtype)[..., None] * inv_freq.to(dtype)
        return angles.cos() * factor, angles.sin() * factor

    def __getstate__(self) -> dict[str, Any]:
        """Without the table, which is made again."""
        return {**self.__dict__, "_table": None}

    def extra_repr(self) -> str:
        """Settings, for ``print(model)``."""
        always = f"head_dim={self.head_dim}, base={self.base:g}"
        defaults = {
            "scaling": None,
            "fraction": 1.0,
            "interleaved": False,
            "max_position": None,
            "softmax_scale_multiplier": 1.0,
        }
        held = [(name, getattr(self, name), default) for name, default in defaults.items()]
        return ", ".join([always, *(f"{name}={value!r}" for name, value, default in held if value != default)])


def _rotary_dim(head_dim: int, fraction: float) -> int:
    rotary_dim = int(head_dim * fraction)
    if fraction == 1:
        require(rotary_dim % 2 == 0, "head_dim", head_dim, "even: dimensions are rotated in pairs")
    right = f"such that int(head_dim * fraction)={rotary_dim} is even and above 0: dimensions are rotated in pairs"
    require(rotary_dim > 0 and rotary_dim % 2 == 0, "fraction", fraction, right)
    return rotary_dim


def _table_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
