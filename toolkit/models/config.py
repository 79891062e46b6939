"""A decoder as nested dataclasses: one ``BlockConfig`` a layer, so that any layer may differ."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from toolkit.attention.selection import NativeSparse, parse_sparsity
from toolkit.checks import require, require_positive


@dataclass(frozen=True)
class AttentionConfig:
    """Settings of one layer's :class:`toolkit.layers.SelfAttention`.

    Attributes:
        heads: query heads.
        kv_heads: key and value heads, a divisor of ``heads``; None for as many.
        head_dim: width of one head; None for dim / heads.
        pattern: which keys each query sees, as text: ``"Causal() & SlidingWindow(512)"``, or
            ``"MoBA(block=64, top_k=4)"``, ``"NativeSparse(...)"``.
        rope_base: theta of the rotary embedding; None for no position information.
        qk_norm: normalise queries and keys.
        softcap: bend of the scores; None for none.
        sinks: a learned sink logit for each head.
        dropout_p: chance that an attention weight is dropped in training.
        global_projections: projections of their own for the rows of the pattern's ``GlobalTokens``.

    Raises:
        ValueError: if a setting is out of its range, heads do not fit together or the pattern is not understood.
    """

    heads: int = 1
    kv_heads: int | None = None
    head_dim: int | None = None
    pattern: str = "Causal()"
    rope_base: float | None = 10_000.0
    qk_norm: bool = False
    softcap: float | None = None
    sinks: bool = False
    dropout_p: float = 0.0
    global_projections: bool = False

    def __post_init__(self) -> None:
        require_positive(heads=self.heads)
        for name in ("kv_heads", "head_dim", "rope_base", "softcap"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "positive, or None")
        kv_heads = self.kv_heads or self.heads
        require(self.heads % kv_heads == 0, "heads", self.heads, f"a multiple of kv_heads={kv_heads}")
        require(0 <= self.dropout_p < 1, "dropout_p", self.dropout_p, "at least 0 and below 1")
        parse_sparsity(self.pattern)

    @property
    def key_heads(self) -> int:
        """Heads of the keys, and of the values: three sets of them where each branch has its own."""
        sparsity, kv_heads = parse_sparsity(self.pattern), self.kv_heads or self.heads
        return kv_heads * (3 if isinstance(sparsity, NativeSparse) and sparsity.separate_kv else 1)


@dataclass(frozen=True)
class FeedForwardConfig:
    """A dense SwiGLU of width ``hidden_dim``."""

    hidden_dim: int

    def __post_init__(self) -> None:
        require_positive(hidden_dim=self.hidden_dim)


@dataclass(frozen=True)
class MoEConfig:
    """Settings of one layer's :class:`toolkit.layers.MoE`.

    Attributes:
        hidden_dim: width inside one expert.
        num_experts: routed experts.
        top_k: routed experts per token.
        shared_experts: experts that every token uses besides.
        balance: coefficient of the load-balancing loss; 0 for none.
        z_loss: coefficient of the router z-loss; 0 for none.

    Raises:
        ValueError: if a size is not positive, or ``top_k`` exceeds ``num_experts``.
    """

    hidden_dim: int
    num_experts: int
    top_k: int
    shared_experts: int = 0
    balance: float = 0.01
    z_loss: float = 0.001

    def __post_init__(self) -> None:
        require_positive(hidden_dim=self.hidden_dim, num_experts=self.num_experts, top_k=self.top_k)
        require(self.top_k <= self.num_experts, "top_k", self.top_k, f"at most num_experts={self.num_experts}")
        for name in ("shared_experts", "balance", "z_loss"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")


@dataclass(frozen=True)
class BlockConfig:
    """One layer: its attention, and a dense or a sparse feed-forward."""

    attention: AttentionConfig
    feed_forward: FeedForwardConfig | MoEConfig


@dataclass(frozen=True)
class DecoderConfig:
    """A whole decoder.

    Attributes:
        vocab_size: rows of the embedding.
        dim: width of a token.
        blocks: the layers, first to last.
        tied_head: the output head is the embedding's matrix.
        norm_eps: epsilon of every RMSNorm.

    Raises:
        ValueError: if a size is not positive, there is no layer, or a layer's heads do not divide
            ``dim`` where its head_dim is not given.

    >>> block = BlockConfig(AttentionConfig(heads=2), MoEConfig(hidden_dim=64, num_experts=8, top_k=2))
    >>> config = DecoderConfig(vocab_size=256, dim=32, blocks=(block,) * 2)
    >>> DecoderConfig.from_dict(config.to_dict()) == config
    True
    """

    vocab_size: int
    dim: int
    blocks: tuple[BlockConfig, ...]
    tied_head: bool = True
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        require_positive(vocab_size=self.vocab_size, dim=self.dim, norm_eps=self.norm_eps)
        require(len(self.blocks) > 0, "blocks", self.blocks, "at least one layer")
        for attention in {block.attention for block in self.blocks}:
            fits = attention.head_dim is not None or self.dim % attention.heads == 0
            require(fits, "heads", attention.heads, f"a divisor of dim={self.dim} when head_dim is not given")

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, for a run's folder."""
        return {**asdict(self), "blocks": [asdict(block) for block in self.blocks]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DecoderConfig:
        """The inverse of :meth:`to_dict`; a block with ``num_experts`` is a MoE.

        Raises:
            ValueError: naming a setting that is missing or unknown.
        """
        try:
            return cls(**{**values, "blocks": tuple(_block(block) for block in values["blocks"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"config={values!r}: it must be what to_dict() gives ({error})") from None


def _block(values: dict[str, Any]) -> BlockConfig:
    feed_forward = values["feed_forward"]
    kind = MoEConfig if "num_experts" in feed_forward else FeedForwardConfig
    return BlockConfig(AttentionConfig(**values["attention"]), kind(**feed_forward))
