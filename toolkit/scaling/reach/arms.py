"""What a study of reach compares: small decoders that differ in what their queries see."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.attention.reach import induction_distances, reach, reach_cut
from toolkit.attention.selection import parse_sparsity
from toolkit.checks import require, require_positive
from toolkit.models import AttentionConfig, BlockConfig, DecoderConfig, FeedForwardConfig


@dataclass(frozen=True)
class ReachArm:
    """One way to attend.

    Attributes:
        name: of the arm, in tables and run names.
        patterns: as text (:func:`toolkit.attention.selection.parse_sparsity`), one a layer, from the first layer on and
            over again.
        about: one sentence for the report.

    Raises:
        ValueError: if the name does not suit a folder, or a pattern is not understood.
    """

    name: str
    patterns: tuple[str, ...]
    about: str = ""

    def __post_init__(self) -> None:
        fits = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9+_.-]*", self.name) is not None
        require(fits, "name", self.name, "letters, digits, '+', '-', '_' and '.'")
        require(len(self.patterns) > 0, "patterns", self.patterns, "at least one pattern, as text")
        for pattern in self.patterns:
            parse_sparsity(pattern)


@dataclass(frozen=True)
class ReachModel:
    """The decoder that every arm has but for its patterns.

    Attributes:
        layers: of attention and feed-forward.
        dim, heads: width of a token, and heads that share it.
        hidden_dim: of the feed-forward.
        rope_base: theta of the rotary embedding.
    """

    layers: int = 3
    dim: int = 48
    heads: int = 4
    hidden_dim: int = 96
    rope_base: float = 10_000.0

    def __post_init__(self) -> None:
        require_positive(layers=self.layers)

    def decoder(self, arm: ReachArm, vocab_size: int) -> DecoderConfig:
        """The decoder of ``arm``.

        Raises:
            ValueError: if a size is not positive, or the heads do not divide ``dim``.
        """
        feed_forward = FeedForwardConfig(self.hidden_dim)
        blocks = tuple(
            BlockConfig(AttentionConfig(self.heads, pattern=text, rope_base=self.rope_base), feed_forward)
            for text in self.texts(arm)
        )
        return DecoderConfig(vocab_size, self.dim, blocks)

    def texts(self, arm: ReachArm) -> tuple[str, ...]:
        """What each layer of ``arm`` sees."""
        return tuple(arm.patterns[layer % len(arm.patterns)] for layer in range(self.layers))


@dataclass(frozen=True)
class Reach:
    """What an arm's masks let the last token know of a pair before it, bool (length,) by distance.

    Attributes:
        possible: a path leads from both of the pair, if keys chosen by content happen to be theirs.
        certain: a path leads from both whatever is chosen.
        value: a path leads from the second of the pair, the value, even if not from the first.
    """

    possible: Tensor
    certain: Tensor
    value: Tensor

    @property
    def cut(self) -> int:
        """The longest distance up to which every pair is possibly reached."""
        return reach_cut(self.possible)

    @property
    def certain_cut(self) -> int:
        """The same, whatever is chosen."""
        return reach_cut(self.certain)


def arm_reach(model: ReachModel, arm: ReachArm, length: int) -> Reach:
    """The reach of ``arm`` in a row of ``length`` tokens, from its own masks."""
    layers = [parse_sparsity(text) for text in model.texts(arm)]
    seen, certain = (reach(layers, length, certain=one) for one in (False, True))
    places = (length - torch.arange(length)).clamp(max=length - 1)
    return Reach(induction_distances(seen), induction_distances(certain), seen[-1, places])
