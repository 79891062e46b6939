"""A decoder as nested dataclasses: one ``BlockConfig`` a layer, so that any layer may differ."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from toolkit.attention.selection import NativeSparse, parse_sparsity
from toolkit.checks import require, require_choice, require_positive
from toolkit.layers.experts import ACTIVATIONS
from toolkit.layers.rotary import RotaryEmbedding, parse_scaling


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
        rope_scaling: how it is stretched to longer contexts, as text: ``"YaRNScaling(factor=4, original_length=256)"``;
            None for not at all.
        rope_fraction: share of a head's dims that are rotated.
        rope_interleaved: pairs are (2k, 2k + 1) instead of (k, k + d / 2).
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
    rope_scaling: str | None = None
    rope_fraction: float = 1.0
    rope_interleaved: bool = False
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
        if self.rope_scaling is not None:
            parse_scaling(self.rope_scaling)
        if self.rope_base is None:
            for name, default in (("rope_scaling", None), ("rope_fraction", 1.0), ("rope_interleaved", False)):
                value = getattr(self, name)
                require(value == default, name, value, f"{default} with rope_base=None: there is nothing to rotate")

    def rope(self, dim: int) -> RotaryEmbedding | None:
        """The rotary embedding of heads of tokens of width ``dim``; None for no position information.

        Raises:
            ValueError: if its settings do not fit a head.
        """
        if self.rope_base is None:
            return None
        scaling = None if self.rope_scaling is None else parse_scaling(self.rope_scaling)
        head_dim = self.head_dim or dim // self.heads
        return RotaryEmbedding(head_dim, self.rope_base, scaling, self.rope_fraction, self.rope_interleaved)

    @property
    def key_heads(self) -> int:
        """Heads of the keys, and of the values: three sets of them where each branch has its own."""
        sparsity, kv_heads = parse_sparsity(self.pattern), self.kv_heads or self.heads
        return kv_heads * (3 if isinstance(sparsity, NativeSparse) and sparsity.separate_kv else 1)


@dataclass(frozen=True)
class FeedForwardConfig:
    """Settings of one layer's dense :class:`toolkit.layers.FeedForward`.

    Attributes:
        hidden_dim: width inside.
        activation: ``"swiglu"``, ``"clamped_swiglu"``, ``"gelu"`` or ``"relu2"``.
        bias: biases in both projections.

    Raises:
        ValueError: if ``hidden_dim`` is not positive or the activation unknown.
    """

    hidden_dim: int
    activation: str = "swiglu"
    bias: bool = False

    def __post_init__(self) -> None:
        require_positive(hidden_dim=self.hidden_dim)
        require_choice("activation", self.activation, ACTIVATIONS)


@dataclass(frozen=True)
class MoEConfig:
    """Settings of one layer's :class:`toolkit.layers.MoE`.

    Attributes:
        hidden_dim: width inside one expert.
        num_experts: routed experts.
        top_k: routed experts per token.
        shared_experts: experts that every token uses besides.
        balance: coefficient of the load-balancing loss of the default router; 0 for none.
        z_loss: coefficient of the router z-loss of the default router; 0 for none.
        router: the router as text, ``"TopKRouter(score='sigmoid', balancer=BiasBalancer())"``; see
            :func:`toolkit.routing.build_router`. None: a top-k router with the two losses above.
        capacity_factor, drop_policy: what an expert takes in training; None: dropless.
        adjust: further adjustments as text, ``("TokenRounding(64)",)``.
        identity_experts, zero_experts, constant_experts: experts without computation.
        shared_gate: a gate on the shared experts.
        activation, bias, recompute: of the experts.
        causal: refuse a router whose evaluation reads later tokens.

    Raises:
        ValueError: if a size is not positive, ``top_k`` exceeds the experts there are, a choice is unknown, or
            ``balance`` or ``z_loss`` stands beside a ``router`` that names its losses itself.
    """

    hidden_dim: int
    num_experts: int
    top_k: int
    shared_experts: int = 0
    balance: float = 0.01
    z_loss: float = 0.001
    router: str | None = None
    capacity_factor: float | None = None
    drop_policy: str = "probability"
    adjust: tuple[str, ...] = ()
    identity_experts: int = 0
    zero_experts: int = 0
    constant_experts: int = 0
    shared_gate: bool = False
    activation: str = "swiglu"
    bias: bool = False
    recompute: bool = False
    causal: bool = True

    def __post_init__(self) -> None:
        require_positive(hidden_dim=self.hidden_dim, num_experts=self.num_experts, top_k=self.top_k)
        names = ("shared_experts", "balance", "z_loss", "identity_experts", "zero_experts", "constant_experts")
        for name in names:
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        require(self.top_k <= self.choices, "top_k", self.top_k, f"at most num_experts={self.choices}")
        require_choice("activation", self.activation, ACTIVATIONS)
        for name in ("balance", "z_loss"):
            default = getattr(type(self), name)
            fits = self.router is None or getattr(self, name) == default
            require(fits, name, getattr(self, name), f"left at {default} where router= names its own losses")

    @property
    def choices(self) -> int:
        """What a router chooses among: routed experts and those without computation."""
        return self.num_experts + self.identity_experts + self.zero_experts + self.constant_experts


@dataclass(frozen=True)
class BlockConfig:
    """One layer: its attention, and a dense or a sparse feed-forward.

    Attributes:
        attention: which tokens see which.
        feed_forward: what each token goes through.
        depth_capacity: share of a sequence's tokens that the layer computes in training
            (:class:`toolkit.layers.MixtureOfDepths`); None for a layer that computes them all.

    Raises:
        ValueError: if ``depth_capacity`` is not above 0 and at most 1, or beside a ``rope_scaling`` that depends on the
            length.
    """

    attention: AttentionConfig
    feed_forward: FeedForwardConfig | MoEConfig
    depth_capacity: float | None = None

    def __post_init__(self) -> None:
        capacity = self.depth_capacity
        require(capacity is None or 0 < capacity <= 1, "depth_capacity", capacity, "above 0 and at most 1, or None")
        scaling = self.attention.rope_scaling
        fits = capacity is None or scaling is None or not parse_scaling(scaling).depends_on_length
        require(fits, "rope_scaling", scaling, "one that no length changes, with depth_capacity")


@dataclass(frozen=True)
class DecoderConfig:
    """A whole decoder.

    Attributes:
        vocab_size: rows of the embedding.
        dim: width of a token.
        blocks: the layers, first to last.
        tied_head: the output head is the embedding's matrix.
        norm_eps: epsilon of every RMSNorm.
        mup_base_dim: the width at which a learning rate was found that is to be used at this one, by the maximal update
            parametrisation (:mod:`toolkit.models.mup`): initialisation, rates and the logits' multiplier follow from
            it. None: the standard initialisation, one rate and no multiplier, as also where it is ``dim``.

    Raises:
        ValueError: if a size is not positive, there is no layer, or a layer's heads do not divide
            ``dim`` where its head_dim is not given, or its rotary settings do not fit a head.

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
    mup_base_dim: int | None = None

    def __post_init__(self) -> None:
        require_positive(vocab_size=self.vocab_size, dim=self.dim, norm_eps=self.norm_eps)
        base = self.mup_base_dim
        require(base is None or base > 0, "mup_base_dim", base, "positive, or None")
        require(len(self.blocks) > 0, "blocks", self.blocks, "at least one layer")
        for attention in {block.attention for block in self.blocks}:
            fits = attention.head_dim is not None or self.dim % attention.heads == 0
            require(fits, "heads", attention.heads, f"a divisor of dim={self.dim} when head_dim is not given")
            attention.rope(self.dim)  # refuses what does not fit a head

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, for a run's folder."""
        values: dict[str, Any] = _plain(asdict(self))
        return values

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
    if "adjust" in feed_forward:
        feed_forward = {**feed_forward, "adjust": tuple(feed_forward["adjust"])}
    others = {name: value for name, value in values.items() if name not in ("attention", "feed_forward")}
    return BlockConfig(AttentionConfig(**values["attention"]), kind(**feed_forward), **others)


def _plain(value: Any) -> Any:
    """The same with lists for tuples, as JSON gives it back."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value
