"""Shapes: the rule that makes a decoder of any width for each family that a study compares."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Protocol

from toolkit.attention.selection import parse_sparsity
from toolkit.checks import require, require_positive
from toolkit.models import AttentionConfig, BlockConfig, DecoderConfig, FeedForwardConfig, MoEConfig


class Shape(Protocol):
    """The rule that makes a decoder of any width for each of its families: what a study compares."""

    @property
    def families(self) -> tuple[str, ...]:
        """Names of what can be compared."""
        ...

    def decoder(self, family: str, dim: int, vocab_size: int) -> DecoderConfig:
        """The decoder of ``family`` at width ``dim``; a ``ValueError`` where there is none."""
        ...


@dataclass(frozen=True)
class Family:
    """One way to build a decoder's layers.

    Attributes:
        name: what the family is called in plans, tables, figures and folders.
        num_experts: routed experts of each layer; 0 for a dense feed-forward.
        top_k: routed experts that a token uses.
        shared_experts: experts that every token uses beside those. All experts are equally wide, such that one token's
            add up to the dense feed-forward: top_k + shared_experts is the granularity.
        balance, z_loss: coefficients of the default router's losses.
        router: another router as text (:func:`toolkit.routing.build_router`), which names its losses itself.
        patterns: attention of the layers, first to last, repeated as often as there are layers: two make a hybrid.

    Raises:
        ValueError: if the name does not suit a folder, a number is out of its range or a pattern is not understood.
    """

    name: str
    num_experts: int = 0
    top_k: int = 2
    shared_experts: int = 0
    balance: float = 0.01
    z_loss: float = 0.001
    router: str | None = None
    patterns: tuple[str, ...] = ("Causal()",)

    def __post_init__(self) -> None:
        fits = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9+_.-]*", self.name) is not None
        require(fits, "name", self.name, "letters, digits, '+', '-', '_' and '.', beginning with one of the first two")
        for name in ("num_experts", "shared_experts", "balance", "z_loss"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        require_positive(top_k=self.top_k)
        enough = self.num_experts == 0 or self.top_k <= self.num_experts
        require(enough, "top_k", self.top_k, f"at most num_experts={self.num_experts}")
        require(len(self.patterns) > 0, "patterns", self.patterns, "at least one")
        for pattern in self.patterns:
            parse_sparsity(pattern)

    def feed_forward(self, hidden_dim: int) -> FeedForwardConfig | MoEConfig:
        """The feed-forward of which one token uses a width of ``hidden_dim``."""
        if self.num_experts == 0:
            return FeedForwardConfig(hidden_dim)
        width = max(1, round(hidden_dim / (self.top_k + self.shared_experts)))
        config = MoEConfig(width, self.num_experts, self.top_k, self.shared_experts, router=self.router)
        return config if self.router else replace(config, balance=self.balance, z_loss=self.z_loss)

    def pattern(self, layer: int) -> str:
        """The attention of that layer."""
        return self.patterns[layer % len(self.patterns)]


WINDOW = ("Causal() & SlidingWindow(32)",)

ARMS = (
    Family("dense"),
    Family("moe", num_experts=8),
    Family("dense+window", patterns=WINDOW),
    Family("moe+window", num_experts=8, patterns=WINDOW),
)
"""What is compared where nothing else is said: dense and sparse, each with and without a window."""


@dataclass(frozen=True)
class ModelShape:
    """The rule that makes a decoder of any width, the same for every family.

    A sparse family's model has the dense one's depth and heads, and experts whose chosen width adds up to
    the dense feed-forward's: it differs in the router and in what it does not use.

    Attributes:
        arms: the families.
        layers: blocks, or the fewest of them with an ``aspect_ratio``.
        aspect_ratio: width of a token for each layer: a model has round(dim / aspect_ratio) of them; None: ``layers``
            at every width.
        head_dim: a model has dim // head_dim heads, at least one, which share its width.
        queries_per_kv_head: query heads that share a key head.
        feed_forward_ratio: hidden width of the dense feed-forward / dim.
        tied_head: the head is the embedding's matrix.

    Raises:
        ValueError: if a size is not positive or two families have one name.
    """

    arms: tuple[Family, ...] = ARMS
    layers: int = 2
    aspect_ratio: float | None = None
    head_dim: int = 64
    queries_per_kv_head: int = 1
    feed_forward_ratio: float = 4.0
    tied_head: bool = True

    def __post_init__(self) -> None:
        names = ("layers", "head_dim", "queries_per_kv_head", "feed_forward_ratio")
        require_positive(**{name: getattr(self, name) for name in names})
        ratio = self.aspect_ratio
        require(ratio is None or ratio > 0, "aspect_ratio", ratio, "positive, or None")
        repeated = sorted({name for name in self.families if self.families.count(name) > 1})
        require(len(self.arms) > 0 and not repeated, "arms", repeated, "at least one, each by a name of its own")

    @property
    def families(self) -> tuple[str, ...]:
        """The families' names, as they were given."""
        return tuple(arm.name for arm in self.arms)

    def family(self, name: str) -> Family:
        """The family of that name.

        Raises:
            ValueError: if there is none.
        """
        require(name in self.families, "families", name, "one of " + ", ".join(self.families))
        return self.arms[self.families.index(name)]

    def decoder(self, family: str, dim: int, vocab_size: int) -> DecoderConfig:
        """The decoder of ``family`` at width ``dim``.

        Raises:
            ValueError: if the family is unknown or ``dim`` cannot be shared by its heads.
        """
        arm, heads = self.family(family), max(1, dim // self.head_dim)
        even = f"a multiple of {2 * heads}: {heads} heads (dim // head_dim, at least 1) of an even width"
        require(dim % (2 * heads) == 0, "dims", dim, even)
        require(
            heads % self.queries_per_kv_head == 0,
            "queries_per_kv_head", self.queries_per_kv_head, f"a divisor of the {heads} heads at dim={dim}",
        )  # fmt: skip
        attention = AttentionConfig(heads, heads // self.queries_per_kv_head, dim // heads)
        feed_forward = arm.feed_forward(round(self.feed_forward_ratio * dim))
        blocks = [
            BlockConfig(replace(attention, pattern=arm.pattern(layer)), feed_forward)
            for layer in range(self.depth(dim))
        ]
        return DecoderConfig(vocab_size, dim, tuple(blocks), self.tied_head)

    def depth(self, dim: int) -> int:
        """Layers at width ``dim``."""
        return self.layers if self.aspect_ratio is None else max(self.layers, round(dim / self.aspect_ratio))
