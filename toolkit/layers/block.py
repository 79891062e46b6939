"""One decoder layer: attention and feed-forward, each normalised before and added after."""

from __future__ import annotations

from torch import Tensor, nn

from toolkit.attention import KeyValueCache
from toolkit.layers.moe import MoE
from toolkit.layers.packed_sequences import Sequences
from toolkit.layers.self_attention import SelfAttention
from toolkit.work import Work


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)): the pre-norm residual layer.

    Args:
        dim: width of a token.
        attention: maps (batch, length, dim) to the same shape.
        feed_forward: maps (..., dim) to the same shape: a ``SwiGLU`` or a ``MoE``.
        norm_eps: added to the mean square before its root.

    Source: Xiong et al. 2020 (arXiv 2002.04745); RMSNorm: Zhang and Sennrich 2019 (arXiv 1910.07467).
    """

    def __init__(self, dim: int, attention: SelfAttention, feed_forward: nn.Module, norm_eps: float = 1e-6) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(dim, eps=norm_eps)
        self.attention = attention
        self.feed_forward_norm = nn.RMSNorm(dim, eps=norm_eps)
        self.feed_forward = feed_forward

    def forward(
        self,
        x: Tensor,
        cache: KeyValueCache | None = None,
        layer: int = 0,
        sequences: Sequences | None = None,
    ) -> Tensor:
        """x (batch, length, dim) -> (batch, length, dim).

        Args:
            x: the tokens.
            cache, layer: see :meth:`SelfAttention.forward`.
            sequences: padding, packed documents, positions and token ids: what attention and a MoE ask for of them.

        Raises:
            ValueError: as ``SelfAttention`` does.
        """
        sequences = Sequences() if sequences is None else sequences
        x = x + self.attention(self.attention_norm(x), cache, layer, sequences)
        told = sequences.routed if isinstance(self.feed_forward, MoE) else {}
        y: Tensor = x + self.feed_forward(self.feed_forward_norm(x), **told)
        return y

    def work(self, seq_len: int) -> list[Work]:
        """The attention's and the feed-forward's."""
        feed_forward: list[Work] = self.feed_forward.work(seq_len)  # type: ignore[operator]  # it is any module
        return [*self.attention.work(seq_len), *feed_forward]
